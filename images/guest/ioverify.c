/*
 * Writes numbered, checksummed sectors to a block device as fast as it can, reads them back and says what was lost.
 *
 *   ioverify --device /dev/vda [--offset BYTES] [--length BYTES] [--block 4096] [--depth 4] [--report-ms 500]
 *            [--duration SECONDS] [--count BLOCKS] [--gap-ms N] [--rest-us 0]
 *
 * It overwrites that region of the device (by default its first 64 MiB). DEPTH threads each own every DEPTH-th block,
 * so that many requests are in flight. One request in four is a read-back of a block written lately. On `stop` (a line
 * on stdin, SIGTERM or SIGINT, or the end of --duration or --count) writing ends and every block written is read and
 * verified. After each request a thread rests for REST-US microseconds. `report` on stdin, or SIGUSR1, prints a progress line at once. The end of stdin means nothing.
 *
 * Lines on stdout are JSON, one "start", then "progress" ones and perhaps "fault" ones, at last one "done". With --gap-ms
 * there is a "gap" line for each time without an answer of that length, with its ends "from" and "to" in seconds on
 * CLOCK_MONOTONIC. The figures of the others:
 *   sequence         number of the newest write that was begun; each block has its own
 *   sectors_written  512-byte sectors whose write was answered well
 *   sectors_read     sectors that were read back and looked at
 *   errors           requests that failed (what such a block holds may be the old or the new content)
 *   corrupt          sectors with a bad magic, checksum or address, or of a write that is yet to come
 *   lost             sectors with older content than the last write that was answered well
 *   longest_gap_ms   longest time between two answers, on CLOCK_MONOTONIC; beside it CLOCK_BOOTTIME and CLOCK_REALTIME
 *   gap_now_ms       time since the last answer
 *
 * All clocks of a guest stand still while QEMU has it stopped (and keep their value over a migration), so the gaps are
 * what the guest's user sees. To know the pause as the world saw it, add the time between QEMU's STOP and RESUME events.
 *
 * Ends with 0 if nothing was wrong, 1 if something was, 2 if it could not start.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "crc32c.h"
#include "device.h"
#include "options.h"
#include "random.h"
#include "signals.h"

enum { SECTOR = 512, RECENT = 16, MAX_DEPTH = 256, MAX_FAULTS_SHOWN = 20, CLOCKS = 3 };

#define MAGIC UINT64_C(0x7966697265766f69) /* "ioverify" in memory */

/* What each sector holds. The checksum is CRC32C of the whole sector with the checksum as zero. */
struct sector {
    uint64_t magic;
    uint64_t sequence;
    uint64_t address; /* in bytes, on the device */
    uint32_t checksum;
    uint32_t block_size;
    uint64_t pattern[60];
};
_Static_assert(sizeof(struct sector) == SECTOR, "a sector is 512 bytes");

/* What is known of one block: the last write answered well, and the one whose fate is unknown because it failed. */
struct block {
    uint64_t written;
    uint64_t uncertain;
};

static const char *device;
static uint64_t offset, length, duration_s, count_limit;
static uint64_t block_size = 4096, depth = 4, report_ms = 500, gap_ms, rest_us;
static int device_fd;
static uint64_t blocks_in_region;
static struct block *blocks;

static atomic_bool stopping;
static atomic_uint_fast64_t sequence, sectors_written, sectors_read, errors, corrupt, lost, faults_shown;
static atomic_uint threads_running;

static const clockid_t clocks[CLOCKS] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME};
static pthread_mutex_t gap_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t last_answer[CLOCKS], longest_gap[CLOCKS];

static void note_answer(void)
{
    pthread_mutex_lock(&gap_lock);
    uint64_t before = last_answer[0];
    for (int clock = 0; clock < CLOCKS; clock++) {
        uint64_t time = now_on(clocks[clock]);
        if (time > last_answer[clock]) { /* REALTIME may be set back */
            if (time - last_answer[clock] > longest_gap[clock])
                longest_gap[clock] = time - last_answer[clock];
        }
        last_answer[clock] = time;
    }
    if (gap_ms != 0 && last_answer[0] - before >= gap_ms * MILLISECOND)
        printf("{\"event\":\"gap\",\"from\":%.6f,\"to\":%.6f}\n", (double)before / 1e9, (double)last_answer[0] / 1e9);
    pthread_mutex_unlock(&gap_lock);
}

static void start_gaps(void)
{
    pthread_mutex_lock(&gap_lock);
    for (int clock = 0; clock < CLOCKS; clock++)
        last_answer[clock] = now_on(clocks[clock]);
    pthread_mutex_unlock(&gap_lock);
}

static uint64_t address_of(uint64_t block)
{
    return offset + block * block_size;
}

static void fault(const char *kind, uint64_t address, uint64_t expected, uint64_t found)
{
    if (atomic_fetch_add(&faults_shown, 1) >= MAX_FAULTS_SHOWN)
        return;
    printf("{\"event\":\"fault\",\"kind\":\"%s\",\"address\":%" PRIu64 ",\"expected\":%" PRIu64 ",\"found\":%" PRIu64
           "}\n",
           kind, address, expected, found);
}

