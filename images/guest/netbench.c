/*
 * Measures a network: a stream one way, and small requests that are answered one at a time. IPv4, TCP.
 *
 *   netbench serve --port PORT [--address 0.0.0.0]                                   until it is ended by a signal
 *   netbench stream --address ADDRESS --port PORT [--seconds 2] [--block 131072] [--streams 1] [--reverse]
 *   netbench request --address ADDRESS --port PORT [--seconds 2] [--size 1]
 *
 * stream sends to the server (with --reverse: receives from it) over STREAMS connections; bytes count when the receiving
 * end has read them. request sends SIZE bytes and waits for as many, over and over. Prints one JSON line:
 *   {"mode":"stream","reverse":false,"streams":1,"block":131072,"bytes":N,"seconds":S,"mib_per_s":X}
 *   {"mode":"request","size":1,"transactions":N,"seconds":S,"per_s":X,"latency_us":{"mean":,"p50":,"p99":,"max":}}
 * Ends with 0, 1 when a connection failed on the way, 2 when it could not start.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "latency.h"
#include "listener.h"
#include "options.h"

enum { MAX_BLOCK = 1 << 20, MAX_STREAMS = 64 };
enum kind { SINK, SOURCE, ECHO };

/* What a client sends first, in its own byte order: both ends are of one kind here. */
struct order {
    uint32_t kind;
    uint32_t size; /* of a block or of a request */
    uint64_t nanoseconds;
};

static struct sockaddr_in address = {.sin_family = AF_INET};
static uint64_t seconds = 2, block = 131072, size_of_request = 1, streams = 1;
static bool reverse;
static uint64_t received[MAX_STREAMS];
static bool failed[MAX_STREAMS];

static bool send_all(int connection, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t sent = send(connection, (const char *)data + done, size - done, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            return false;
        done += sent > 0 ? (size_t)sent : 0;
    }
    return true;
}

static bool receive_all(int connection, void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = recv(connection, (char *)data + done, size - done, 0);
        if (got == 0 || (got < 0 && errno != EINTR))
            return false;
        done += got > 0 ? (size_t)got : 0;
    }
    return true;
}

static void send_for(int connection, char *buffer, size_t size, uint64_t nanoseconds)
{
    uint64_t deadline = now() + nanoseconds;
    while (now() < deadline && send_all(connection, buffer, size))
        ;
    shutdown(connection, SHUT_WR);
}

/* Reads until the other end says that nothing more comes; how many bytes came. */
static uint64_t drain(int connection, char *buffer, size_t size)
{
    uint64_t total = 0;
    for (;;) {
        ssize_t got = recv(connection, buffer, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return total;
        total += (uint64_t)got;
    }
}

static void *answer(void *argument)
{
    int connection = (int)(intptr_t)argument, one = 1;
    struct order order;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    char *buffer = NULL;
    if (receive_all(connection, &order, sizeof order) && order.size > 0 && order.size <= MAX_BLOCK)
        buffer = calloc(1, order.size);
    if (buffer != NULL && order.kind == SINK) {
        uint64_t total = drain(connection, buffer, order.size);
        send_all(connection, &total, sizeof total);
    } else if (buffer != NULL && order.kind == SOURCE) {
        send_for(connection, buffer, order.size, order.nanoseconds);
        drain(connection, buffer, order.size);
    } else if (buffer != NULL && order.kind == ECHO) {
        while (receive_all(connection, buffer, order.size) && send_all(connection, buffer, order.size))
            ;
    }
    free(buffer);
    close(connection);
    return NULL;
}

static _Noreturn void serve(void)
{
    int listener = open_listener(&address, 0, 64);
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;
        if (connection < 0)
            continue;
        if (pthread_create(&thread, NULL, answer, (void *)(intptr_t)connection) == 0)
            pthread_detach(thread);
        else
            close(connection);
    }
}

static int open_with(enum kind kind, uint64_t size)
{
    struct order order = {.kind = kind, .size = (uint32_t)size, .nanoseconds = seconds * SECOND};
    int one = 1, connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address) != 0)
        err(2, "cannot connect");
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (!send_all(connection, &order, sizeof order))
        errx(2, "the server is gone");
    return connection;
}

