# Types for `make ext`, which compiles memory.py as it stands.
import cython

cdef class Segments:
    cdef object _memory
    cdef readonly object _segments
    cdef readonly long long length
    cdef readonly bint written

    @cython.locals(size=cython.longlong, count=cython.longlong, parts=list)
    cpdef read(self, long long start, long long length)

    @cython.locals(size=cython.longlong, at=cython.longlong)
    cpdef long long put(self, long long start, bytes data) except -1

cdef class Buffer:
    cdef public int queue
    cdef public Segments readable
    cdef public Segments writable
    cdef object _complete
