# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""Guest memory for code that is compiled.

`direct_memory.pyi` documents what is public. The extensions have to work with a model that is not compiled too, so
`vfu_server.vfio.guest_memory` knows none of the model's classes; this one is both.
"""

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from pymodel.memory cimport GuestMemory as Memory, Vectors, u64
from vfu_server.vfio.guest_memory cimport GuestMemory, full_fence


@cython.final
cdef class DirectMemory(Memory):
    cdef GuestMemory target

    def __cinit__(self, GuestMemory target not None):
        self.target = target

    # In Python.

    def view(self, address, length, *, write):
        return self.target.view(address, length, write=write)

    def views(self, segments, start, length, *, write):
        return self.target.views(segments, start, length, write=write)

    def read(self, address, length):
        return self.target.read(address, length)

    def write(self, address, data):
        self.target.write(address, data)

    def is_mapped(self, address, length):
        return self.target.is_mapped(address, length)

    def load_u16(self, address):
        return self.target.load_u16(address)

    def store_u16(self, address, value):
        self.target.store_u16(address, value)

    def fence(self):
        full_fence()

    # Without the interpreter.

    cdef int word(self, u64 address) except -1 nogil:
        return self.target.load(address)

    cdef int set_word(self, u64 address, int value) except -1 nogil:
        return self.target.store(address, <unsigned short>value)

    cdef int barrier(self) except -1 nogil:
        full_fence()
        return 0

    cdef u64 peek(self, u64 address) except? 0xFFFFFFFFFFFFFFFF nogil:
        cdef u64 value = 0
        self.target.copy(address, &value, sizeof(value), False)
        return value

    cdef int poke(self, u64 address, u64 value, int length) except -1 nogil:
        return self.target.copy(address, &value, <uint64_t>length, True)

    cdef int copy_in(self, u64 address, u64 place, u64 length) except -1 nogil:
        return self.target.copy(address, <void *>place, length, True)

    cdef int copy_out(self, u64 address, u64 place, u64 length) except -1 nogil:
        return self.target.copy(address, <void *>place, length, False)

    cdef int places(self, u64 address, u64 length, bint write, Vectors found) except -1 nogil:
        cdef uint64_t count = 0
        cdef char *place
        while length and 2 * found.count < found.pieces.shape[0]:
            place = self.target.run(address, length, write, &count)
            if found.count > found.sealed and found.pieces[2 * found.count - 2] + found.pieces[2 * found.count - 1] == <u64>place:
                found.pieces[2 * found.count - 1] += count
                found.size += count
            else:
                found.add(<u64>place, count)
            address += count
            length -= count
        return 0

    cdef int spread(self, u64 place, u64 length, Vectors found, int first) except -1 nogil:
        cdef u64 count
        while length:
            count = min(length, found.pieces[2 * first + 1])
            memcpy(<void *>found.pieces[2 * first], <void *>place, count)
            place += count
            length -= count
            first += 1
        return 0

    cdef int collect(self, u64 place, u64 length, Vectors found, int first) except -1 nogil:
        cdef u64 count
        while length:
            count = min(length, found.pieces[2 * first + 1])
            memcpy(<void *>place, <void *>found.pieces[2 * first], count)
            place += count
            length -= count
            first += 1
        return 0
