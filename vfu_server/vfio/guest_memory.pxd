cimport cython
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<sys/uio.h>":
    cdef struct iovec:
        void *iov_base
        size_t iov_len


@cython.final
cdef class Mapping:
    """Our own mapping of a region's memory. Views hold it, so that it outlives an unmap that they miss."""

    cdef char *base
    cdef size_t length
    cdef int slot

    @staticmethod
    cdef Mapping duplicate(iovec of, size_t page_size)
    cdef uint64_t lost(self)


@cython.final
cdef class Region:
    """One range of guest addresses, [start, last]. `host` is NULL where it can't be reached."""

    cdef uint64_t start
    cdef uint64_t last
    cdef char *host
    cdef bint readable
    cdef bint writable
    cdef Mapping mapping


@cython.final
cdef class GuestMemory:
    cdef list regions  # of Region, in order of address, without overlaps
    cdef Region recent
    cdef uint64_t lost_before
    cdef readonly double unmapped_at

    cdef Region find(self, uint64_t address)
    cdef char *at(self, uint64_t address, uint64_t length, bint write) except NULL
    cdef int cover(self, list found, uint64_t start, uint64_t left, bint write) except -1
    cdef void add(self, uint64_t start, uint64_t length, Mapping mapping, char *host, uint32_t prot) except *
    cdef void remove(self, uint64_t start, uint64_t length) except *
    cdef void retire(self, Region region) except *
