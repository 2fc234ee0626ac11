# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The guest memory that the client of a context mapped.

`guest_memory.pyi` documents what is public, `guest_memory.pxd` has what `_vfu.pyx` needs. What C code needs explaining is
here.
"""

import os

from time import monotonic

from numpy import frombuffer as np_frombuffer

from pymodel.errors import MemoryFault
from pymodel.memory import HOW_TO_SHARE, runs

cimport numpy as np
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport uint16_t, uint64_t, uintptr_t
from libc.string cimport memcpy

np.import_array()


cdef extern from "<sys/mman.h>":
    int PROT_READ, PROT_WRITE, MADV_DONTDUMP, MREMAP_MAYMOVE
    void *MAP_FAILED
    void *mremap(void *old, size_t old_size, size_t new_size, int flags) nogil
    int munmap(void *address, size_t length) nogil
    int madvise(void *address, size_t length, int advice) nogil

cdef extern from *:
    """
    #include <stdatomic.h>

    /* A ring index is shared with the driver on another processor: one access, ordered. */
    static inline uint16_t load_acquire(const void *at) {
        return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
    }
    static inline void store_release(void *at, uint16_t value) {
        __atomic_store_n((uint16_t *)at, value, __ATOMIC_RELEASE);
    }
    static inline void full_fence(void) {
        atomic_thread_fence(memory_order_seq_cst);
    }
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "load_u16 and store_u16 are little-endian as virtio is: add a byte swap"
    #endif
    """
    uint16_t load_acquire(const void *at) nogil
    void store_release(void *at, uint16_t value) nogil
    void full_fence() nogil

cdef extern from "guest_fault.h":
    int guest_fault_install()
    int guest_fault_watch(void *start, size_t length, size_t page_size)
    uint64_t guest_fault_lost(int slot)
    void guest_fault_forget(int slot)


# What `read` and `write` copy without a view.
cdef uint64_t SMALL = 1 << 16

cdef str UNSHARED = (
    "the client mapped guest memory at {:#x} without a file, so that no other process can reach it; "
    + HOW_TO_SHARE
)

if guest_fault_install() != 0:
    raise OSError(errno, "sigaction: " + os.strerror(errno))


cdef class Mapping:
    def __cinit__(self):
        self.base = NULL
        self.slot = -1

    @staticmethod
    cdef Mapping duplicate(iovec of, size_t page_size):
        """A second mapping of the library's (that one goes away inside the library). Raises OSError."""
        cdef Mapping mapping = Mapping.__new__(Mapping)
        # An old size of 0 means: map the same shared pages once more, elsewhere.
        cdef void *base = mremap(of.iov_base, 0, of.iov_len, MREMAP_MAYMOVE)
        if base == MAP_FAILED:
            raise OSError(errno, "mremap of guest memory: " + os.strerror(errno))
        mapping.base = <char *>base
        mapping.length = of.iov_len
        madvise(base, of.iov_len, MADV_DONTDUMP)
        mapping.slot = guest_fault_watch(base, of.iov_len, page_size)
        if mapping.slot < 0:
            raise OSError("too many guest memory regions in this process")
        return mapping

    cdef uint64_t lost(self):
        return guest_fault_lost(self.slot)

    def __dealloc__(self):
        if self.slot >= 0:
            guest_fault_forget(self.slot)
        if self.base != NULL:
            munmap(self.base, self.length)


cdef class Region:
    pass


