# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The one place that knows libvfio-user: a context for each function, and the guest memory that its client mapped.

`_vfu.pyi` documents what is public. What C code needs explaining is here.
"""

import os
import stat

from time import monotonic

from numpy import frombuffer as np_frombuffer

from pymodel.errors import MemoryFault
from pymodel.memory import HOW_TO_SHARE, runs

cimport cython
cimport numpy as np
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EIO, ENOENT, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

np.import_array()


cdef extern from "<stdbool.h>":
    ctypedef bint c_bool "bool"

cdef extern from "<sys/types.h>":
    ctypedef long long loff_t

cdef extern from "<sys/uio.h>":
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/mman.h>":
    int PROT_READ, PROT_WRITE, MADV_DONTDUMP, MREMAP_MAYMOVE
    void *MAP_FAILED
    void *mremap(void *old, size_t old_size, size_t new_size, int flags) nogil
    int munmap(void *address, size_t length) nogil
    int madvise(void *address, size_t length, int advice) nogil

cdef extern from "<sys/eventfd.h>":
    int EFD_NONBLOCK, EFD_CLOEXEC
    int eventfd(unsigned int count, int flags)

cdef extern from "<sys/socket.h>":
    int SHUT_RDWR
    int shutdown(int fd, int how) nogil

cdef extern from "<sys/stat.h>":
    unsigned int umask(unsigned int mask)

cdef extern from "<unistd.h>":
    int close(int fd) nogil
    Py_ssize_t read(int fd, void *data, size_t length) nogil
    Py_ssize_t write(int fd, const void *data, size_t length) nogil

cdef extern from "<poll.h>":
    short POLLIN
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout) nogil

cdef extern from "<libvfio-user.h>":
    ctypedef struct vfu_ctx_t:
        pass
    ctypedef struct vfu_dma_info_t:
        iovec iova
        void *vaddr
        iovec mapping
        size_t page_size
        uint32_t prot
    ctypedef enum vfu_reset_type_t:
        VFU_RESET_DEVICE
        VFU_RESET_LOST_CONN
        VFU_RESET_PCI_FLR
    ctypedef Py_ssize_t vfu_region_access_cb_t(vfu_ctx_t *, char *, size_t, loff_t, c_bool) noexcept nogil
    ctypedef void vfu_dma_register_cb_t(vfu_ctx_t *, vfu_dma_info_t *) noexcept nogil
    ctypedef int vfu_reset_cb_t(vfu_ctx_t *, vfu_reset_type_t) noexcept nogil
    ctypedef void vfu_log_fn_t(vfu_ctx_t *, int, const char *) noexcept nogil
    int VFU_TRANS_SOCK, VFU_DEV_TYPE_PCI, LIBVFIO_USER_FLAG_ATTACH_NB
    int VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL
    int VFU_PCI_DEV_CFG_REGION_IDX
    int VFU_REGION_FLAG_RW, VFU_REGION_FLAG_MEM, VFU_REGION_FLAG_ALWAYS_CB
    int VFU_DEV_INTX_IRQ, VFU_DEV_MSIX_IRQ, VFU_DEV_ERR_IRQ, VFU_DEV_REQ_IRQ
    vfu_ctx_t *vfu_create_ctx(int trans, const char *path, int flags, void *pvt, int dev_type)
    void vfu_destroy_ctx(vfu_ctx_t *) nogil
    int vfu_realize_ctx(vfu_ctx_t *)
    int vfu_attach_ctx(vfu_ctx_t *) nogil
    int vfu_run_ctx(vfu_ctx_t *) nogil
    int vfu_get_poll_fd(vfu_ctx_t *) nogil
    void *vfu_get_private(vfu_ctx_t *) nogil
    int vfu_setup_log(vfu_ctx_t *, vfu_log_fn_t *, int level)
    int vfu_pci_init(vfu_ctx_t *, int pci_type, int header_type, int revision)
    int vfu_setup_region(vfu_ctx_t *, int index, size_t size, vfu_region_access_cb_t *, int flags, iovec *areas,
                         uint32_t nr_areas, int fd, uint64_t offset)
    int vfu_setup_device_reset_cb(vfu_ctx_t *, vfu_reset_cb_t *)
    int vfu_setup_device_nr_irqs(vfu_ctx_t *, int irq, uint32_t count)
    int vfu_irq_trigger(vfu_ctx_t *, uint32_t vector) nogil

cdef extern from *:
    """
    #include <malloc.h>

    static inline void set_malloc_keep(int bytes) {
    #ifdef M_MMAP_THRESHOLD
        mallopt(M_MMAP_THRESHOLD, bytes);
        mallopt(M_TRIM_THRESHOLD, bytes);
    #endif
    }
    """
    void set_malloc_keep(int bytes)

cdef extern from *:
    """
    #include <libvfio-user.h>
    #include <stdatomic.h>

    /* As many as our build of the 2022 library takes (library_guard.c). */
    #ifdef DMA_TAKES_MAX_REGIONS
    #define setup_dma(ctx, added, removed) vfu_setup_device_dma(ctx, 1024, added, removed)
    #else
    #define setup_dma(ctx, added, removed) vfu_setup_device_dma(ctx, added, removed)
    #endif

    #ifdef GUARDED_LIBRARY
    #define IS_GUARDED 1
    #else
    #define IS_GUARDED 0
    #endif

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
    bint IS_GUARDED
    int setup_dma(vfu_ctx_t *, vfu_dma_register_cb_t *, vfu_dma_register_cb_t *)
    uint16_t load_acquire(const void *at) nogil
    void store_release(void *at, uint16_t value) nogil
    void full_fence() nogil

