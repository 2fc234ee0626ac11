# Types for `make ext`, which compiles dma.py as it stands.
cdef class Dma:
    cdef public object target
    cdef object _record
    cpdef read(self, address, length)
    cpdef write(self, address, data)
    cpdef load_u16(self, address)
    cpdef store_u16(self, address, value)
    cpdef fence(self)
