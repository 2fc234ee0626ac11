# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The one place that knows libvfio-user: a context for each function.

`_vfu.pyi` documents what is public. What C code needs explaining is here.
"""

import os
import stat
import struct

from time import monotonic

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EIO, EMFILE, ENFILE, ENOBUFS, ENOENT, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from vfu_server.vfio.guest_memory import BYTES_MAX, MAPPINGS_MAX
from vfu_server.vfio.guest_memory cimport GuestMemory, iovec
from vfu_server.vfio.line cimport (NAP_INPUT, NAP_NOTHING, NAP_OTHER, POLLIN, WAITS_MAX, Line, pollfd, posted,
                                   wait_for_others)

cdef extern from "<stdbool.h>":
    ctypedef bint c_bool "bool"

cdef extern from "<sys/types.h>":
    ctypedef long long loff_t

cdef extern from "<sys/eventfd.h>":
    int EFD_NONBLOCK, EFD_CLOEXEC
    int eventfd(unsigned int count, int flags)

cdef extern from "<sys/mman.h>":
    int PROT_WRITE

cdef extern from "<sys/socket.h>":
    int SHUT_RDWR, MSG_NOSIGNAL
    Py_ssize_t send(int fd, const void *data, size_t length, int flags) nogil
    int shutdown(int fd, int how) nogil

cdef extern from "<sys/stat.h>":
    unsigned int umask(unsigned int mask)

cdef extern from "<unistd.h>":
    int close(int fd) nogil
    Py_ssize_t read(int fd, void *data, size_t length) nogil
    Py_ssize_t write(int fd, const void *data, size_t length) nogil

cdef extern from "<poll.h>":
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
    #include <stdint.h>
    #include <sched.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* The first version of the kernel's struct sched_attr, which older C libraries do not have. */
    struct slice_attributes {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    };

    static inline void set_slice(unsigned nanoseconds) {
        struct slice_attributes found = {0};
        if (syscall(SYS_sched_getattr, 0, &found, sizeof found, 0) || found.policy != SCHED_OTHER)
            return;
        found.size = sizeof found;
        found.runtime = nanoseconds;
        syscall(SYS_sched_setattr, 0, &found, 0);
    }
    """
    void set_slice(unsigned nanoseconds)

cdef extern from *:
    """
    #include <libvfio-user.h>

    #ifdef DMA_TAKES_MAX_REGIONS
    #define call_setup_dma(ctx, added, removed) vfu_setup_device_dma(ctx, 65536, added, removed)
    #else
    #define call_setup_dma vfu_setup_device_dma
    #endif

    /* Where the guard knows the library's internals, guest memory is not the library's business (library_guard.c). */
    #ifdef GUARDED_INTERNALS
    #define setup_dma(ctx, added, removed) ((void)(added), (void)(removed), call_setup_dma(ctx, NULL, NULL))
    #else
    #define setup_dma call_setup_dma
    #endif

    #ifdef GUARDED_LIBRARY
    #define IS_GUARDED 1
    #else
    #define IS_GUARDED 0
    #endif
    """
    bint IS_GUARDED
    int setup_dma(vfu_ctx_t *, vfu_dma_register_cb_t *, vfu_dma_register_cb_t *)

cdef extern from "library_guard.h":
    cdef struct link:
        int fd
        c_bool stopped
        const char *why
    cdef struct guard_dma_t "guard_dma":
        int (*map)(vfu_ctx_t *, uint64_t start, uint64_t length, int fd, uint64_t offset, uint32_t prot) noexcept nogil
        int (*unmap)(vfu_ctx_t *, uint64_t start, uint64_t length) noexcept nogil
        int (*clear)(vfu_ctx_t *) noexcept nogil
    guard_dma_t guard_dma
    link *guard_link
    uint64_t guard_irqs_dropped
    void link_init(link *, int eventfds_max)
    int link_open(link *, int fd) nogil
    void link_close(link *) nogil
    void link_hang_up(link *, c_bool for_good) nogil
    void link_break_off(link *) nogil
    c_bool link_has_input(const link *) nogil
    void link_ready(link *) nogil
    int link_peek_post(link *, int fd, posted *) nogil
    void link_drop_post(link *, const posted *) nogil


GUARDED = bool(IS_GUARDED)
CONFIG_REGION = VFU_PCI_DEV_CFG_REGION_IDX
CONFIG_SIZE = 4096

# A message of ours: vfio-user's header (id, command, size, flags, error), then address and count of a DMA_WRITE.
POSTED = struct.Struct("<HHIIIQQ")
VFIO_USER_DMA_WRITE = 12
NO_REPLY = 1 << 4

# Messages that one `run` handles at most, so that a client that never stops writing does not starve the queues.
cdef int BATCH = 64

