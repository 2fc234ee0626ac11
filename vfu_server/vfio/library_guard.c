/*
 * The linker sends the library's calls of accept(), recv() and so on here (--wrap): `__wrap_f` is what the library
 * calls as `f`, `__real_f` is the true one. This mends, without a patch, what a hostile or broken client could do
 * with the library of June 2022; each function says what.
 */
#include "library_guard.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#ifdef LIBRARY_OF_2022
#include "dma.h"
#include "irq.h"
#endif

/*
 * How long a client may take to send the rest of a message, or to take a reply, before its connection is ended. The
 * function's timers stand still meanwhile. QEMU itself gives up on a reply after 5 s.
 */
#define PATIENCE_SECONDS 10

int __real_accept(int fd, struct sockaddr *address, socklen_t *length);
ssize_t __real_recv(int fd, void *data, size_t length, int flags);
ssize_t __real_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __real_sendmsg(int fd, const struct msghdr *message, int flags);

static ssize_t
fail(int error)
{
    errno = error;
    return -1;
}

/* End a connection that is out of step. The library then sees it closed whatever it does next. */
static ssize_t
hang_up(int fd, int error)
{
    shutdown(fd, SHUT_RDWR);
    return fail(error);
}

/* Negotiation and replies block without a limit: set one, and let other threads end the connection. */
int
__wrap_accept(int fd, struct sockaddr *address, socklen_t *length)
{
    struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    int connection = accept4(fd, address, length, SOCK_CLOEXEC);

    if (connection != -1) {
        setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
        setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
        if (guard_link != NULL) {
            link_open(guard_link, connection);
        }
    }
    return connection;
}

/* The library takes a message body that comes in pieces for a short one, replies, and is out of step from then on. */
ssize_t
__wrap_recv(int fd, void *data, size_t length, int flags)
{
    size_t got = 0;

    while (got < length) {
        ssize_t count = __real_recv(fd, (char *)data + got, length - got, flags | MSG_WAITALL);

        if (count > 0) {
            got += (size_t)count;
        } else if (count == 0) {
            break;
        } else if (errno != EINTR) {
            return hang_up(fd, ECONNRESET);
        }
    }
    return (ssize_t)got;
}

static void
close_received(struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            for (size_t i = 0; i < count; i++) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
                close(fd);
            }
        }
    }
}

/* The library drops a header that comes in pieces, and leaks the fds of one that it refuses. */
ssize_t
__wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
    struct iovec *iov = message->msg_iov;
    ssize_t got;

    do {
        got = __real_recvmsg(fd, message, flags | MSG_CMSG_CLOEXEC);
    } while (got == -1 && errno == EINTR);
    if (got == -1) {
        if (errno == EAGAIN && (flags & MSG_DONTWAIT)) {
            return -1;
        }
        return hang_up(fd, ECONNRESET);
    }
    if (got > 0 && message->msg_iovlen == 1 && (size_t)got < iov->iov_len) {
        ssize_t rest = __wrap_recv(fd, (char *)iov->iov_base + got, iov->iov_len - (size_t)got, 0);
        if (rest != (ssize_t)iov->iov_len - got) {
            close_received(message);
            return hang_up(fd, ECONNRESET);
        }
        got += rest;
    }
    if (message->msg_flags & (MSG_CTRUNC | MSG_TRUNC)) { /* out of file descriptors, or more than can be sent */
        close_received(message);
        return hang_up(fd, ECONNRESET);
    }
    return got;
}

/* A client that takes no replies: give up on it. EPIPE makes the library reset its context. */
ssize_t
__wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t sent;

    do {
        sent = __real_sendmsg(fd, message, flags);
    } while (sent == -1 && errno == EINTR);
    return sent == -1 ? hang_up(fd, EPIPE) : sent;
}

/*
 * A client may hand over an eventfd that is at its maximum, or a full pipe. Never block on it, the caller holds the
 * model's lock: an eventfd at its maximum is already readable, so nothing is lost but a count.
 */
int
__wrap_eventfd_write(int fd, eventfd_t value)
{
    struct pollfd ready = {.fd = fd, .events = POLLOUT};

    if (poll(&ready, 1, 0) != 1 || !(ready.revents & POLLOUT) || (ready.revents & (POLLERR | POLLNVAL)) ||
        write(fd, &value, sizeof(value)) != (ssize_t)sizeof(value)) {
        guard_irqs_dropped++;
    }
    return 0;
}

