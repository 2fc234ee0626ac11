/*
 * What was received of a client before the library asked for it: many messages by one system call.
 *
 * File descriptors come with the first of the bytes that were sent with them, and are of the message that begins
 * there. Which byte that was a read does not tell: it goes on over bytes that have none, takes the first that have some,
 * and ends with what was sent together with these. So bytes that may have descriptors are received in pieces of 36, the
 * length of the shortest message that has any (SET_IRQS; DMA_MAP has 48). Where such a message begins in a piece, no
 * other one begins behind it there: the descriptors of a piece are of the last message that begins in it, also where
 * one was sent in parts, or several together. Those of a piece that none begins in came in the middle of a message; they
 * are nobody's, as with a library that reads message by message.
 */
#ifndef INBOX_H
#define INBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    INBOX_PIECE = 36,
    INBOX_PIECES = 2, /* by one call: the second finds out whether that was all */
    INBOX_BYTES = 64 * INBOX_PIECE,
};

/*
 * File descriptors that are taken with one message. The library would take 253, which count against the process
 * while the message is handled. Clients are told 8; QEMU has 16 for the most that anybody may be told.
 */
#define MESSAGE_FDS 16

/* The descriptors of one piece, which is at [from, until) of the inbox. */
struct inbox_fds {
    size_t from, until;
    size_t count;
    int fds[MESSAGE_FDS];
};

/* All zeros is an empty one. */
struct inbox {
    bool dry;  /* all that there was has been received */
    bool more; /* the last call did not take all that there was */
    bool over; /* nothing is received any more */
    size_t start, end;
    size_t pieces_with_fds;
    struct inbox_fds fds[INBOX_PIECES];
    uint8_t data[INBOX_BYTES];
};

/* Empty it, and close the descriptors in it. */
void inbox_clear(struct inbox *inbox);

static inline size_t
inbox_length(const struct inbox *inbox)
{
    return inbox->end - inbox->start;
}

/*
 * Receive what there is, without waiting. At most a part of one message, below 40 bytes and without descriptors, may be
 * in it. Returns how many bytes came; 0 at the end of the connection; or -1 with errno: EAGAIN where nothing is there, EMFILE where
 * descriptors were lost, as they were more than MESSAGE_FDS or the process has too many, and others of recvmsg(2).
 */
ssize_t inbox_fill(struct inbox *inbox, int fd);

/* Move up to `length` bytes out of it. Returns how many. */
size_t inbox_take(struct inbox *inbox, void *data, size_t length);

/* Whether descriptors came with the message of `length` bytes that is next, or in its middle. */
bool inbox_has_fds(const struct inbox *inbox, size_t length);

/*
 * Move the descriptors of the message that begins at `at` and has `length` bytes to `fds`, which has room for
 * MESSAGE_FDS. Returns how many. Those that came in its middle are closed.
 */
size_t inbox_take_fds(struct inbox *inbox, size_t at, size_t length, int *fds);

#endif
