#include "library_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct guard_dma guard_dma;
_Thread_local struct link *guard_link;
_Thread_local uint64_t guard_irqs_dropped;

void
link_init(struct link *link, int eventfds_max)
{
    pthread_mutex_init(&link->lock, NULL);
    link->fd = -1;
    link->stopped = false;
    link->eventfds_max = eventfds_max;
    link->why = NULL;
    memset(&link->inbox, 0, sizeof(link->inbox));
}

int
link_open(struct link *link, int fd)
{
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    if (own == -1) {
        return -1;
    }
    inbox_clear(&link->inbox);
    pthread_mutex_lock(&link->lock);
    if (link->fd != -1) {
        close(link->fd);
    }
    link->fd = own;
    link->why = NULL;
    if (link->stopped) {
        shutdown(fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&link->lock);
    return 0;
}

void
link_close(struct link *link)
{
    inbox_clear(&link->inbox);
    pthread_mutex_lock(&link->lock);
    if (link->fd != -1) {
        close(link->fd);
        link->fd = -1;
    }
    pthread_mutex_unlock(&link->lock);
}

void
link_hang_up(struct link *link, bool for_good)
{
    pthread_mutex_lock(&link->lock);
    link->stopped = link->stopped || for_good;
    if (link->fd != -1) {
        shutdown(link->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&link->lock);
}

void
link_break_off(struct link *link)
{
    inbox_clear(&link->inbox);
    link->inbox.over = true;
    link_hang_up(link, false);
}

bool
link_has_input(const struct link *link)
{
    return inbox_length(&link->inbox) > 0;
}

void
link_ready(struct link *link)
{
    link->inbox.dry = false;
}

ssize_t
link_receive(struct link *link, int fd)
{
    ssize_t got = inbox_fill(&link->inbox, fd);

    if (got == -1 && errno != EAGAIN) {
        if (errno == EMFILE) {
            link->why = "a message had more file descriptors than it may, or the process has too many open";
        }
        link_break_off(link);
        errno = ECONNRESET;
    }
    return got;
}

#ifdef GUARDED_LIBRARY

struct post {
    struct vfio_user_header header;
    struct vfio_user_region_access access;
    uint8_t data[sizeof(((struct posted *)NULL)->data)];
} __attribute__((packed));

/* Whether a message may be a posted write of a few bytes, as far as its header says. */
static bool
may_be_post(const struct vfio_user_header *header)
{
    uint32_t flags = message_flags(header);

    return header->cmd == VFIO_USER_REGION_WRITE && (flags & MESSAGE_TYPE) == MESSAGE_COMMAND &&
           (flags & MESSAGE_NO_REPLY) && header->msg_size > offsetof(struct post, data) &&
           header->msg_size <= sizeof(struct post);
}

int
link_peek_post(struct link *link, int fd, struct posted *post)
{
    struct inbox *inbox = &link->inbox;
    struct post message;

    for (;;) {
        size_t length = inbox_length(inbox);

        memcpy(&message, inbox->data + inbox->start, length < sizeof(message) ? length : sizeof(message));
        if (length >= sizeof(message.header)) {
            if (!may_be_post(&message.header)) {
                return 0;
            }
            if (length >= message.header.msg_size) {
                break;
            }
        }
        if (inbox_has_fds(inbox, length)) {
            return 0;
        }
        ssize_t got = link_receive(link, fd);
        if (got <= 0) {
            return length > 0 ? 0 : got == -1 && errno == EAGAIN ? -1 : -2;
        }
    }
    if (message.access.count != message.header.msg_size - offsetof(struct post, data) ||
        inbox_has_fds(inbox, message.header.msg_size)) {
        return 0;
    }
    post->region = message.access.region;
    post->offset = message.access.offset;
    post->count = message.access.count;
    memcpy(post->data, message.data, message.access.count);
    post->size = message.header.msg_size;
    return 1;
}

#else

int
link_peek_post(struct link *link, int fd, struct posted *post)
{
    (void)link, (void)fd, (void)post;
    return 0;
}

#endif

void
link_drop_post(struct link *link, const struct posted *post)
{
    link->inbox.start += post->size;
}
