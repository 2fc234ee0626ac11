# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The guest memory that the client of a context mapped.

`guest_memory.pyi` documents what is public, `guest_memory.pxd` has what `_vfu.pyx` needs. What C code needs explaining is
here.

Regions are many where the guest has an IOMMU, and short, but they are of few files. So a file is mapped once, as a
whole, and its regions are places in that mapping: a region takes neither a mapping nor a descriptor of its own. The
table of regions (`region_table.c`) is in order of addresses, and searched by halves.
"""

import os

from time import monotonic

from numpy import frombuffer as np_frombuffer

from pymodel.errors import MemoryFault
from pymodel.memory import HOW_TO_SHARE, runs

cimport numpy as np
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_INCREF, Py_DECREF
from libc.errno cimport EINVAL, ENOMEM, ENOSPC, errno
from libc.stdint cimport uint16_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

np.import_array()


cdef extern from "<sys/mman.h>":
    int PROT_READ, PROT_WRITE, MADV_DONTDUMP, MREMAP_MAYMOVE, MAP_SHARED, MAP_NORESERVE
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int prot, int flags, int fd, long long offset) nogil
    void *mremap(void *old, size_t old_size, size_t new_size, int flags) nogil
    int munmap(void *address, size_t length) nogil
    int madvise(void *address, size_t length, int advice) nogil

cdef extern from "<fcntl.h>":
    int F_GETFL, O_ACCMODE, O_PATH
    int fcntl(int fd, int command) nogil

cdef extern from "<sys/stat.h>":
    cdef struct stat_result "stat":
        unsigned int st_mode
        unsigned long st_dev, st_ino
        long st_size, st_blksize
    int fstat(int fd, stat_result *status) nogil
    bint S_ISREG(unsigned int mode) nogil

cdef extern from "<sys/vfs.h>":
    cdef struct file_system "statfs":
        long f_type, f_bsize
    int fstatfs(int fd, file_system *found) nogil

cdef extern from "<linux/magic.h>":
    long HUGETLBFS_MAGIC

cdef extern from "<unistd.h>":
    int getpagesize() nogil

cdef extern from *:
    """
    /* A ring index is shared with the driver on another processor: one access, ordered. */
    static inline uint16_t load_acquire(const void *at) {
        return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
    }
    static inline void store_release(void *at, uint16_t value) {
        __atomic_store_n((uint16_t *)at, value, __ATOMIC_RELEASE);
    }
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "load_u16 and store_u16 are little-endian as virtio is: add a byte swap"
    #endif
    """
    uint16_t load_acquire(const void *at) nogil
    void store_release(void *at, uint16_t value) nogil

cdef extern from "region_table.h":
    Region *region_table_overlapping(const RegionTable *table, uint64_t start, uint64_t last) nogil
    bint region_table_insert(RegionTable *table, Region *added) nogil
    void region_table_remove(RegionTable *table, Region *gone) nogil

cdef extern from "guest_fault.h":
    int GUEST_FAULT_SLOTS
    int guest_fault_install()
    guest_fault_slot *guest_fault_watch(void *start, size_t length, size_t page_size, uint64_t *total)
    uint64_t guest_fault_lost(guest_fault_slot *slot) nogil
    void guest_fault_forget(guest_fault_slot *slot)


REGIONS_MAX = REGIONS
MAPPINGS_MAX = GUEST_FAULT_SLOTS
BYTES_MAX = 1 << 46

cdef enum:
    REGIONS = 65536

# The largest region; the library's own limit.
cdef uint64_t REGION_BYTES = <uint64_t>8 << 40

# What `read` and `write` copy without a view.
cdef uint64_t SMALL = 1 << 16

cdef str UNSHARED = (
    "the client mapped guest memory at {:#x} without a file, so that no other process can reach it; "
    + HOW_TO_SHARE
)

if guest_fault_install() != 0:
    raise OSError(errno, "sigaction: " + os.strerror(errno))


cdef class Holding:
    pass


cdef class Mapping:
    @staticmethod
    cdef Mapping of(void *base, size_t length, size_t page_size, Holding holding):
        """Watch what was mapped, and unmap it at the end. Raises OSError, with it unmapped."""
        cdef Mapping mapping = Mapping.__new__(Mapping)
        mapping.base = <char *>base
        mapping.length = length
        mapping.holding = holding
        holding.count += 1
        holding.bytes += length
        madvise(base, length, MADV_DONTDUMP)
        mapping.slot = guest_fault_watch(base, length, page_size, &holding.lost)
        if mapping.slot == NULL:
            raise OSError(ENOSPC, "too many files of guest memory in this process")
        return mapping

    def __dealloc__(self):
        if self.slot != NULL:
            guest_fault_forget(self.slot)
        if self.base != NULL:
            munmap(self.base, self.length)
            self.holding.count -= 1
            self.holding.bytes -= self.length


cdef class GuestMemory:
    def __cinit__(self, Py_ssize_t mappings_max=MAPPINGS_MAX, uint64_t bytes_max=BYTES_MAX):
        self.whole = {}
        self.holding = Holding.__new__(Holding)
        self.mappings_max = mappings_max
        self.bytes_max = bytes_max
        self.unmapped_at = float("-inf")
        self.refusal = ""

    def __dealloc__(self):
        self.clear()

    @property
    def lost(self):
        return self.holding.lost

    def __len__(self):
        return self.regions.count

    cdef Region *overlapping(self, uint64_t start, uint64_t last) noexcept nogil:
        """A region that has some of [start, last], or NULL."""
        return region_table_overlapping(&self.regions, start, last)

    cdef Region *find(self, uint64_t address) except NULL nogil:
        cdef Region *region = self.recent
        if region == NULL or not region.start <= address <= region.last:
            region = self.overlapping(address, address)
            if region == NULL:
                unmapped(address)
                return NULL
            self.recent = region
        return region

    cdef char *at(self, uint64_t address, uint64_t length, bint write) except NULL nogil:
        """Where `length` bytes (not 0) at `address` are, all in one region."""
        cdef Region *region = self.find(address)
        check(region, address, write)
        if region.last - address < length - 1:
            apart(address, length)
            return NULL
        return region.host + (address - region.start)

    # What the data path asks for without the interpreter (`vfu_server.datapath`).

    cdef int load(self, uint64_t address) except -1 nogil:
        """One aligned 16-bit load with acquire order."""
        cdef char *place = self.at(address, 2, False)
        return load_acquire(aligned(place, address))

    cdef int store(self, uint64_t address, uint16_t value) except -1 nogil:
        """One aligned 16-bit store with release order."""
        cdef char *place = self.at(address, 2, True)
        store_release(aligned(place, address), value)
        return 0

    cdef int copy(self, uint64_t address, void *place, uint64_t length, bint write) except -1 nogil:
        """Copy between [address, address + length) and memory of ours, to the first if `write`: all or nothing."""
        cdef uint64_t count
        cdef Region *region
        cdef bint is_there = not write
        while length:
            region = self.find(address)
            check(region, address, write)
            count = region.last - address + 1
            if count > length or count == 0:  # 0: all 2**64 bytes
                count = length
            if count < length and not is_there:
                self.probe(address, length)
                is_there = True
            if write:
                memcpy(region.host + (address - region.start), place, count)
            else:
                memcpy(place, region.host + (address - region.start), count)
            place = <char *>place + count
            length -= count
            address += count
            if length and not address:
                unmapped(address)
                return -1
        return 0

    cdef int probe(self, uint64_t address, uint64_t length) except -1 nogil:
        """Raise MemoryFault unless all of [address, address + length) can be written."""
        cdef uint64_t count = 0
        while length:
            self.run(address, length, True, &count)
            address += count
            length -= count
            if length and not address:
                unmapped(address)
                return -1
        return 0

    cdef char *run(self, uint64_t address, uint64_t length, bint write, uint64_t *count) except NULL nogil:
        """Where `address` is, and how many of the `length` bytes (not 0) from there on follow it there."""
        cdef Region *region = self.find(address)
        check(region, address, write)
        count[0] = region.last - address + 1
        if count[0] > length or count[0] == 0:
            count[0] = length
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
        cdef Region *region
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
            np.set_array_base(array, <object>region.mapping)
            if not write:
                np.PyArray_CLEARFLAGS(array, np.NPY_ARRAY_WRITEABLE)
            found.append(array)
            start += count
            left -= count
        return 0

    def read(self, object address, object length):
        cdef Region *region = self.recent
        cdef uint64_t start, count
        # Nearly always in the region that was used last.
        if region != NULL and 0 < length <= SMALL:
            start, count = checked(address), length
            if region.start <= start <= region.last and region.last - start >= count - 1:
                check(region, start, False)
                return PyBytes_FromStringAndSize(region.host + (start - region.start), <Py_ssize_t>count)
        return b"".join([part.tobytes() for part in self.view(address, length, write=False)])

    def write(self, object address, bytes data not None):
        cdef Region *region = self.recent
        cdef uint64_t start, count = len(data)
        cdef Py_ssize_t done = 0
        if region != NULL and 0 < count <= SMALL:
            start = checked(address)
            if region.start <= start <= region.last and region.last - start >= count - 1:
                check(region, start, True)
                memcpy(region.host + (start - region.start), <char *>data, count)
                return
        for part in self.view(address, count, write=True):
            part[:] = np_frombuffer(data, "u1", len(part), done)
            done += len(part)

    def is_mapped(self, uint64_t address, uint64_t length):
        return length != 0 and self.overlapping(address, address + (length - 1)) != NULL

    def load_u16(self, object address):
        return self.load(checked(address))

    def store_u16(self, object address, uint16_t value):
        self.store(checked(address), value)

    def fence(self):
        full_fence()

    # Rings that are not compiled ask so.

    def word(self, object address):
        return self.load(checked(address))

    def set_word(self, object address, uint16_t value):
        return self.store(checked(address), value)

    def barrier(self):
        full_fence()
        return 0

    def peek(self, object address):
        return int.from_bytes(self.read(address, 8), "little")

    def poke(self, object address, object value, Py_ssize_t length):
        self.write(address, value.to_bytes(8, "little")[:length])
        return 0

    # What the client maps and unmaps.

    cdef int map(self, uint64_t start, uint64_t length, int fd, uint64_t offset, uint32_t prot) except -1:
        """Add [start, start + length), from `offset` of `fd` on, or without memory where that is -1.

        `fd` stays the caller's, to be closed whatever happens. Raises OSError with nothing changed, and counts it in
        `refused` where that is for want of room.
        """
        cdef Region *there
        cdef Mapping mapping = None
        cdef uint64_t first = 0
        if not sound(start, length) or length > REGION_BYTES or offset > <uint64_t>1 << 62:
            raise OSError(EINVAL, "no such range")
        there = self.overlapping(start, start + (length - 1))
        if there != NULL:
            # The very same again changes nothing.
            if (there.start == start and there.last == start + (length - 1) and there.prot == prot
                    and (there.mapping == NULL) == (fd == -1) and (fd == -1 or there.offset == offset)
                    and (fd == -1 or (<Mapping>there.mapping).file == identity(fd, prot))):
                return 0
            raise OSError(EINVAL, "another region is there")
        if self.regions.count >= REGIONS:
            self.refuse(f"the client maps more than {REGIONS} regions of guest memory")
        if fd == -1:
            return self.insert(start, length, None, NULL, offset, prot)
        mapping = self.reach(fd, offset, length, prot, &first)
        return self.insert(start, length, mapping, mapping.base + (offset - first), offset, prot)

    cdef int adopt(self, uint64_t start, uint64_t length, void *vaddr, iovec mapped, size_t page_size,
                   uint32_t prot) except -1:
        """The same for a region that the library mapped: that mapping goes away inside the library. Raises OSError.

        What overlaps gives way.
        """
        cdef void *base
        cdef Mapping mapping = None
        cdef char *host = NULL
        cdef Region *there
        if not sound(start, length):
            return 0
        there = self.overlapping(start, start + (length - 1))
        while there != NULL:
            self.drop(there)
            there = self.overlapping(start, start + (length - 1))
        if vaddr != NULL:
            # An old size of 0 means: map the same shared pages once more, elsewhere.
            base = mremap(mapped.iov_base, 0, mapped.iov_len, MREMAP_MAYMOVE)
            if base == MAP_FAILED:
                raise OSError(errno, "mremap of guest memory: " + os.strerror(errno))
            mapping = Mapping.of(base, mapped.iov_len, page_size, self.holding)
            host = mapping.base + (<char *>vaddr - <char *>mapped.iov_base)
        return self.insert(start, length, mapping, host, 0, prot)

    cdef int unmap(self, uint64_t start, uint64_t length) except -1:
        """Remove every region inside [start, start + length): none is no error. VFIO_IOMMU_UNMAP_DMA, version 2.

        Raises OSError with EINVAL and nothing changed where a region is only partly inside.
        """
        cdef uint64_t last
        cdef Region *region
        if not sound(start, length):
            raise OSError(EINVAL, "no such range")
        last = start + (length - 1)
        region = self.overlapping(start, start)
        if region != NULL and region.start < start:
            raise OSError(EINVAL, "a part of a region")
        region = self.overlapping(last, last)
        if region != NULL and region.last > last:
            raise OSError(EINVAL, "a part of a region")
        region = self.overlapping(start, last)
        if region != NULL:
            self.unmapped_at = monotonic()
        while region != NULL:
            self.drop(region)
            region = self.overlapping(start, last)
        return 0

    cdef int clear(self) except -1:
        """Remove every region."""
        cdef Region *region = self.overlapping(0, 0xFFFF_FFFF_FFFF_FFFF)
        while region != NULL:
            self.drop(region)
            region = self.overlapping(0, 0xFFFF_FFFF_FFFF_FFFF)
        return 0

    cdef Mapping reach(self, int fd, uint64_t offset, uint64_t length, uint32_t prot, uint64_t *first):
        """A mapping that has [offset, offset + length) of a file; `first` is where in the file it begins."""
        cdef stat_result status
        cdef file_system system
        cdef Mapping mapping
        cdef uint64_t size, page_size = getpagesize(), end = offset + length
        cdef object file = identity(fd, prot)
        if fstat(fd, &status) != 0:
            raise OSError(errno, os.strerror(errno))
        # Not st_blksize: network file systems have large blocks, and pages like any other.
        if fstatfs(fd, &system) == 0 and system.f_type == HUGETLBFS_MAGIC:
            page_size = system.f_bsize
        first[0] = 0
        if S_ISREG(status.st_mode) and status.st_size >= 0 and end <= <uint64_t>status.st_size:
            mapping = self.whole.get(file)
            if mapping is not None and end <= mapping.length and not guest_fault_lost(mapping.slot):
                return mapping
            size = up(status.st_size, page_size)
            if size <= self.bytes_max and self.holding.bytes <= self.bytes_max - size:
                mapping = self.map_file(fd, 0, size, page_size, prot)
                mapping.is_whole = True
                mapping.file = file
                return mapping
        # A part of a file that is too large as a whole, what lies past the end of one, or a device's memory.
        first[0] = offset & ~(page_size - 1)
        mapping = self.map_file(fd, first[0], up(end, page_size) - first[0], page_size, prot)
        mapping.file = file
        return mapping

    cdef Mapping map_file(self, int fd, uint64_t first, uint64_t length, size_t page_size, uint32_t prot):
        cdef void *base
        cdef int error
        if self.holding.count >= self.mappings_max:
            self.refuse(f"the client maps guest memory of more than {self.mappings_max} files")
        if length > self.bytes_max or self.holding.bytes > self.bytes_max - length:
            self.refuse(f"the client maps files of more than {self.bytes_max >> 30} GiB of guest memory")
        base = mmap(NULL, length, prot, MAP_SHARED | MAP_NORESERVE, fd, first)
        if base == MAP_FAILED:
            error = errno
            if error == ENOMEM:
                self.refuse("there is no address space for the client's memory")
            raise OSError(error, os.strerror(error))
        return Mapping.of(base, length, page_size, self.holding)

    cdef int insert(self, uint64_t start, uint64_t length, Mapping mapping, char *host, uint64_t offset,
                    uint32_t prot) except -1:
        cdef Region *region = <Region *>calloc(1, sizeof(Region))
        if region != NULL:
            region.start = start
            region.last = start + (length - 1)
            region.host = host
            region.offset = offset
            region.prot = prot
            if not region_table_insert(&self.regions, region):
                free(region)
                region = NULL
        if region == NULL:
            self.refuse("there is no memory for another region")
        if mapping is not None:
            Py_INCREF(mapping)
            mapping.regions += 1
            region.mapping = <void *>mapping
            region.slot = mapping.slot
            if mapping.is_whole:
                self.whole[mapping.file] = mapping
        return 0

    cdef int drop(self, Region *region) except -1:
        cdef Mapping mapping
        region_table_remove(&self.regions, region)
        self.recent = NULL
        if region.mapping != NULL:
            mapping = <Mapping>region.mapping
            mapping.regions -= 1
            if not mapping.regions and self.whole.get(mapping.file) is mapping:
                del self.whole[mapping.file]
            Py_DECREF(mapping)
        free(region)
        return 0

    cdef int refuse(self, str reason) except -1:
        self.note_refusal(reason)
        raise OSError(ENOSPC, reason)

    cdef void note_refusal(self, str reason) noexcept:
        self.refused += 1
        self.refusal = reason


cdef inline bint sound(uint64_t start, uint64_t length) noexcept:
    """Whether [start, start + length) is a range: it may end with the last address."""
    return length != 0 and length - 1 <= (<uint64_t>0xFFFF_FFFF_FFFF_FFFF) - start


cdef inline uint64_t up(uint64_t value, uint64_t page_size) noexcept:
    return (value + page_size - 1) & ~(page_size - 1)


cdef object identity(int fd, uint32_t prot):
    """What two descriptors have in common whose mappings are the same. Raises OSError."""
    cdef stat_result status
    cdef int flags = fcntl(fd, F_GETFL)
    if flags == -1 or fstat(fd, &status) != 0:
        raise OSError(errno, os.strerror(errno))
    return (status.st_dev, status.st_ino, flags & (O_ACCMODE | O_PATH), prot)


cdef inline int check(Region *region, uint64_t address, bint write) except -1 nogil:
    if (region.host == NULL or guest_fault_lost(region.slot)
            or not region.prot & (PROT_WRITE if write else PROT_READ)):
        return refused(region, address, write)
    return 0


cdef int refused(Region *region, uint64_t address, bint write) except -1 with gil:
    if region.host == NULL:
        raise MemoryFault(UNSHARED.format(region.start))
    if guest_fault_lost(region.slot):
        raise MemoryFault(f"guest memory at {region.start:#x} is past the end of the client's file")
    raise MemoryFault(f"guest memory at {address:#x} is mapped without {'write' if write else 'read'} access")


cdef int unmapped(uint64_t address) except -1 with gil:
    raise MemoryFault(f"guest memory at {address:#x} is not mapped")


cdef int apart(uint64_t address, uint64_t length) except -1 with gil:
    raise MemoryFault(f"guest memory at {address:#x}: {length} bytes are not in one region")


cdef inline uint64_t checked(object address) except? 0:
    try:
        return address
    except OverflowError:
        raise MemoryFault(f"guest memory at {address:#x}: no such address") from None


cdef inline void *aligned(char *place, uint64_t address) except NULL nogil:
    # The client chooses where in a file a region starts, so the guest's address alone does not tell.
    if <uintptr_t>place & 1:
        uneven(address)
        return NULL
    return place


cdef int uneven(uint64_t address) except -1 with gil:
    raise MemoryFault(f"guest memory at {address:#x} is not aligned for a 16-bit access")
