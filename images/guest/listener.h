/* A TCP socket that listens. */
#pragma once
#include <err.h>
#include <netinet/in.h>
#include <sys/socket.h>

/* Ends the program where it cannot listen. The flags are those of socket(), beside the type. */
static int open_listener(const struct sockaddr_in *address, int flags, int backlog)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (listener >= 0)
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (listener < 0 || bind(listener, (const struct sockaddr *)address, sizeof *address) != 0 ||
        listen(listener, backlog) != 0)
        err(2, "cannot listen");
    return listener;
}
