#include "library_guard.h"

#include <fcntl.h>
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
}

int
link_open(struct link *link, int fd)
{
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    if (own == -1) {
        return -1;
    }
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
