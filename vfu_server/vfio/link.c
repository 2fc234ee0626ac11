#include "library_guard.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

_Thread_local struct link *guard_link;
_Thread_local uint64_t guard_irqs_dropped;

void
link_init(struct link *link)
{
    pthread_mutex_init(&link->lock, NULL);
    link->fd = -1;
    link->stopped = false;
}

void
link_open(struct link *link, int fd)
{
    pthread_mutex_lock(&link->lock);
    if (link->fd != -1) {
        close(link->fd);
    }
    link->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (link->stopped) {
        shutdown(fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&link->lock);
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
