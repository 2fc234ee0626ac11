cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "<sys/uio.h>":
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from *:
    """
    #include <stdatomic.h>
    #define full_fence() atomic_thread_fence(memory_order_seq_cst)
    """
    void full_fence() nogil

cdef extern from "guest_fault.h":
    cdef struct guest_fault_slot:
        pass

cdef extern from "region_table.h":
    cdef struct Region "region":
        uint64_t start
        uint64_t last
        char *host
        guest_fault_slot *slot
        void *mapping
        uint64_t offset
        uint32_t prot
    cdef struct RegionTable "region_table":
        size_t count


@cython.final
cdef class Holding:
    """What one client's memory takes of the process, views that it gave up included."""

    cdef uint64_t lost     # pages, ever
    cdef uint64_t bytes    # of address space
    cdef Py_ssize_t count  # of mappings


@cython.final
cdef class Mapping:
    """Our own mapping of a client's file. Views hold it, so that it outlives an unmap that they miss."""

    cdef char *base
    cdef size_t length
    cdef guest_fault_slot *slot
    cdef Holding holding
    cdef object file       # what tells one file, opened and mapped in one way, from another
    cdef Py_ssize_t regions
    cdef bint is_whole     # it has all of the file

    @staticmethod
    cdef Mapping of(void *base, size_t length, size_t page_size, Holding holding)


@cython.final
cdef class GuestMemory:
    cdef RegionTable regions
    cdef Region *recent
    cdef dict whole           # the mapping of each file that is mapped as a whole
    cdef Holding holding
    cdef Py_ssize_t mappings_max
    cdef uint64_t bytes_max
    cdef readonly double unmapped_at
    cdef readonly Py_ssize_t refused
    cdef readonly str refusal

    cdef Region *overlapping(self, uint64_t start, uint64_t last) noexcept nogil
    cdef Region *find(self, uint64_t address) except NULL nogil
    cdef char *at(self, uint64_t address, uint64_t length, bint write) except NULL nogil
    cdef int load(self, uint64_t address) except -1 nogil
    cdef int store(self, uint64_t address, uint16_t value) except -1 nogil
    cdef int copy(self, uint64_t address, void *place, uint64_t length, bint write) except -1 nogil
    cdef int probe(self, uint64_t address, uint64_t length) except -1 nogil
    cdef char *run(self, uint64_t address, uint64_t length, bint write, uint64_t *count) except NULL nogil
    cdef int cover(self, list found, uint64_t start, uint64_t left, bint write) except -1
    cdef int map(self, uint64_t start, uint64_t length, int fd, uint64_t offset, uint32_t prot) except -1
    cdef int adopt(self, uint64_t start, uint64_t length, void *vaddr, iovec mapped, size_t page_size,
                   uint32_t prot) except -1
    cdef int unmap(self, uint64_t start, uint64_t length) except -1
    cdef int clear(self) except -1
    cdef Mapping reach(self, int fd, uint64_t offset, uint64_t length, uint32_t prot, uint64_t *first)
    cdef Mapping map_file(self, int fd, uint64_t first, uint64_t length, size_t page_size, uint32_t prot)
    cdef int insert(self, uint64_t start, uint64_t length, Mapping mapping, char *host, uint64_t offset,
                    uint32_t prot) except -1
    cdef int drop(self, Region *region) except -1
    cdef int refuse(self, str reason) except -1
    cdef void note_refusal(self, str reason) noexcept
