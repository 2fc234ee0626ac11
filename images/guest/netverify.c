/*
 * Carries an endless stream of numbered, checksummed records over TCP, both ways at once, and says what went wrong.
 *
 *   netverify receive --port PORT [--address 0.0.0.0] [options]      listens; one connection at a time
 *   netverify send --address ADDRESS --port PORT [options]           connects, and again when the connection breaks
 *   options: [--rate KIB_PER_S] [--count RECORDS] [--seconds N] [--patience SECONDS] [--report-ms 1000] [--gap-ms N]
 *
 * IPv4. Once connected, both ends do the same: each sends records of 1024 bytes without a pause (--rate bounds what this
 * end sends) and checks each byte that it receives: magic, CRC32C, and that each record's number follows the last one's.
 * SIGTERM, SIGINT, the end of --seconds, or --count records sent make this end send an "end" record; the other end does
 * so too when it receives one, and then both are done: stopping either stops both, and nothing on its way is left
 * unchecked. A connection that breaks without "end" counts as a reset; numbers start at 1 again on the next one. An end
 * that has no connection for PATIENCE seconds (30) gives up, and so does one whose "end" is not answered that long; one
 * that is stopped while it has no connection ends at once.
 *
 * Each line on stdout is "key=value" pairs, one space between them, in this order:
 *   event=start|progress|done
 *   role=send|receive
 *   seconds=1.234          since the start
 *   connected=0|1
 *   bytes=N records=N      received and found good
 *   sent_bytes=N sent_records=N
 *   resets=N               established connections that broke
 *   corrupt=N              records that were not what must come next
 *   longest_gap_ms=1.234   longest time without any byte arriving, from the first connection on (CLOCK_MONOTONIC)
 *   gap_now_ms=1.234       time since the last byte
 *   ended=no|clean|cut     clean: both ends said "end" and all was checked
 * A progress line comes each REPORT-MS and on SIGUSR1; done comes once and last. With --gap-ms, a line
 *   event=gap from=12.345678 to=12.456789
 * comes when bytes arrive after none did for that long: seconds on CLOCK_MONOTONIC.
 *
 * All clocks of a guest stand still while QEMU has it stopped: the gap as the world saw it is that of the end outside.
 *
 * Ends with 0 if it ended clean without resets or corrupt records, 1 otherwise, 2 if it could not start.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "crc32c.h"
#include "listener.h"
#include "options.h"
#include "random.h"
#include "signals.h"

enum { RECORD = 1024, BATCH = 64, TICK_MS = 10, RETRY_MS = 100, DATA = 0, END = 1 };

#define MAGIC UINT64_C(0x666972657674656e) /* "netverif" in memory */

struct record {
    uint64_t magic;
    uint64_t sequence;
    uint32_t kind;
    uint32_t checksum; /* CRC32C of the record with the checksum as zero */
    uint64_t pattern[125];
};
_Static_assert(sizeof(struct record) == RECORD, "a record is 1024 bytes");

static bool listens;
static struct sockaddr_in address = {.sin_family = AF_INET};
static uint64_t rate_kib, count_limit, seconds_limit, patience_s = 30, report_ms = 1000, gap_ms;

static int listener = -1, connection = -1;
static bool connecting, stopping, end_sent, end_received;
static uint64_t began, alone_since, stopped_at, retry_at;
static uint64_t bytes, records, sent_bytes, sent_records, resets, corrupt;
static uint64_t first_connected, last_arrival, longest_gap, allowed_bytes;

static struct record outgoing[BATCH], incoming[BATCH];
static size_t out_begin, out_end, in_end; /* in bytes */
static uint64_t next_sent, next_expected;

static uint32_t checksum_of(struct record *record)
{
    record->checksum = 0;
    return crc32c((const uint64_t *)record, RECORD / 8);
}

static void report(const char *event)
{
    uint64_t time = now();
    uint64_t gap = first_connected != 0 && !(end_received && end_sent) ? time - last_arrival : 0;
    printf("event=%s role=%s seconds=%.3f connected=%d bytes=%" PRIu64 " records=%" PRIu64 " sent_bytes=%" PRIu64
           " sent_records=%" PRIu64 " resets=%" PRIu64 " corrupt=%" PRIu64
           " longest_gap_ms=%.3f gap_now_ms=%.3f ended=%s\n",
           event, listens ? "receive" : "send", (double)(time - began) / 1e9, connection >= 0 && !connecting, bytes,
           records, sent_bytes, sent_records, resets, corrupt, (double)(gap > longest_gap ? gap : longest_gap) / 1e6,
           (double)gap / 1e6, strcmp(event, "done") != 0 ? "no" : end_sent && end_received ? "clean" : "cut");
}

