/*
 * What stands between the library and a client that breaks it, and how a thread inside the library is stopped.
 *
 * With -DGUARDED_LIBRARY (our own build of the library) the linker sends the library's calls of accept(), recv(),
 * eventfd_write() and some of its own functions to library_guard.c. A system library runs without that.
 */
#ifndef LIBRARY_GUARD_H
#define LIBRARY_GUARD_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <libvfio-user.h>

#include "inbox.h"
#include "posted.h"

#ifdef GUARDED_LIBRARY
#include <vfio-user.h>

/* Flags of a message, as the protocol has them. The library has them as bit fields (2022) or as a number (2026). */
enum { MESSAGE_TYPE = 0x0f, MESSAGE_COMMAND = 0, MESSAGE_REPLY = 1, MESSAGE_NO_REPLY = 0x10, MESSAGE_ERROR = 0x20 };

static inline uint32_t
message_flags(const struct vfio_user_header *header)
{
    uint32_t flags;

    memcpy(&flags, (const char *)header + offsetof(struct vfio_user_header, flags), sizeof(flags));
    return flags;
}
#endif

/* The connection of one context. Other threads see no more of it than what link_hang_up() does. */
struct link {
    pthread_mutex_t lock;
    int fd;             /* our own duplicate of the connected socket, so that its number can't become another's; or -1 */
    bool stopped;       /* no connection may live any more */
    int eventfds_max;   /* how many eventfds its client may leave with us */
    const char *why;    /* why we hung up, or NULL */
    struct inbox inbox; /* what came and was not handled yet; always empty with a system library */
};

/*
 * Guest memory, which the extension keeps in place of the library's own table. Each returns 0 or an errno; `fd` stays
 * the caller's. `ctx` is the library's, `prot` is that of mmap().
 */
struct guard_dma {
    int (*map)(vfu_ctx_t *ctx, uint64_t start, uint64_t length, int fd, uint64_t offset, uint32_t prot);
    int (*unmap)(vfu_ctx_t *ctx, uint64_t start, uint64_t length);
    int (*clear)(vfu_ctx_t *ctx);
};

extern struct guard_dma guard_dma;
extern _Thread_local struct link *guard_link;     /* of the context that this thread is attaching or running */
extern _Thread_local uint64_t guard_irqs_dropped; /* interrupts that this thread could not write */

void link_init(struct link *link, int eventfds_max);

/* Take note of a connection that the library accepted. Returns 0, or -1 with errno: then nobody could end it. */
int link_open(struct link *link, int fd);

/*
 * Give up our duplicate, so that the client sees the end of the connection once the library closed its own, and what was
 * received of it.
 */
void link_close(struct link *link);

/* End the connection under the library: whatever blocks on it returns. Any thread may call it. */
void link_hang_up(struct link *link, bool for_good);

/* The rest is for the thread that attaches and runs the context. */

/* End the connection, and have the library find nothing more in it but its end. */
void link_break_off(struct link *link);

/* Whether a message, or a part of one, was received already: then poll(2) must not be slept in. */
bool link_has_input(const struct link *link);

/* To be called when poll(2) says that there is something to read; until then what was found to be empty stays so. */
void link_ready(struct link *link);

/*
 * Receive what there is, as inbox_fill() does, from `fd`, the library's. Returns how many bytes came; 0 at the end of the
 * connection; or -1 with errno: EAGAIN, or ECONNRESET after the connection was broken off.
 */
ssize_t link_receive(struct link *link, int fd);

/*
 * Look whether the next message is a posted write of 1 to 8 bytes, to any region and offset, in bounds or not; it stays
 * where it is. Receives from `fd` what is missing, if it is there, and never waits. Returns
 *   1 where it is one, with `post` filled;
 *   0 where it is something else, or only a part of a message is there: vfu_run_ctx() is to have it, and waits for the rest;
 *  -1 where there is nothing to read now;
 *  -2 where the connection has ended: vfu_run_ctx() finds that too, and gives it up.
 * With a system library always 0.
 */
int link_peek_post(struct link *link, int fd, struct posted *post);

/* Take off the message that link_peek_post() just looked at. */
void link_drop_post(struct link *link, const struct posted *post);

#endif
