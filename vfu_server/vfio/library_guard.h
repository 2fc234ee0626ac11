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
#include <stdint.h>

#include <libvfio-user.h>

/* The connection of one context, as seen from other threads. */
struct link {
    pthread_mutex_t lock;
    int fd;           /* our own duplicate of the connected socket, so that its number can't become another's; or -1 */
    bool stopped;     /* no connection may live any more */
    int eventfds_max; /* how many eventfds its client may leave with us */
    const char *why;  /* why we hung up, or NULL */
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

/* Give up our duplicate, so that the client sees the end of the connection once the library closed its own. */
void link_close(struct link *link);

/* End the connection under the library: whatever blocks on it returns. Any thread may call it. */
void link_hang_up(struct link *link, bool for_good);

#endif