#ifdef LIBRARY_OF_2022

/*
 * The library stops at 16 regions; a guest with a virtual IOMMU has more. The table is walked from end to end for
 * each new one, which bounds what is sensible.
 */
#define DMA_REGIONS 1024

dma_controller_t *__real_dma_controller_create(vfu_ctx_t *ctx, size_t max_regions, size_t max_size);
int __real_dma_controller_add_region(dma_controller_t *dma, vfu_dma_addr_t address, size_t size, int fd, off_t offset,
                                     uint32_t prot);
int __real_handle_device_set_irqs(vfu_ctx_t *ctx, vfu_msg_t *message);

dma_controller_t *
__wrap_dma_controller_create(vfu_ctx_t *ctx, size_t max_regions, size_t max_size)
{
    (void)max_regions;
    return __real_dma_controller_create(ctx, DMA_REGIONS, max_size);
}

/*
 * The library closes the fd of a region that can't be mapped twice, the second time perhaps somebody else's, and
 * leaks that of a region that is mapped again. It does not see a range that wraps around.
 */
int
__wrap_dma_controller_add_region(dma_controller_t *dma, vfu_dma_addr_t address, size_t size, int fd, off_t offset,
                                 uint32_t prot)
{
    if (size == 0 || offset < 0 || size - 1 > UINTPTR_MAX - (uintptr_t)address) {
        return (int)fail(EINVAL);
    }
    if (fd != -1) {
        struct stat status;
        size_t page_size = (size_t)getpagesize();

        if (fstat(fd, &status) != 0) {
            return -1;
        }
        /* The same arithmetic as the library's: it trusts the file's block size to be a power of two. */
        if (status.st_blksize > 0 && (size_t)status.st_blksize > page_size) {
            page_size = (size_t)status.st_blksize;
        }
        if ((page_size & (page_size - 1)) != 0 || size > dma->max_size) {
            return (int)fail(EINVAL);
        }
        size_t length = (size + page_size - 1) & ~(page_size - 1);
        void *trial = mmap(NULL, length, (int)prot, MAP_SHARED, fd, offset & ~(off_t)(page_size - 1));
        if (trial == MAP_FAILED) {
            return -1;
        }
        munmap(trial, length);
    }
    int region = __real_dma_controller_add_region(dma, address, size, fd, offset, prot);
    if (region >= 0 && fd != -1 && dma->regions[region].fd != fd) {
        close(fd); /* the same region once more: the library goes on with its first fd */
    }
    return region;
}

/* The library reads through a NULL bitmap: nobody started to log dirty pages, and nobody can. */
int
__wrap_dma_controller_dirty_page_get(dma_controller_t *dma, vfu_dma_addr_t address, uint64_t length, size_t pgsize,
                                     size_t size, char *bitmap)
{
    (void)dma, (void)address, (void)length, (void)pgsize, (void)size, (void)bitmap;
    return (int)fail(ENOTSUP);
}

/* Whether writing to `fd` after a poll cannot block, or fail in ways that a client chooses. */
static bool
may_be_irq(int fd)
{
    struct stat status;

    if (fstat(fd, &status) != 0) {
        return false;
    }
    return !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode) && !S_ISBLK(status.st_mode) &&
           !S_ISCHR(status.st_mode);
}

/*
 * The library adds `start` and `count` in 32 bits, takes any file for an eventfd, and gives nothing up where
 * vectors from another than the first on are disabled.
 */
int
__wrap_handle_device_set_irqs(vfu_ctx_t *ctx, vfu_msg_t *message)
{
    struct vfio_irq_set *set = message->in.iov.iov_base;

    if (message->in.iov.iov_len < sizeof(*set) || set->index >= VFU_DEV_NUM_IRQS ||
        (uint64_t)set->start + set->count > ctx->irq_count[set->index]) {
        return (int)fail(EINVAL);
    }
    for (size_t i = 0; i < message->in.nr_fds; i++) {
        if (!may_be_irq(message->in.fds[i])) {
            return (int)fail(EINVAL);
        }
    }
    int result = __real_handle_device_set_irqs(ctx, message);
    if (result == 0 && message->in.nr_fds == 0 &&
        set->flags == (VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD)) {
        for (uint32_t i = set->start; i < set->start + set->count; i++) {
            if (ctx->irqs->efds[i] >= 0) {
                close(ctx->irqs->efds[i]);
                ctx->irqs->efds[i] = -1;
            }
        }
    }
    return result;
}

#endif
