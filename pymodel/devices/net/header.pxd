# Types for `make ext`, which compiles header.py as it stands.
import cython

from pymodel.memory cimport u64

cdef int _NEEDS_CSUM, _GSO_NONE, _GSO_ECN, _KINDS, _LENGTH_AT, _SIZE_AT, _START_AT

@cython.final
cdef class Direction:
    cdef readonly u64 checksum
    cdef readonly u64 ecn
    cdef u64[::1] segmentation
    cdef readonly int valid

@cython.final
cdef class Header:
    cdef readonly Direction direction
    cdef public u64 features
    cdef readonly u64 words
    cdef readonly unsigned int offset

    @cython.locals(flags=int, gso=int, start=u64, kept=u64, size=u64, hint=u64)
    cpdef int check(self, u64 words, unsigned int offset, u64 length) except -1 nogil