static void *stream_one(void *argument)
{
    size_t index = (size_t)(uintptr_t)argument;
    int connection = open_with(reverse ? SOURCE : SINK, block);
    char *buffer = calloc(1, block);
    if (buffer == NULL)
        abort();
    if (reverse) {
        received[index] = drain(connection, buffer, block);
        failed[index] = received[index] == 0;
    } else {
        send_for(connection, buffer, block, seconds * SECOND);
        failed[index] = !receive_all(connection, &received[index], sizeof received[index]);
    }
    free(buffer);
    close(connection);
    return NULL;
}

static int stream(void)
{
    pthread_t threads[MAX_STREAMS];
    uint64_t began = now(), total = 0;
    bool bad = false;
    for (uint64_t index = 0; index < streams; index++)
        if (pthread_create(&threads[index], NULL, stream_one, (void *)(uintptr_t)index) != 0)
            abort();
    for (uint64_t index = 0; index < streams; index++) {
        pthread_join(threads[index], NULL);
        total += received[index];
        bad |= failed[index];
    }
    double took = (double)(now() - began) / 1e9;
    printf("{\"mode\":\"stream\",\"reverse\":%s,\"streams\":%" PRIu64 ",\"block\":%" PRIu64 ",\"bytes\":%" PRIu64
           ",\"seconds\":%.4f,\"mib_per_s\":%.2f}\n",
           reverse ? "true" : "false", streams, block, total, took, (double)total / took / (1 << 20));
    return bad;
}

static int request(void)
{
    char *buffer = calloc(1, size_of_request);
    if (buffer == NULL)
        abort();
    int connection = open_with(ECHO, size_of_request);
    uint64_t began = now(), deadline = began + seconds * SECOND, end = began;
    bool well = true;
    while (end < deadline) {
        uint64_t start = end;
        well = send_all(connection, buffer, size_of_request) && receive_all(connection, buffer, size_of_request);
        if (!well)
            break;
        end = now();
        note_latency(end - start);
    }
    close(connection);
    double took = (double)(end - began) / 1e9;
    printf("{\"mode\":\"request\",\"size\":%" PRIu64 ",\"transactions\":%" PRIu64 ",\"seconds\":%.4f,\"per_s\":%.1f,",
           size_of_request, latency.count, took, took > 0 ? (double)latency.count / took : 0);
    print_latency();
    printf("}\n");
    return !well;
}

static void usage(void)
{
    fprintf(stderr, "usage: netbench serve --port P [--address A]\n"
                    "       netbench stream --address A --port P [--seconds N] [--block B] [--streams 1..%d] [--reverse]\n"
                    "       netbench request --address A --port P [--seconds N] [--size B]\n", MAX_STREAMS);
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"address", required_argument, NULL, 'a'}, {"port", required_argument, NULL, 'p'},
        {"seconds", required_argument, NULL, 's'}, {"block", required_argument, NULL, 'b'},
        {"streams", required_argument, NULL, 'n'}, {"size", required_argument, NULL, 'z'},
        {"reverse", no_argument, NULL, 'r'},       {NULL, 0, NULL, 0},
    };
    bool addressed = false;
    uint64_t port = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'a': addressed = inet_pton(AF_INET, optarg, &address.sin_addr) == 1; break;
        case 'p': port = number_of(optarg); break;
        case 's': seconds = number_of(optarg); break;
        case 'b': block = number_of(optarg); break;
        case 'n': streams = number_of(optarg); break;
        case 'z': size_of_request = number_of(optarg); break;
        case 'r': reverse = true; break;
        default: usage();
        }
    }
    const char *mode = optind + 1 == argc ? argv[optind] : "";
    bool serves = strcmp(mode, "serve") == 0;
    if (port == 0 || port > 65535 || seconds == 0 || seconds > 1000000 || block == 0 || block > MAX_BLOCK ||
        streams == 0 || streams > MAX_STREAMS || size_of_request == 0 || size_of_request > MAX_BLOCK ||
        (!serves && !addressed))
        usage();
    address.sin_port = htons((uint16_t)port);
    if (serves)
        serve();
    if (strcmp(mode, "stream") == 0)
        return stream();
    if (strcmp(mode, "request") == 0)
        return request();
    usage();
}
