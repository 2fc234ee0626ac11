/*
 * The linker sends the library's calls of accept(), recv() and so on here (--wrap): `__wrap_f` is what the library
 * calls as `f`, `__real_f` is the true one. This mends, without a patch, what a hostile or broken client could do
 * with the library, that of June 2022 or that of 2026; each function says what.
 */
#include "library_guard.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#ifdef GUARDED_INTERNALS
#include "dma.h"
#include "irq.h"
#endif

/*
 * How long a client may take to send the rest of a message, or to take a reply, before its connection is ended. The
 * function's timers stand still meanwhile. QEMU itself gives up on a reply after 5 s.
 */
#define PATIENCE_SECONDS 10

/*
 * What the server's VERSION has beside what the library says. One region more is taken (REGIONS_MAX in
 * guest_memory.pyx); QEMU refuses a server that announces more than this, Linux's own limit.
 */
#define CAPABILITIES ",\"max_dma_maps\":65535"

int __real_accept(int fd, struct sockaddr *address, socklen_t *length);
ssize_t __real_recv(int fd, void *data, size_t length, int flags);
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
    if (guard_link != NULL) {
        link_break_off(guard_link);
    }
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
        if (guard_link != NULL && link_open(guard_link, connection) != 0) {
            close(connection);
            return (int)fail(EMFILE);
        }
    }
    return connection;
}

/* The library takes a message body that comes in pieces for a short one, replies, and is out of step from then on. */
ssize_t
__wrap_recv(int fd, void *data, size_t length, int flags)
{
    size_t got = guard_link != NULL ? inbox_take(&guard_link->inbox, data, length) : 0;

    while (got < length) {
        ssize_t count = __real_recv(fd, (char *)data + got, length - got, flags | MSG_WAITALL);

        if (count > 0) {
            got += (size_t)count;
        } else if (count == 0) {
            break;
        } else if (errno != EINTR) {
            if (errno == EAGAIN && guard_link != NULL) {
                guard_link->why = "the rest of a message did not come";
            }
            return hang_up(fd, ECONNRESET);
        }
    }
    return (ssize_t)got;
}

/* Hand descriptors over as recvmsg(2) does. The library has room for more than MESSAGE_FDS. */
static void
put_fds(struct msghdr *message, const int *fds, size_t count)
{
    struct cmsghdr *control = message->msg_control;
    size_t size = count * sizeof(int);

    if (count == 0) {
        message->msg_controllen = 0;
        return;
    }
    control->cmsg_level = SOL_SOCKET;
    control->cmsg_type = SCM_RIGHTS;
    control->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(control), fds, size);
    message->msg_controllen = CMSG_SPACE(size);
}

/* The header of the next message that was received ahead, and its descriptors. */
static ssize_t
take_header(struct link *link, int fd, struct msghdr *message)
{
    struct vfio_user_header *header = message->msg_iov->iov_base;
    size_t at = link->inbox.start;
    int fds[MESSAGE_FDS];

    if (__wrap_recv(fd, header, sizeof(*header), 0) != sizeof(*header)) {
        return hang_up(fd, ECONNRESET);
    }
    put_fds(message, fds, inbox_take_fds(&link->inbox, at, header->msg_size, fds));
    message->msg_flags = 0;
    return sizeof(*header);
}

/*
 * Once it is attached the library asks for headers without waiting for them. It would make two system calls for each
 * message and a third one to find no other, drop a header that comes in pieces, and leak the descriptors of one that
 * it refuses. Negotiation takes no descriptors, and what comes behind it waits in the socket.
 */
ssize_t
__wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
    if (guard_link != NULL && (flags & MSG_DONTWAIT)) {
        ssize_t got = link_has_input(guard_link) ? 1 : link_receive(guard_link, fd);
        return got > 0 ? take_header(guard_link, fd, message) : got;
    }
    message->msg_controllen = 0;
    message->msg_flags = 0;
    return __wrap_recv(fd, message->msg_iov->iov_base, message->msg_iov->iov_len, flags);
}

/*
 * Whether a message is the library's own VERSION; if so, it is copied into `named` with CAPABILITIES in it, which the
 * library's text has no place for: {"capabilities":{...}}, with blanks between them or without.
 */
struct named_version {
    struct vfio_user_header header;
    struct iovec iov[4];
};

/* How much of a text comes before the two braces that end it; all of it where it ends otherwise. */
static size_t
before_end(const char *text, size_t length)
{
    size_t at = length;
    int braces = 2;

    if (length == 0 || text[length - 1] != '\0') {
        return length;
    }
    for (at--; at > 0 && braces > 0; at--) {
        if (text[at - 1] == '}') {
            braces--;
        } else if (text[at - 1] != ' ') {
            return length;
        }
    }
    return braces == 0 ? at : length;
}