# Seconds for which nobody is let in where there is no descriptor for another connection. Clients wait meanwhile.
cdef double BACK_OFF = 1.0

cdef enum:
    DMA_MAP, DMA_UNMAP, DMA_CLEAR

def keep_freed_memory(int size):
    set_malloc_keep(size)


def take_short_turns(unsigned nanoseconds):
    set_slice(nanoseconds)


@cython.final
cdef class Context(Line):
    cdef vfu_ctx_t *ctx
    cdef link link
    cdef int wake_fd
    cdef str path
    cdef object handler
    cdef readonly GuestMemory memory
    cdef readonly bint attached
    cdef public bint tells_of_memory
    cdef readonly int listener
    cdef readonly bint woken
    cdef bint lost        # the library gave up the connection
    cdef bint negotiating
    cdef double deaf_until  # by `monotonic`: connections are left alone before
    cdef bint quiet       # an error of the library is expected: do not log it
    cdef bint failed
    cdef object failure
    cdef readonly uint64_t irqs_dropped

    def __cinit__(self, str path, object handler, *, dict bars, int msix_vectors, bint intx, int log_level,
                  int eventfds_max=0x7FFF_FFFF, Py_ssize_t mappings_max=MAPPINGS_MAX, uint64_t bytes_max=BYTES_MAX):
        self.wake_fd = -1
        self.handler = handler
        self.path = path
        self.memory = GuestMemory(mappings_max, bytes_max)
        link_init(&self.link, eventfds_max)

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
        self.listener = vfu_get_poll_fd(self.ctx)

    def log_up_to(self, int level):
        check_call(vfu_setup_log(self.ctx, on_log, level), "vfu_setup_log")

    def attach(self, timeout):
        global guard_link
        cdef int result, error
        if self.ctx == NULL:
            raise ValueError("the context is closed")
        # `hang_up` may have come after the wait. With the interpreter's lock held, either it is seen here, or it sees
        # that a negotiation is under way.
        if monotonic() < self.deaf_until:
            timeout = self.deaf_until - monotonic() if timeout is None else min(timeout, self.deaf_until - monotonic())
            self.wait(max(timeout, 0.0), (), False)
            return False
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
            if error in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                self.deaf_until = monotonic() + BACK_OFF
                raise BlockingIOError(error, "nobody can be let in: " + os.strerror(error))
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
        global guard_link
        if not self.attached:
            raise ValueError("no client is attached")
        if not self.wait(timeout, also):
            return 0
        with nogil:
            guard_link = &self.link
            while handled < BATCH and not self.lost and not self.failed:
                result = vfu_run_ctx(self.ctx)
                if result <= 0:
                    break
                handled += 1
            if result < 0 and not self.lost:
                # An error that the library does not end the connection for: the stream may be out of step.
                link_break_off(&self.link)
                for attempt in range(3):
                    if not self.lost:
                        vfu_run_ctx(self.ctx)
            guard_link = NULL
        if self.lost or result < 0:
            self.attached = False
            link_close(&self.link)
        self.raise_failure()
        if self.lost:
            raise ConnectionResetError("the client left" if self.link.why == NULL else self.link.why.decode())
        if result < 0:
            raise RuntimeError("libvfio-user does not give the connection up")
        return handled

    cdef bint wait(self, object timeout, object also=(), bint client=True) except -1:
        """Whether there is something to read from the client, and not only an event of another kind."""
        cdef pollfd fds[WAITS_MAX]
        cdef uint64_t drained
        cdef int result
        cdef int count = wait_for_others(fds, also)
        cdef int milliseconds = -1 if timeout is None else min(int(timeout * 1000 + 0.999), 0x7FFF_FFFF)
        cdef bint ahead = client and link_has_input(&self.link)
        fds[0].fd = vfu_get_poll_fd(self.ctx) if client else -1
        fds[0].events = POLLIN
        fds[0].revents = 0
        fds[1].fd = self.wake_fd
        fds[1].events = POLLIN
        fds[1].revents = 0
        with nogil:
            result = poll(fds, count, 0 if ahead else milliseconds)
            if result > 0 and fds[1].revents:
                read(self.wake_fd, &drained, sizeof(drained))
            if result > 0 and fds[0].revents:
                link_ready(&self.link)
            elif ahead:
                result = max(result, 0) + 1
                fds[0].revents = POLLIN
        self.woken = result > (fds[0].revents != 0)
        return result > 0 and fds[0].revents != 0

    # For a loop without the interpreter, while a client is attached.

    cdef int peek(self, posted *post) noexcept nogil:
        return link_peek_post(&self.link, vfu_get_poll_fd(self.ctx), post)

    cdef void drop(self, const posted *post) noexcept nogil:
        link_drop_post(&self.link, post)

    cdef int nap(self, pollfd *fds, int count, int milliseconds) noexcept nogil:
        cdef int result
        fds[0].fd = vfu_get_poll_fd(self.ctx)
        fds[1].fd = self.wake_fd
        fds[0].events = fds[1].events = POLLIN
        result = poll(fds, count, milliseconds)
        if result <= 0:
            return NAP_NOTHING
        if fds[0].revents:
            link_ready(&self.link)
        return (NAP_INPUT if fds[0].revents else 0) | (NAP_OTHER if result > (fds[0].revents != 0) else 0)

    cdef int trigger(self, uint32_t vector) noexcept nogil:
        cdef int error
        cdef uint64_t dropped = guard_irqs_dropped
        self.quiet = True
        error = errno if vfu_irq_trigger(self.ctx, vector) != 0 else 0
        self.quiet = False
        if guard_irqs_dropped != dropped:
            self.irqs_dropped += 1
            return EAGAIN
        return error

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
        cdef int error
        if self.ctx == NULL:
            return False
        error = self.trigger(vector)
        if error not in (0, EAGAIN, ENOENT):
            raise OSError(error, f"vector {vector}: {os.strerror(error)}")
        return error == 0

    def post_writes(self, writes):
        cdef const char *data
        cdef size_t left
        cdef Py_ssize_t count
        cdef int fd
        if not self.attached:
            return
        # At once: a socket's buffer holds a few hundred small pieces.
        sent = b"".join(
            POSTED.pack(0, VFIO_USER_DMA_WRITE, POSTED.size + len(content), NO_REPLY, 0, address, len(content)) + content
            for address, content in writes
        )
        fd = vfu_get_poll_fd(self.ctx)
        data, left = sent, len(sent)
        with nogil:
            while left > 0:
                count = send(fd, data, left, MSG_NOSIGNAL)
                if count <= 0:
                    # What is left of a message could not be told from the next one.
                    link_hang_up(&self.link, False)
                    break
                data += count
                left -= <size_t>count

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


