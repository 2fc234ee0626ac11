from pymodel.memory cimport GuestMemory as Memory, Vectors, u64
from vfu_server.vfio.guest_memory cimport GuestMemory


cdef class DirectMemory(Memory):
    cdef GuestMemory target

    cdef int word(self, u64 address) except -1 nogil
    cdef int set_word(self, u64 address, int value) except -1 nogil
    cdef int barrier(self) except -1 nogil
    cdef u64 peek(self, u64 address) except? 0xFFFFFFFFFFFFFFFF nogil
    cdef int poke(self, u64 address, u64 value, int length) except -1 nogil
    cdef int copy_in(self, u64 address, u64 place, u64 length) except -1 nogil
    cdef int copy_out(self, u64 address, u64 place, u64 length) except -1 nogil
    cdef int places(self, u64 address, u64 length, bint write, Vectors found) except -1 nogil