static bool
name_capabilities(const struct msghdr *message, struct named_version *named)
{
    static const char added[] = CAPABILITIES "}}";
    const struct vfio_user_header *header = message->msg_iov[0].iov_base;
    const struct iovec *text = &message->msg_iov[2];
    size_t kept;

    if (message->msg_iovlen != 3 || message->msg_iov[0].iov_len != sizeof(*header) ||
        header->cmd != VFIO_USER_VERSION || (message_flags(header) & (MESSAGE_TYPE | MESSAGE_ERROR)) != MESSAGE_REPLY) {
        return false;
    }
    kept = before_end(text->iov_base, text->iov_len);
    if (kept == text->iov_len) {
        return false;
    }
    named->header = *header;
    named->header.msg_size += sizeof(added) - (text->iov_len - kept);
    named->iov[0] = (struct iovec){&named->header, sizeof(named->header)};
    named->iov[1] = message->msg_iov[1];
    named->iov[2] = (struct iovec){text->iov_base, kept};
    named->iov[3] = (struct iovec){(void *)added, sizeof(added)};
    return true;
}

/* A client that takes no replies: give up on it. EPIPE makes the library reset its context. */
ssize_t
__wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct named_version named;
    struct msghdr with = *message;
    ssize_t sent;

    if (name_capabilities(message, &named)) {
        with.msg_iov = named.iov;
        with.msg_iovlen = 4;
    }
    do {
        sent = __real_sendmsg(fd, &with, flags);
    } while (sent == -1 && errno == EINTR);
    return sent == -1 ? hang_up(fd, EPIPE) : sent;
}

/*
 * A client may hand over an eventfd that is at its maximum, or a full pipe. Never block on it, the caller holds the
 * model's lock: an eventfd at its maximum is already readable, so nothing is lost but a count.
 *
 * The poll can't be spared. O_NONBLOCK is not ours: the client shares the open file description, and takes it off when
 * it likes; opening an eventfd anew (/proc/self/fd) fails. Linux 6.18 refuses RWF_NOWAIT for writes to an eventfd, which
 * has no write_iter. So a client that fills its eventfd between the poll and the write can still hold up its function.
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

#ifdef GUARDED_INTERNALS

/*
 * The library of 2022 has at most 16 regions, walks all of them for each that is added, and closes the file of a region
 * that can't be mapped twice. Both keep a mapping and a file descriptor for each, and remove only what was mapped just
 * so. None of that is used: the extension keeps guest memory (guest_memory.pyx), and the library's own table stays empty.
 * handle_dma_map() of 2022 looks at its first entry and no further.
 */
dma_controller_t *__real_dma_controller_create(vfu_ctx_t *ctx, size_t max_regions, size_t max_size);
int __real_handle_device_set_irqs(vfu_ctx_t *ctx, vfu_msg_t *message);

dma_controller_t *
__wrap_dma_controller_create(vfu_ctx_t *ctx, size_t max_regions, size_t max_size)
{
    (void)max_regions;
    return __real_dma_controller_create(ctx, 1, max_size);
}

static int
answer(int error)
{
    return error == 0 ? 0 : (int)fail(error);
}

#ifdef LIBRARY_OF_2022

/* The caller closes `fd` after a failure, so it is ours after success. */
int
__wrap_dma_controller_add_region(dma_controller_t *dma, vfu_dma_addr_t address, size_t size, int fd, off_t offset,
                                 uint32_t prot)
{
    int error = guard_dma.map(dma->vfu_ctx, (uintptr_t)address, size, fd, (uint64_t)offset, prot);

    if (error == 0 && fd != -1) {
        close(fd);
    }
    return answer(error);
}

#else

/* The same; what is returned is looked at by callbacks only, and there are none (setup_dma in _vfu.pyx). */
dma_memory_region_t *
__wrap_dma_controller_add_region(dma_controller_t *dma, vfu_dma_addr_t address, uint64_t size, int *fd, off_t offset,
                                 uint32_t prot, enum region_access_mode mode)
{
    static dma_memory_region_t nothing;
    /* A client that wants its file read and written, and not mapped, can't be served. */
    int error = mode == REGION_ACCESS_MODE_FILE_IO
                    ? EOPNOTSUPP
                    : guard_dma.map(dma->vfu_ctx, (uintptr_t)address, size, *fd, (uint64_t)offset, prot);

    if (error != 0) {
        errno = error;
        return NULL;
    }
    if (*fd != -1) {
        close(*fd);
    }
    return &nothing;
}

#endif

int
__wrap_dma_controller_remove_region(dma_controller_t *dma, vfu_dma_addr_t address, size_t size,
                                    vfu_dma_unregister_cb_t *unregister, void *data)
{
    (void)unregister, (void)data;
    return answer(guard_dma.unmap(dma->vfu_ctx, (uintptr_t)address, size));
}

void
__wrap_dma_controller_remove_all_regions(dma_controller_t *dma, vfu_dma_unregister_cb_t *unregister, void *data)
{
    (void)unregister, (void)data;
    guard_dma.clear(dma->vfu_ctx);
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
 * The library of 2022 adds `start` and `count` in 32 bits, takes any file for an eventfd, and gives nothing up where
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
    if (message->in.nr_fds > 0 && guard_link != NULL) {
        size_t kept = message->in.nr_fds;

        for (uint32_t i = 0; i < ctx->irqs->max_ivs; i++) {
            kept += ctx->irqs->efds[i] >= 0 && (i < set->start || i >= set->start + set->count);
        }
        if (kept > (size_t)guard_link->eventfds_max) {
            return (int)fail(EMFILE); /* its share of those of the process */
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
