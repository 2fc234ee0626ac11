# Types for `make ext`, which compiles record.py as it stands.
import cython

from pymodel.memory cimport u64

cdef int PAGE_SHIFT, _NOTES

@cython.final
cdef class WriteRecord:
    cdef public bint active
    cdef set _pages
    cdef u64[::1] _firsts
    cdef u64[::1] _lasts
    cdef int _noted

    @cython.locals(first=u64, last=u64)
    cpdef int add(self, u64 address, u64 length) except -1 nogil

    @cython.locals(number=int)
    cpdef int sort_in(self) except -1 with gil
