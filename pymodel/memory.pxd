# Types for `make ext`, which compiles memory.py as it stands.
cdef class Segments:
    cdef object _memory
    cdef object _segments
    cdef readonly object length

cdef class Buffer:
    cdef readonly object queue
    cdef readonly Segments readable
    cdef readonly Segments writable
    cdef readonly object complete
