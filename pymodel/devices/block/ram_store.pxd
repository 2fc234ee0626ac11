# Types for `make ext`, which compiles ram_store.py as it stands.
import cython

from pymodel.devices.block.store cimport Store
from pymodel.memory cimport GuestMemory, u64
from pymodel.queue.chain cimport Chain

cdef int _DONE, _NOT_NOW

cdef class RamStore(Store):
    cdef u64 chunk
    cdef u64 block
    cdef public unsigned int epoch
    cdef public bint named
    cdef u64 _zeroes
    cdef u64[::1] _places
    cdef unsigned char[::1] _own
    cdef unsigned int[::1] _written_in

    cpdef put(self, u64 number, chunk)
    cpdef share(self, u64 number)
    cdef int read(self, GuestMemory memory, Chain chain, int first, u64 skip, u64 length, u64 offset) except -1 nogil

    @cython.locals(number=u64)
    cdef int write(self, GuestMemory memory, Chain chain, int first, u64 skip, u64 length, u64 offset) except -1 nogil

    @cython.locals(count=u64)
    cdef int move(self, GuestMemory memory, Chain chain, int first, u64 skip, u64 length, u64 offset, int write) except -1 nogil
    cdef int clean(self) except -1 nogil
