# Types for `make ext`, which compiles memory.py as it stands.
import cython

ctypedef unsigned long long u64

cdef int _MOST

@cython.final
cdef class Vectors:
    cdef public u64[::1] pieces
    cdef public int count
    cdef public u64 size
    cdef readonly int sealed

    cpdef int clear(self) except -1 nogil
    cpdef int seal(self) except -1 nogil
    cpdef int cut(self, int count) except -1 nogil
    cpdef int add(self, u64 place, u64 length) except -1 nogil

cdef class GuestMemory:
    cdef int word(self, u64 address) except -1 with gil
    cdef int set_word(self, u64 address, int value) except -1 with gil
    cdef int barrier(self) except -1 with gil
    cdef u64 peek(self, u64 address) except? 0xFFFFFFFFFFFFFFFF with gil
    cdef int poke(self, u64 address, u64 value, int length) except -1 with gil
    cdef int copy_in(self, u64 address, u64 place, u64 length) except -1 with gil
    cdef int copy_out(self, u64 address, u64 place, u64 length) except -1 with gil
    cdef int places(self, u64 address, u64 length, bint write, Vectors found) except -1 with gil
    cdef int spread(self, u64 place, u64 length, Vectors found, int first) except -1 with gil
    cdef int collect(self, u64 place, u64 length, Vectors found, int first) except -1 with gil

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