static void note_arrival(void)
{
    uint64_t time = now();
    if (time - last_arrival > longest_gap)
        longest_gap = time - last_arrival;
    if (gap_ms != 0 && time - last_arrival >= gap_ms * MILLISECOND)
        printf("event=gap from=%.6f to=%.6f\n", (double)last_arrival / 1e9, (double)time / 1e9);
    last_arrival = time;
}

static void established(void)
{
    connecting = false;
    out_begin = out_end = in_end = 0;
    next_sent = next_expected = 1;
    end_sent = end_received = false;
    if (first_connected == 0)
        first_connected = last_arrival = now();
}

static void drop(void)
{
    if (connection < 0)
        return;
    if (!connecting) {
        resets++;
        alone_since = now();
    }
    close(connection);
    connection = -1;
    connecting = false;
    retry_at = now() + RETRY_MS * MILLISECOND;
}

static void set_options(void)
{
    int one = 1, timeout_ms = (int)(patience_s * 1000);
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(connection, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
}

static void try_to_connect(void)
{
    connection = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection < 0)
        return;
    set_options();
    connecting = true;
    if (connect(connection, (struct sockaddr *)&address, sizeof address) == 0)
        established();
    else if (errno != EINPROGRESS)
        drop();
}

static void finish_connecting(void)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(connection, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0)
        drop();
    else
        established();
}

/* A newer connection takes the place of one whose other end is gone without a word. */
static void take_connection(void)
{
    int fresh = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fresh < 0)
        return;
    drop();
    connection = fresh;
    set_options();
    established();
}

static void fill_batch(void)
{
    out_begin = out_end = 0;
    for (size_t index = 0; index < BATCH && !end_sent; index++) {
        struct record *record = &outgoing[index];
        bool last = stopping || (count_limit != 0 && sent_records >= count_limit);
        record->magic = MAGIC;
        record->sequence = next_sent++;
        record->kind = last ? END : DATA;
        for (size_t word = 0; word < 125; word++)
            record->pattern[word] = scattered(record->sequence + word);
        record->checksum = checksum_of(record);
        out_end += RECORD;
        end_sent = last;
        sent_records += !last;
    }
    if (end_sent && !stopping) {
        stopping = true;
        stopped_at = now();
    }
}

static void send_some(void)
{
    for (int turn = 0; turn < 16; turn++) {
        if (out_begin == out_end) {
            if (end_sent)
                return;
            fill_batch();
        }
        size_t size = out_end - out_begin;
        if (rate_kib != 0 && !stopping) {
            if (allowed_bytes == 0)
                return;
            size = size < allowed_bytes ? size : allowed_bytes;
        }
        ssize_t sent = send(connection, (char *)outgoing + out_begin, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN && errno != EINTR)
                drop();
            return;
        }
        out_begin += (size_t)sent;
        sent_bytes += (uint64_t)sent;
        allowed_bytes -= (uint64_t)sent < allowed_bytes ? (uint64_t)sent : allowed_bytes;
    }
}

static void judge(struct record *record)
{
    uint32_t checksum = record->checksum;
    if (record->magic != MAGIC || record->sequence != next_expected || checksum != checksum_of(record)) {
        corrupt++;
    } else if (record->kind == END) {
        end_received = true;
        if (!stopping)
            stopped_at = now();
        stopping = true;
    } else {
        records++;
        bytes += RECORD;
    }
    next_expected = record->sequence + 1;
}

static void receive_some(void)
{
    for (int turn = 0; turn < 16; turn++) {
        ssize_t got = recv(connection, (char *)incoming + in_end, sizeof incoming - in_end, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0) {
            /* The end of the stream after both "end" records is how a clean connection closes. */
            if (!(end_received && end_sent && out_begin == out_end))
                drop();
            return;
        }
        note_arrival();
        in_end += (size_t)got;
        size_t whole = in_end / RECORD;
        for (size_t index = 0; index < whole; index++)
            judge(&incoming[index]);
        memmove(incoming, (char *)incoming + whole * RECORD, in_end - whole * RECORD);
        in_end -= whole * RECORD;
        if (end_received)
            return;
    }
}

static bool gave_up(void)
{
    uint64_t time = now(), patience = patience_s * SECOND;
    if (stopping && (connection < 0 || connecting))
        return true;
    return (stopping && time - stopped_at > patience) ||
           ((connection < 0 || connecting) && time - alone_since > patience);
}