cdef extern from "guest_fault.h":
    int guest_fault_install()
    int guest_fault_watch(void *start, size_t length, size_t page_size)
    uint64_t guest_fault_lost(int slot)
    void guest_fault_forget(int slot)

cdef extern from "library_guard.h":
    cdef struct link:
        int fd
        c_bool stopped
    link *guard_link
    uint64_t guard_irqs_dropped
    void link_init(link *)
    void link_open(link *, int fd) nogil
    void link_close(link *) nogil
    void link_hang_up(link *, c_bool for_good) nogil


GUARDED = bool(IS_GUARDED)
CONFIG_REGION = VFU_PCI_DEV_CFG_REGION_IDX
CONFIG_SIZE = 4096

# Messages that one `run` handles at most, so that a client that never stops writing does not starve the queues.
cdef int BATCH = 64

# File descriptors that `run` waits for beside the client's.
cdef enum:
    ALSO_MAX = 8

# What `read` and `write` copy without a view.
cdef uint64_t SMALL = 1 << 16

cdef str UNSHARED = (
    "the client mapped guest memory at {:#x} without a file, so that no other process can reach it; "
    + HOW_TO_SHARE
)

def keep_freed_memory(int size):
    set_malloc_keep(size)


if guest_fault_install() != 0:
    raise OSError(errno, "sigaction: " + os.strerror(errno))


@cython.final
cdef class Mapping:
    """Our own mapping of a region's memory. Views hold it, so that it outlives an unmap that they miss."""

    cdef char *base
    cdef size_t length
    cdef int slot

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


