# Types for `make ext`, which compiles store.py as it stands.
from pymodel.memory cimport GuestMemory, u64
from pymodel.queue.chain cimport Chain

cdef class Store:
    cdef int read(self, GuestMemory memory, Chain chain, int first, u64 skip, u64 length, u64 offset) except -1 nogil
    cdef int write(self, GuestMemory memory, Chain chain, int first, u64 skip, u64 length, u64 offset) except -1 nogil
    cdef int clean(self) except -1 nogil
    cdef int perform(self) except -1 nogil
    cdef int proceed(self, bint wanted) except -1 nogil
    cdef int error(self, int number) except -1 nogil
    cdef int landed(self) except -1 nogil
