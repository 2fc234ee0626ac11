# Types for `make ext`, which compiles dma.py as it stands.
import cython

from pymodel.memory cimport GuestMemory, Vectors, u64
from pymodel.migration.record cimport WriteRecord

cdef class Dma(GuestMemory):
    cdef public GuestMemory target
    cdef WriteRecord _record

    cdef int word(self, u64 address) except -1 nogil
    cdef int set_word(self, u64 address, int value) except -1 nogil
    cdef int barrier(self) except -1 nogil
    cdef u64 peek(self, u64 address) except? 0xFFFFFFFFFFFFFFFF nogil
    cdef int poke(self, u64 address, u64 value, int length) except -1 nogil
    cdef int copy_in(self, u64 address, u64 place, u64 length) except -1 nogil
    cdef int copy_out(self, u64 address, u64 place, u64 length) except -1 nogil
    @cython.locals(size=u64)
    cdef int places(self, u64 address, u64 length, bint write, Vectors found) except -1 nogil
    cdef int spread(self, u64 place, u64 length, Vectors found, int first) except -1 nogil
    cdef int collect(self, u64 place, u64 length, Vectors found, int first) except -1 nogil
    cdef int note(self, u64 address, u64 length) except -1 nogil

cdef int closed() except -1 with gil