@cython.final
cdef class Context:
    cdef vfu_ctx_t *ctx
    cdef link link
    cdef int wake_fd
    cdef str path
    cdef object handler
    cdef readonly GuestMemory memory
    cdef readonly bint attached
    cdef readonly bint woken
    cdef bint lost        # the library gave up the connection
    cdef bint negotiating
    cdef bint quiet       # an error of the library is expected: do not log it
    cdef bint failed
    cdef object failure
    cdef readonly uint64_t irqs_dropped

    def __cinit__(self, str path, object handler, *, dict bars, int msix_vectors, bint intx, int log_level):
        self.wake_fd = -1
        self.handler = handler
        self.path = path
        self.memory = GuestMemory()
        link_init(&self.link)

        try:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise FileExistsError(f"{path} exists and is no socket: remove it, or choose another folder")
            os.unlink(path)  # of a server that did not end well; whoever owns the folder's lock may do this
        except FileNotFoundError:
            pass
        self.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        check_call(self.wake_fd, "eventfd")

        # bind() makes the file. The mask is the process's own, and can only be stricter meanwhile for other threads;
        # that thread holds the interpreter's lock, so no other one makes two contexts at a time.
        encoded = os.fsencode(path)
        earlier = umask(0o177)
        self.ctx = vfu_create_ctx(VFU_TRANS_SOCK, encoded, LIBVFIO_USER_FLAG_ATTACH_NB, <void *>self,
                                  VFU_DEV_TYPE_PCI)
        error = errno
        umask(earlier)
        if self.ctx == NULL:
            raise OSError(error, os.strerror(error), path)
        try:
            self.set_up(bars, msix_vectors, intx, log_level)
        except BaseException:
            self.close()
            raise

    cdef set_up(self, dict bars, int msix_vectors, bint intx, int log_level):
        cdef int index
        cdef size_t size
        check_call(vfu_setup_log(self.ctx, on_log, log_level), "vfu_setup_log")
        check_call(vfu_pci_init(self.ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), "vfu_pci_init")
        check_call(vfu_setup_region(self.ctx, VFU_PCI_DEV_CFG_REGION_IDX, CONFIG_SIZE, on_config,
                                    VFU_REGION_FLAG_RW | VFU_REGION_FLAG_ALWAYS_CB, NULL, 0, -1, 0),
                   "vfu_setup_region of config space")
        for index, size in bars.items():
            if not 0 <= index <= 5 or size >= 1 << 32 or size & (size - 1):
                raise ValueError(f"BAR {index} of {size} bytes: no power of two below 4 GiB")
            check_call(vfu_setup_region(self.ctx, index, size, on_bar[index],
                                        VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0),
                       f"vfu_setup_region of BAR {index}")
        check_call(vfu_setup_device_nr_irqs(self.ctx, VFU_DEV_INTX_IRQ, intx), "vfu_setup_device_nr_irqs")
        check_call(vfu_setup_device_nr_irqs(self.ctx, VFU_DEV_MSIX_IRQ, msix_vectors), "vfu_setup_device_nr_irqs")
        # The library of 2022 keeps the eventfds of these two where vector 0's is: QEMU would stop the VM for a
        # vector 0 that it takes for an error.
        check_call(vfu_setup_device_nr_irqs(self.ctx, VFU_DEV_ERR_IRQ, 0), "vfu_setup_device_nr_irqs")
        check_call(vfu_setup_device_nr_irqs(self.ctx, VFU_DEV_REQ_IRQ, 0), "vfu_setup_device_nr_irqs")
        check_call(vfu_setup_device_reset_cb(self.ctx, on_reset), "vfu_setup_device_reset_cb")
        check_call(setup_dma(self.ctx, on_dma_added, on_dma_removed), "vfu_setup_device_dma")
        check_call(vfu_realize_ctx(self.ctx), "vfu_realize_ctx")

    def attach(self, timeout):
        global guard_link
        cdef int result, error
        if self.ctx == NULL:
            raise ValueError("the context is closed")
        # `hang_up` may have come after the wait. With the interpreter's lock held, either it is seen here, or it sees
        # that a negotiation is under way.
        if not self.wait(timeout) or self.link.stopped:
            return False
        self.negotiating = True
        with nogil:
            guard_link = &self.link
            result = vfu_attach_ctx(self.ctx)
            error = errno
            guard_link = NULL
        self.negotiating = False
        self.raise_failure()
        if result != 0:
            link_close(&self.link)
            if error != EAGAIN:
                raise ConnectionError(error, "negotiation failed: " + os.strerror(error))
            return False
        if not IS_GUARDED:
            link_open(&self.link, vfu_get_poll_fd(self.ctx))
        self.lost = False
        self.attached = True
        return True

    def run(self, timeout, also=()):
        cdef int handled = 0
        cdef int result = 0
        cdef int attempt
        if not self.attached:
            raise ValueError("no client is attached")
        if not self.wait(timeout, also):
            return 0
        with nogil:
            while handled < BATCH and not self.lost and not self.failed:
                result = vfu_run_ctx(self.ctx)
                if result <= 0:
                    break
                handled += 1
            if result < 0 and not self.lost:
                # An error that the library does not end the connection for: the stream may be out of step.
                link_hang_up(&self.link, False)
                for attempt in range(3):
                    if not self.lost:
                        vfu_run_ctx(self.ctx)
        if self.lost or result < 0:
            self.attached = False
            link_close(&self.link)
        self.raise_failure()
        if self.lost:
            raise ConnectionResetError("the client left")
        if result < 0:
            raise RuntimeError("libvfio-user does not give the connection up")
        return handled

    cdef bint wait(self, object timeout, object also=()) except -1:
        """Whether there is something to read from the client, and not only an event of another kind."""
        cdef pollfd fds[2 + ALSO_MAX]
        cdef uint64_t drained
        cdef int result
        cdef int count = 2
        cdef int milliseconds = -1 if timeout is None else min(int(timeout * 1000 + 0.999), 0x7FFF_FFFF)
        fds[0].fd = vfu_get_poll_fd(self.ctx)
        fds[0].events = POLLIN
        fds[0].revents = 0
        fds[1].fd = self.wake_fd
        fds[1].events = POLLIN
        fds[1].revents = 0
        for fd, events in also:
            if count == 2 + ALSO_MAX:
                raise ValueError(f"more than {ALSO_MAX} other file descriptors to wait for")
            fds[count].fd = fd
            fds[count].events = events
            fds[count].revents = 0
            count += 1
        with nogil:
            result = poll(fds, count, milliseconds)
            if result > 0 and fds[1].revents:
                read(self.wake_fd, &drained, sizeof(drained))
        self.woken = result > (fds[0].revents != 0)
        return result > 0 and fds[0].revents != 0

    def wake(self):
        cdef uint64_t one = 1
        if self.wake_fd != -1:
            write(self.wake_fd, &one, sizeof(one))

    def hang_up(self):
        link_hang_up(&self.link, True)
        if not IS_GUARDED and self.negotiating and self.ctx != NULL:
            shutdown(vfu_get_poll_fd(self.ctx), SHUT_RDWR)
        self.wake()

    def irq_trigger(self, uint32_t vector):
        cdef int result, error
        cdef uint64_t dropped = guard_irqs_dropped
        if self.ctx == NULL:
            return False
        self.quiet = True
        result = vfu_irq_trigger(self.ctx, vector)
        error = errno
        self.quiet = False
        if guard_irqs_dropped != dropped:
            self.irqs_dropped += 1
            return False
        if result != 0 and error != ENOENT:
            raise OSError(error, f"vector {vector}: {os.strerror(error)}")
        return result == 0

    def close(self):
        cdef vfu_ctx_t *ctx = self.ctx
        if ctx == NULL:
            return
        self.ctx = NULL
        self.attached = False
        with nogil:
            vfu_destroy_ctx(ctx)
            link_close(&self.link)
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        fd, self.wake_fd = self.wake_fd, -1
        close(fd)

    def __dealloc__(self):
        if self.ctx != NULL:
            vfu_destroy_ctx(self.ctx)
            link_close(&self.link)
        if self.wake_fd != -1:
            close(self.wake_fd)

    cdef void fail(self, object exception) noexcept:
        """Keep the first exception of a callback for whoever runs the library: it must not cross into C."""
        if not self.failed:
            self.failed = True
            self.failure = exception

    cdef int raise_failure(self) except -1:
        cdef object failure
        if self.failed:
            failure, self.failure, self.failed = self.failure, None, False
            raise failure
        return 0