static void take_signal(int signals)
{
    int signal = next_signal(signals);
    if (signal == SIGUSR1) {
        report("progress");
    } else if (signal != 0 && !stopping) {
        stopping = true;
        stopped_at = now();
    }
}

static void run(int signals)
{
    uint64_t next_report = began + report_ms * MILLISECOND, refilled = began;
    while (!(end_sent && end_received && out_begin == out_end) && !gave_up()) {
        uint64_t time = now();
        if (seconds_limit != 0 && !stopping && time - began >= seconds_limit * SECOND) {
            stopping = true;
            stopped_at = time;
        }
        if (time >= next_report) {
            report("progress");
            next_report = time + report_ms * MILLISECOND;
        }
        /* Once a tick, as otherwise each turn of this loop would send the few bytes that it took to turn. */
        if (rate_kib != 0 && time - refilled >= TICK_MS * MILLISECOND) {
            uint64_t earned = (time - refilled) / 1000u * rate_kib * 1024u / 1000000u, most = rate_kib * 1024u / 5 + RECORD;
            refilled = time;
            allowed_bytes = allowed_bytes + earned < most ? allowed_bytes + earned : most;
        }
        if (!listens && connection < 0 && time >= retry_at)
            try_to_connect();
        bool more = connection >= 0 && !connecting && (out_begin != out_end || !end_sent) &&
                    (rate_kib == 0 || stopping || allowed_bytes > 0);
        struct pollfd watched[3] = {
            {.fd = signals, .events = POLLIN},
            {.fd = listener, .events = POLLIN},
            {.fd = connection, .events = (short)(connecting ? POLLOUT : POLLIN | (more ? POLLOUT : 0))},
        };
        if (poll(watched, 3, TICK_MS) <= 0)
            continue;
        if (watched[0].revents != 0)
            take_signal(signals);
        if (watched[2].revents != 0 && connecting) {
            finish_connecting();
        } else {
            if (watched[2].revents & (POLLIN | POLLHUP | POLLERR))
                receive_some();
            if (watched[2].revents & POLLOUT && connection >= 0)
                send_some();
        }
        if (watched[1].revents != 0)
            take_connection();
    }
}

/* Says that nothing more comes, and waits for the other end to say so: a reset would overtake its last bytes. */
static void part(void)
{
    if (connection < 0 || connecting)
        return;
    shutdown(connection, SHUT_WR);
    struct pollfd watched = {.fd = connection, .events = POLLIN};
    char byte;
    if (poll(&watched, 1, 2000) > 0)
        (void)!recv(connection, &byte, 1, 0);
    close(connection);
}

static void usage(void)
{
    fprintf(stderr, "usage: netverify receive --port P [--address A] | send --address A --port P\n"
                    "       [--rate KIB_PER_S] [--count RECORDS] [--seconds N] [--patience SECONDS] [--report-ms N]\n"
                    "       [--gap-ms N]\n");
    exit(2);
}

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"address", required_argument, NULL, 'a'},  {"port", required_argument, NULL, 'p'},
        {"rate", required_argument, NULL, 'r'},     {"count", required_argument, NULL, 'c'},
        {"seconds", required_argument, NULL, 's'},  {"patience", required_argument, NULL, 'w'},
        {"report-ms", required_argument, NULL, 'm'}, {"gap-ms", required_argument, NULL, 'g'},
        {NULL, 0, NULL, 0},
    };
    bool addressed = false;
    uint64_t port = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'a': addressed = inet_pton(AF_INET, optarg, &address.sin_addr) == 1; break;
        case 'p': port = number_of(optarg); break;
        case 'r': rate_kib = number_of(optarg); break;
        case 'c': count_limit = number_of(optarg); break;
        case 's': seconds_limit = number_of(optarg); break;
        case 'w': patience_s = number_of(optarg); break;
        case 'm': report_ms = number_of(optarg); break;
        case 'g': gap_ms = number_of(optarg); break;
        default: usage();
        }
    }
    const char *role = optind + 1 == argc ? argv[optind] : "";
    listens = strcmp(role, "receive") == 0;
    if ((!listens && strcmp(role, "send") != 0) || (!listens && !addressed) || port == 0 || port > 65535 ||
        patience_s == 0 || patience_s > 1000000 || report_ms == 0)
        usage();
    address.sin_port = htons((uint16_t)port);
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    make_crc_table();
    setvbuf(stdout, NULL, _IOLBF, 4096);
    int signals = open_signals();
    if (listens)
        listener = open_listener(&address, SOCK_NONBLOCK, 4);
    began = alone_since = now();
    report("start");
    run(signals);
    report("done");
    bool well = end_sent && end_received && resets == 0 && corrupt == 0;
    part();
    return !well;
}
