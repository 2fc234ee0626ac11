# Types for `make ext`, which compiles memory.py as it stands.
cdef class Segments:
    cdef object _memory
    cdef readonly object _segments
    cdef readonly object length

cdef class Buffer:
    cdef public object queue
    cdef public Segments readable
    cdef public Segments writable
    cdef object _complete