static void fill(struct sector *sectors, uint64_t block, uint64_t number)
{
    uint64_t state = scattered(number) | 1;
    for (uint64_t index = 0; index < block_size / SECTOR; index++) {
        struct sector *sector = &sectors[index];
        sector->magic = MAGIC;
        sector->sequence = number;
        sector->address = address_of(block) + index * SECTOR;
        sector->checksum = 0;
        sector->block_size = (uint32_t)block_size;
        for (size_t word = 0; word < 60; word++)
            sector->pattern[word] = random_step(&state);
        sector->checksum = crc32c((const uint64_t *)sector, SECTOR / 8);
    }
}

static void judge(struct sector *sectors, uint64_t block)
{
    const struct block *known = &blocks[block];
    for (uint64_t index = 0; index < block_size / SECTOR; index++) {
        struct sector *sector = &sectors[index];
        uint64_t address = address_of(block) + index * SECTOR;
        uint32_t checksum = sector->checksum;
        sector->checksum = 0;
        bool sound = sector->magic == MAGIC && sector->address == address &&
                     checksum == crc32c((const uint64_t *)sector, SECTOR / 8);
        bool expected = sector->sequence == known->written ||
                        (known->uncertain != 0 && sector->sequence == known->uncertain);
        if (!sound && known->written == 0) {
            /* Only a failed write went here: what was there before may stand. */
        } else if (!sound) {
            atomic_fetch_add(&corrupt, 1);
            fault("corrupt", address, known->written, sector->magic == MAGIC ? sector->sequence : 0);
        } else if (!expected && sector->sequence > known->written) {
            atomic_fetch_add(&corrupt, 1);
            fault("from the future", address, known->written, sector->sequence);
        } else if (!expected) {
            atomic_fetch_add(&lost, 1);
            fault("lost", address, known->written, sector->sequence);
        }
    }
    atomic_fetch_add(&sectors_read, block_size / SECTOR);
}

static void write_block(struct sector *buffer, uint64_t block, uint64_t number)
{
    fill(buffer, block, number);
    ssize_t done = pwrite(device_fd, buffer, block_size, (off_t)address_of(block));
    note_answer();
    if (done == (ssize_t)block_size) {
        blocks[block] = (struct block){.written = number};
        atomic_fetch_add(&sectors_written, block_size / SECTOR);
    } else {
        atomic_fetch_add(&errors, 1);
        blocks[block].uncertain = number;
        fault(done < 0 ? strerrorname_np(errno) : "short write", address_of(block), number, 0);
    }
}

static void read_block(struct sector *buffer, uint64_t block)
{
    memset(buffer, 0xa5, block_size); /* so that a read that transfers nothing is seen */
    ssize_t done = pread(device_fd, buffer, block_size, (off_t)address_of(block));
    note_answer();
    if (done == (ssize_t)block_size) {
        judge(buffer, block);
    } else {
        atomic_fetch_add(&errors, 1);
        fault(done < 0 ? strerrorname_np(errno) : "short read", address_of(block), blocks[block].written, 0);
    }
}

static void *work(void *argument)
{
    uint64_t self = (uint64_t)(uintptr_t)argument;
    uint64_t own = (blocks_in_region - self + depth - 1) / depth;
    uint64_t recent[RECENT], recents = 0, state = (self + 1) * UINT64_C(0x2545f4914f6cdd1d) | 1;
    struct sector *buffer = device_buffer(block_size);
    while (!atomic_load(&stopping)) {
        if (rest_us != 0)
            usleep((useconds_t)rest_us);
        if (recents > 0 && random_step(&state) % 4 == 0) {
            uint64_t among = recents < RECENT ? recents : RECENT;
            read_block(buffer, recent[random_step(&state) % among]);
            continue;
        }
        uint64_t number = atomic_fetch_add(&sequence, 1) + 1;
        if (count_limit != 0 && number > count_limit) {
            atomic_fetch_sub(&sequence, 1);
            break;
        }
        uint64_t block = self + depth * (random_step(&state) % own);
        write_block(buffer, block, number);
        recent[recents++ % RECENT] = block;
    }
    for (uint64_t block = self; block < blocks_in_region; block += depth)
        if (blocks[block].written != 0 || blocks[block].uncertain != 0)
            read_block(buffer, block);
    free(buffer);
    atomic_fetch_sub(&threads_running, 1);
    return NULL;
}

static void report(const char *event, uint64_t began)
{
    pthread_mutex_lock(&gap_lock);
    uint64_t time = now(), last = last_answer[0];
    double gaps[CLOCKS];
    for (int clock = 0; clock < CLOCKS; clock++)
        gaps[clock] = (double)longest_gap[clock] / 1e6;
    pthread_mutex_unlock(&gap_lock);
    printf("{\"event\":\"%s\",\"seconds\":%.3f,\"sequence\":%" PRIuFAST64 ",\"sectors_written\":%" PRIuFAST64
           ",\"sectors_read\":%" PRIuFAST64 ",\"errors\":%" PRIuFAST64 ",\"corrupt\":%" PRIuFAST64
           ",\"lost\":%" PRIuFAST64 ",\"longest_gap_ms\":%.3f,\"longest_gap_boottime_ms\":%.3f"
           ",\"longest_gap_realtime_ms\":%.3f,\"gap_now_ms\":%.3f}\n",
           event, (double)(time - began) / 1e9, atomic_load(&sequence), atomic_load(&sectors_written),
           atomic_load(&sectors_read), atomic_load(&errors), atomic_load(&corrupt), atomic_load(&lost), gaps[0],
           gaps[1], gaps[2], (double)(time - last) / 1e6);
}

