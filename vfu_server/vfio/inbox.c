#include "inbox.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Of a message's header. The library takes a shorter message for one that is a header and nothing else. */
#define LENGTH_MIN 16

static void
close_fds(struct inbox_fds *piece)
{
    for (size_t i = 0; i < piece->count; i++) {
        close(piece->fds[i]);
    }
}

void
inbox_clear(struct inbox *inbox)
{
    for (size_t i = 0; i < inbox->pieces_with_fds; i++) {
        close_fds(&inbox->fds[i]);
    }
    inbox->dry = inbox->more = inbox->over = false;
    inbox->start = inbox->end = 0;
    inbox->pieces_with_fds = 0;
}

size_t
inbox_take(struct inbox *inbox, void *data, size_t length)
{
    size_t count = inbox_length(inbox) < length ? inbox_length(inbox) : length;

    memcpy(data, inbox->data + inbox->start, count);
    inbox->start += count;
    return count;
}

bool
inbox_has_fds(const struct inbox *inbox, size_t length)
{
    return inbox->pieces_with_fds > 0 && inbox->fds[0].until <= inbox->start + length;
}

size_t
inbox_take_fds(struct inbox *inbox, size_t at, size_t length, int *fds)
{
    size_t next = at + (length < LENGTH_MIN ? LENGTH_MIN : length);
    size_t kept = 0, count = 0;

    for (size_t i = 0; i < inbox->pieces_with_fds; i++) {
        struct inbox_fds *piece = &inbox->fds[i];

        if (piece->until > next) {
            inbox->fds[kept++] = *piece; /* a later message may begin in it */
        } else if (piece->from <= at && at < piece->until) {
            memcpy(fds, piece->fds, piece->count * sizeof(int));
            count = piece->count;
        } else {
            close_fds(piece);
        }
    }
    inbox->pieces_with_fds = kept;
    return count;
}

/* Make room behind a part of a message, which has no descriptors. */
static void
move_up(struct inbox *inbox)
{
    memmove(inbox->data, inbox->data + inbox->start, inbox_length(inbox));
    inbox->end -= inbox->start;
    inbox->start = 0;
}

/* Put a piece into the inbox. Whether all of its descriptors came. */
static bool
add_piece(struct inbox *inbox, const struct mmsghdr *piece)
{
    struct msghdr *message = (struct msghdr *)&piece->msg_hdr;
    struct inbox_fds *with = &inbox->fds[inbox->pieces_with_fds];

    with->from = inbox->end;
    memcpy(inbox->data + inbox->end, message->msg_iov->iov_base, piece->msg_len);
    inbox->end += piece->msg_len;
    with->until = inbox->end;
    with->count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            with->count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(with->fds, CMSG_DATA(c), with->count * sizeof(int));
        }
    }
    inbox->pieces_with_fds += with->count > 0;
    return !(message->msg_flags & MSG_CTRUNC);
}

static ssize_t
fill_by_pieces(struct inbox *inbox, int fd)
{
    union {
        char bytes[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
        struct cmsghdr aligned;
    } control[INBOX_PIECES];
    uint8_t data[INBOX_PIECES][INBOX_PIECE];
    struct iovec iov[INBOX_PIECES];
    struct mmsghdr pieces[INBOX_PIECES];
    size_t before = inbox->end;
    bool complete = true;
    int count;

    memset(pieces, 0, sizeof(pieces));
    for (int i = 0; i < INBOX_PIECES; i++) {
        iov[i] = (struct iovec){data[i], sizeof(data[i])};
        pieces[i].msg_hdr.msg_iov = &iov[i];
        pieces[i].msg_hdr.msg_iovlen = 1;
        pieces[i].msg_hdr.msg_control = control[i].bytes;
        pieces[i].msg_hdr.msg_controllen = sizeof(control[i].bytes);
    }
    count = recvmmsg(fd, pieces, INBOX_PIECES, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, NULL);
    if (count == -1) {
        inbox->dry = errno == EAGAIN;
        return -1;
    }
    for (int i = 0; i < count; i++) {
        complete &= add_piece(inbox, &pieces[i]);
    }
    inbox->dry = count < INBOX_PIECES;
    inbox->more = !inbox->dry && pieces[count - 1].msg_len == INBOX_PIECE;
    if (!complete) {
        errno = EMFILE;
        return -1;
    }
    return (ssize_t)(inbox->end - before);
}

/* Receive all that there is, once a look at it has found no descriptors; else 0. A read ends where there are some. */
static ssize_t
fill_at_once(struct inbox *inbox, int fd)
{
    struct iovec iov = {inbox->data + inbox->end, sizeof(inbox->data) - inbox->end};
    struct mmsghdr all = {.msg_hdr = {.msg_iov = &iov, .msg_iovlen = 1}};
    size_t room = iov.iov_len;

    inbox->more = false;
    if (recvmmsg(fd, &all, 1, MSG_DONTWAIT | MSG_PEEK, NULL) != 1) {
        inbox->dry = errno == EAGAIN;
        return -1;
    }
    if (all.msg_hdr.msg_flags & MSG_CTRUNC) {
        return 0;
    }
    iov.iov_len = all.msg_len;
    if (recvmmsg(fd, &all, 1, MSG_DONTWAIT, NULL) != 1) {
        return -1;
    }
    inbox->end += all.msg_len;
    inbox->dry = all.msg_len > 0 && all.msg_len < room;
    inbox->more = all.msg_len == room;
    if (all.msg_hdr.msg_flags & MSG_CTRUNC) { /* the look had no memory to tell */
        errno = EMFILE;
        return -1;
    }
    return all.msg_len;
}

ssize_t
inbox_fill(struct inbox *inbox, int fd)
{
    ssize_t got = 0;

    if (inbox->over) {
        return 0;
    }
    if (inbox->dry) {
        errno = EAGAIN;
        return -1;
    }
    move_up(inbox);
    if (inbox->more) {
        got = fill_at_once(inbox, fd);
    }
    return got != 0 ? got : fill_by_pieces(inbox, fd);
}