cdef int check_call(int result, str what) except -1:
    cdef int error = errno
    if result < 0:
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


# Called by the library, on the thread that is in `attach`, `run` or `close`.

cdef Py_ssize_t access(vfu_ctx_t *ctx, int region, char *data, size_t length, uint64_t offset,
                       bint is_write) noexcept with gil:
    cdef Context context = <Context>vfu_get_private(ctx)
    cdef bytes answer
    try:
        if is_write:
            context.handler.region_write(region, offset, PyBytes_FromStringAndSize(data, <Py_ssize_t>length))
        else:
            answer = context.handler.region_read(region, offset, length)
            if <size_t>len(answer) != length:
                raise ValueError(f"region {region}, offset {offset:#x}: read {len(answer)} bytes for {length}")
            memcpy(data, <char *>answer, length)
        return <Py_ssize_t>length
    except BaseException as exception:
        context.fail(exception)
        return -1


cdef inline Py_ssize_t answered(Py_ssize_t result) noexcept nogil:
    # Set here: what gives the interpreter's lock back may change errno.
    global errno
    if result < 0:
        errno = EIO
    return result


cdef Py_ssize_t on_config(vfu_ctx_t *c, char *d, size_t n, loff_t o, c_bool w) noexcept nogil:
    return answered(access(c, VFU_PCI_DEV_CFG_REGION_IDX, d, n, o, w))