cdef class GuestMemory:
    def __cinit__(self):
        self.regions = []
        self.unmapped_at = float("-inf")

    @property
    def lost(self):
        cdef uint64_t total = self.lost_before
        cdef Region region
        for region in self.regions:
            if region.mapping is not None:
                total += region.mapping.lost()
        return total

    def __len__(self):
        return len(self.regions)

    cdef Region find(self, uint64_t address):
        cdef Region region = self.recent
        cdef Py_ssize_t low, high, middle
        if region is not None and region.start <= address <= region.last:
            return region
        low, high = 0, len(self.regions)
        while low < high:
            middle = (low + high) // 2
            region = <Region>self.regions[middle]
            if address < region.start:
                high = middle
            elif address > region.last:
                low = middle + 1
            else:
                self.recent = region
                return region
        raise MemoryFault(f"guest memory at {address:#x} is not mapped")

    cdef char *at(self, uint64_t address, uint64_t length, bint write) except NULL:
        """Where `length` bytes (not 0) at `address` are, all in one region."""
        cdef Region region = self.find(address)
        check(region, address, write)
        if region.last - address < length - 1:
            raise MemoryFault(f"guest memory at {address:#x}: {length} bytes are not in one region")
        return region.host + (address - region.start)

    def view(self, object address, object length, *, bint write):
        cdef uint64_t start, left
        cdef list found = []
        if length == 0:
            return found
        try:
            start, left = address, length
        except OverflowError:
            raise MemoryFault(f"guest memory at {address:#x} + {length:#x}: no such address") from None
        self.cover(found, start, left, write)
        return found

    def views(self, object segments, long long start, long long length, *, bint write):
        cdef uint64_t first = 0, held = 0, at, size, skip = start, left = length if length > 0 else 0
        cdef object address
        cdef list found = []
        for address, size in segments:
            if not left:
                break
            if skip >= size:
                skip -= size
                continue
            size -= skip
            if size > left:
                size = left
            try:
                at = <uint64_t>address + skip
            except OverflowError:
                at = 0
            if at < skip or (not at and address != 0):
                # No address at all: said as the Protocol's own `views` does.
                return [view for run in runs(segments, start, length) for view in self.view(*run, write=write)]
            if held and at == first + held and at:  # 0: the end of all addresses is no neighbour of their start
                held += size
            else:
                if held:
                    self.cover(found, first, held, write)
                first, held = at, size
            left -= size
            skip = 0
        if held:
            self.cover(found, first, held, write)
        return found

    cdef int cover(self, list found, uint64_t start, uint64_t left, bint write) except -1:
        """Append views of [start, start + left), `left` not 0."""
        cdef uint64_t count
        cdef Region region
        cdef np.npy_intp size
        cdef np.ndarray array
        if left - 1 > (<uint64_t>0xFFFF_FFFF_FFFF_FFFF) - start:
            raise MemoryFault(f"guest memory at {start:#x} + {left:#x} wraps around")
        while left:
            region = self.find(start)
            check(region, start, write)
            count = region.last - start + 1
            if count > left or count == 0:  # 0: all 2**64 bytes
                count = left
            size = <np.npy_intp>count
            array = np.PyArray_SimpleNewFromData(1, &size, np.NPY_UINT8, region.host + (start - region.start))
            np.set_array_base(array, region.mapping)
            if not write:
                np.PyArray_CLEARFLAGS(array, np.NPY_ARRAY_WRITEABLE)
            found.append(array)
            start += count
            left -= count
        return 0

    def read(self, object address, object length):
        cdef Region region = self.recent
        cdef uint64_t start, count
        # Nearly always in the region that was used last.
        if region is not None and 0 < length <= SMALL:
            start, count = checked(address), length
            if region.start <= start <= region.last and region.last - start >= count - 1:
                check(region, start, False)
                return PyBytes_FromStringAndSize(region.host + (start - region.start), <Py_ssize_t>count)
        return b"".join([part.tobytes() for part in self.view(address, length, write=False)])

    def write(self, object address, bytes data not None):
        cdef Region region = self.recent
        cdef uint64_t start, count = len(data)
        cdef Py_ssize_t done = 0
        if region is not None and 0 < count <= SMALL:
            start = checked(address)
            if region.start <= start <= region.last and region.last - start >= count - 1:
                check(region, start, True)
                memcpy(region.host + (start - region.start), <char *>data, count)
                return
        for part in self.view(address, count, write=True):
            part[:] = np_frombuffer(data, "u1", len(part), done)
            done += len(part)

    def load_u16(self, object address):
        cdef char *place = self.at(checked(address), 2, False)
        return load_acquire(aligned(place, address))

    def store_u16(self, object address, uint16_t value):
        cdef char *place = self.at(checked(address), 2, True)
        store_release(aligned(place, address), value)

    def fence(self):
        full_fence()

    cdef void add(self, uint64_t start, uint64_t length, Mapping mapping, char *host, uint32_t prot) except *:
        """Add a range. One that is there already, or overlaps another, takes its place."""
        cdef Region region = Region.__new__(Region)
        cdef Region other
        cdef list kept = []
        if length == 0 or length - 1 > (<uint64_t>0xFFFF_FFFF_FFFF_FFFF) - start:
            return
        region.start = start
        region.last = start + (length - 1)
        region.mapping = mapping
        region.host = host
        region.readable = (prot & PROT_READ) != 0
        region.writable = (prot & PROT_WRITE) != 0
        for other in self.regions:
            if other.last < region.start or other.start > region.last:
                kept.append(other)
            else:
                self.retire(other)
        kept.append(region)
        kept.sort(key=region_start)
        self.recent = None
        self.regions = kept

    cdef void remove(self, uint64_t start, uint64_t length) except *:
        cdef Region region
        cdef list kept = []
        for region in self.regions:
            if region.start == start and region.last - region.start == length - 1:
                self.retire(region)
                self.unmapped_at = monotonic()
            else:
                kept.append(region)
        self.recent = None
        self.regions = kept

    cdef void retire(self, Region region) except *:
        if region.mapping is not None:
            self.lost_before += region.mapping.lost()


def region_start(Region region):
    return region.start


cdef inline int check(Region region, uint64_t address, bint write) except -1:
    if region.host == NULL:
        raise MemoryFault(UNSHARED.format(region.start))
    if write and not region.writable:
        raise MemoryFault(f"guest memory at {address:#x} is mapped without write access")
    if not write and not region.readable:
        raise MemoryFault(f"guest memory at {address:#x} is mapped without read access")
    return 0


cdef inline uint64_t checked(object address) except? 0:
    try:
        return address
    except OverflowError:
        raise MemoryFault(f"guest memory at {address:#x}: no such address") from None


cdef inline void *aligned(char *place, object address) except NULL:
    # The client chooses where in a file a region starts, so the guest's address alone does not tell.
    if <uintptr_t>place & 1:
        raise MemoryFault(f"guest memory at {address:#x} is not aligned for a 16-bit access")
    return place