/* Prints progress and takes commands until all threads have written and verified. */
static void attend(int signals, uint64_t began)
{
    struct pollfd watched[2] = {{.fd = signals, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
    uint64_t next = began + report_ms * MILLISECOND;
    while (atomic_load(&threads_running) > 0) {
        uint64_t time = now();
        if (duration_s != 0 && time - began >= duration_s * SECOND)
            atomic_store(&stopping, true);
        if (time >= next) {
            report("progress", began);
            next = time + report_ms * MILLISECOND;
        }
        if (poll(watched, 2, 20) <= 0)
            continue;
        int signal = watched[0].revents & POLLIN ? next_signal(signals) : 0;
        if (signal == SIGUSR1)
            report("progress", began);
        else if (signal != 0)
            atomic_store(&stopping, true);
        if (watched[1].revents != 0) {
            char line[256];
            ssize_t size = read(STDIN_FILENO, line, sizeof line - 1);
            line[size > 0 ? size : 0] = '\0';
            if (size <= 0)
                watched[1].fd = -1;
            if (strstr(line, "stop") != NULL)
                atomic_store(&stopping, true);
            else if (strstr(line, "report") != NULL)
                report("progress", began);
        }
    }
}

static void usage(void)
{
    fprintf(stderr, "usage: ioverify --device FILE [--offset B] [--length B] [--block B] [--depth 1..%d]\n"
                    "                [--report-ms N] [--duration SECONDS] [--count BLOCKS]\n"
                    "                [--gap-ms N] [--rest-us N]\n", MAX_DEPTH);
    exit(2);
}

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"device", required_argument, NULL, 'f'},    {"offset", required_argument, NULL, 'o'},
        {"length", required_argument, NULL, 'l'},    {"block", required_argument, NULL, 'b'},
        {"depth", required_argument, NULL, 'd'},     {"report-ms", required_argument, NULL, 'r'},
        {"duration", required_argument, NULL, 't'},  {"count", required_argument, NULL, 'c'},
        {"gap-ms", required_argument, NULL, 'g'},    {"rest-us", required_argument, NULL, 'p'},
        {NULL, 0, NULL, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'f': device = optarg; break;
        case 'o': offset = amount_of(optarg); break;
        case 'l': length = amount_of(optarg); break;
        case 'b': block_size = amount_of(optarg); break;
        case 'd': depth = amount_of(optarg); break;
        case 'r': report_ms = amount_of(optarg); break;
        case 't': duration_s = amount_of(optarg); break;
        case 'c': count_limit = amount_of(optarg); break;
        case 'g': gap_ms = amount_of(optarg); break;
        case 'p': rest_us = amount_of(optarg); break;
        default: exit(2);
        }
    }
    if (device == NULL || block_size == 0 || block_size % SECTOR != 0 || depth == 0 || depth > MAX_DEPTH ||
        offset % SECTOR != 0 || report_ms == 0)
        usage();
}

static void open_region(void)
{
    uint64_t size;
    device_fd = open_device(device, O_RDWR, &size);
    uint64_t rest = size > offset ? size - offset : 0;
    if (length == 0)
        length = rest < (64u << 20) ? rest : 64u << 20;
    blocks_in_region = length / block_size;
    if (length > rest || blocks_in_region < depth)
        errx(2, "%s has %" PRIu64 " bytes from the offset on; the region needs to lie within and to "
             "have at least one block per request in flight", device, rest);
    blocks = calloc(blocks_in_region, sizeof *blocks);
    if (blocks == NULL)
        abort();
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    open_region();
    make_crc_table();
    setvbuf(stdout, NULL, _IOLBF, 4096);
    int signals = open_signals();
    printf("{\"event\":\"start\",\"device\":\"%s\",\"offset\":%" PRIu64 ",\"length\":%" PRIu64 ",\"block\":%" PRIu64
           ",\"depth\":%" PRIu64 "}\n", device, offset, blocks_in_region * block_size, block_size, depth);
    uint64_t began = now();
    start_gaps();
    atomic_store(&threads_running, (unsigned)depth);
    pthread_t threads[MAX_DEPTH];
    for (uint64_t index = 0; index < depth; index++)
        if (pthread_create(&threads[index], NULL, work, (void *)(uintptr_t)index) != 0)
            abort();
    attend(signals, began);
    for (uint64_t index = 0; index < depth; index++)
        pthread_join(threads[index], NULL);
    report("done", began);
    return atomic_load(&errors) + atomic_load(&corrupt) + atomic_load(&lost) != 0;
}