cdef Py_ssize_t on_bar0(vfu_ctx_t *c, char *d, size_t n, loff_t o, c_bool w) noexcept nogil:
    return answered(access(c, 0, d, n, o, w))

cdef Py_ssize_t on_bar1(vfu_ctx_t *c, char *d, size_t n, loff_t o, c_bool w) noexcept nogil:
    return answered(access(c, 1, d, n, o, w))

cdef Py_ssize_t on_bar2(vfu_ctx_t *c, char *d, size_t n, loff_t o, c_bool w) noexcept nogil:
    return answered(access(c, 2, d, n, o, w))

cdef Py_ssize_t on_bar3(vfu_ctx_t *c, char *d, size_t n, loff_t o, c_bool w) noexcept nogil:
    return answered(access(c, 3, d, n, o, w))

cdef Py_ssize_t on_bar4(vfu_ctx_t *c, char *d, size_t n, loff_t o, c_bool w) noexcept nogil:
    return answered(access(c, 4, d, n, o, w))

cdef Py_ssize_t on_bar5(vfu_ctx_t *c, char *d, size_t n, loff_t o, c_bool w) noexcept nogil:
    return answered(access(c, 5, d, n, o, w))

cdef vfu_region_access_cb_t *on_bar[6]
on_bar[0] = on_bar0
on_bar[1] = on_bar1
on_bar[2] = on_bar2
on_bar[3] = on_bar3
on_bar[4] = on_bar4
on_bar[5] = on_bar5


cdef int on_reset(vfu_ctx_t *ctx, vfu_reset_type_t kind) noexcept with gil:
    cdef Context context = <Context>vfu_get_private(ctx)
    if kind == VFU_RESET_LOST_CONN:
        context.lost = True
        return 0
    try:
        context.handler.reset()
    except BaseException as exception:
        context.fail(exception)
    return 0


cdef void on_dma_added(vfu_ctx_t *ctx, vfu_dma_info_t *info) noexcept with gil:
    cdef Context context = <Context>vfu_get_private(ctx)
    cdef uint64_t start = <uint64_t><uintptr_t>info.iova.iov_base
    cdef Mapping mapping = None
    cdef char *host = NULL
    try:
        if info.vaddr != NULL:
            try:
                mapping = Mapping.duplicate(info.mapping, info.page_size)
                host = mapping.base + (<char *>info.vaddr - <char *>info.mapping.iov_base)
            except OSError as error:
                context.handler.log(3, f"guest memory at {start:#x} can't be used: {error}")
                return
        context.memory.add(start, info.iova.iov_len, mapping, host, info.prot)
    except BaseException as exception:
        context.fail(exception)


cdef void on_dma_removed(vfu_ctx_t *ctx, vfu_dma_info_t *info) noexcept with gil:
    cdef Context context = <Context>vfu_get_private(ctx)
    try:
        context.memory.remove(<uint64_t><uintptr_t>info.iova.iov_base, info.iova.iov_len)
    except BaseException as exception:
        context.fail(exception)


cdef void on_log(vfu_ctx_t *ctx, int level, const char *text) noexcept with gil:
    cdef Context context = <Context>vfu_get_private(ctx)
    if context.quiet:
        return
    try:
        context.handler.log(level, text.decode("utf-8", "replace"))
    except BaseException as exception:
        context.fail(exception)