# Guest memory, with the library of 2022 (library_guard.c).

cdef int changed(vfu_ctx_t *ctx, int what, uint64_t start, uint64_t length, int fd, uint64_t offset,
                 uint32_t prot) noexcept with gil:
    cdef Context context = <Context>vfu_get_private(ctx)
    try:
        if what == DMA_MAP:
            context.memory.map(start, length, fd, offset, prot)
        elif what == DMA_UNMAP:
            context.memory.unmap(start, length)
        else:
            context.memory.clear()
        if context.tells_of_memory:
            context.handler.mapping_changed(start, length, what == DMA_MAP, bool(prot & PROT_WRITE))
    except OSError as error:
        return error.errno or EIO
    except MemoryError:
        context.memory.note_refusal("there is no memory for another region")
        return ENOMEM
    except BaseException as exception:
        context.fail(exception)
        return EIO
    return 0

cdef int on_map(vfu_ctx_t *ctx, uint64_t start, uint64_t length, int fd, uint64_t offset,
                uint32_t prot) noexcept nogil:
    return changed(ctx, DMA_MAP, start, length, fd, offset, prot)

cdef int on_unmap(vfu_ctx_t *ctx, uint64_t start, uint64_t length) noexcept nogil:
    return changed(ctx, DMA_UNMAP, start, length, -1, 0, 0)

cdef int on_clear(vfu_ctx_t *ctx) noexcept nogil:
    return changed(ctx, DMA_CLEAR, 0, 0, -1, 0, 0)

guard_dma.map = on_map
guard_dma.unmap = on_unmap
guard_dma.clear = on_clear


# The same with another library, which has mapped it, or is about to unmap it.

cdef void on_dma_added(vfu_ctx_t *ctx, vfu_dma_info_t *info) noexcept with gil:
    cdef Context context = <Context>vfu_get_private(ctx)
    cdef uint64_t start = <uint64_t><uintptr_t>info.iova.iov_base
    try:
        context.memory.adopt(start, info.iova.iov_len, info.vaddr, info.mapping, info.page_size, info.prot)
    except OSError as error:
        context.handler.log(3, f"guest memory at {start:#x} can't be used: {error}")
    except BaseException as exception:
        context.fail(exception)


cdef void on_dma_removed(vfu_ctx_t *ctx, vfu_dma_info_t *info) noexcept with gil:
    changed(ctx, DMA_UNMAP, <uint64_t><uintptr_t>info.iova.iov_base, info.iova.iov_len, -1, 0, 0)


cdef void on_log(vfu_ctx_t *ctx, int level, const char *text) noexcept with gil:
    cdef Context context = <Context>vfu_get_private(ctx)
    if context.quiet:
        return
    try:
        context.handler.log(level, text.decode("utf-8", "replace"))
    except BaseException as exception:
        context.fail(exception)
