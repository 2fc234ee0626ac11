/*
 * Measures a block device: random or sequential reads or writes, several in flight, past the page cache.
 *
 *   blkbench --device /dev/vda --rw read|write|randread|randwrite [--block 4096] [--depth 1] [--offset BYTES]
 *            [--length BYTES] [--count REQUESTS] [--duration SECONDS] [--huge-pages]
 *
 * Without --count and --duration it runs for 2 seconds. One request at a time is a plain pread or pwrite; more go
 * through io_submit. With --huge-pages the buffers are contiguous memory, in pages of 2 MiB, which must be reserved
 * (/proc/sys/vm/nr_hugepages); without, one run may get its pages in order and the next one in reverse, and a driver
 * that maps them does more for the second. Prints one JSON line: requests, seconds, iops, mib_per_s and the latency in
 * microseconds (mean, p50, p99, max). Ends with 0, 1 when a request failed, 2 when it could not start.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/aio_abi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "device.h"
#include "latency.h"
#include "options.h"
#include "random.h"

enum { MAX_DEPTH = 1024, HUGE_PAGE = 2 << 20 };

static const char *device, *kind;
static uint64_t offset, length, count_limit, duration_s;
static uint64_t block_size = 4096, depth = 1;
static bool writes, is_random, huge_pages;
static int device_fd;

static uint64_t failures, next_block, random_state = 88172645463325252u;

static off_t next_address(void)
{
    uint64_t blocks = length / block_size, block = next_block++;
    if (is_random)
        block = random_step(&random_state);
    return (off_t)(offset + block % blocks * block_size);
}

static void note(uint64_t nanoseconds, bool well)
{
    note_latency(nanoseconds);
    failures += !well;
}

static bool enough(uint64_t begun, uint64_t deadline)
{
    return count_limit != 0 ? begun >= count_limit : now() >= deadline;
}

/* Memory for so many requests, until the program ends. */
static char *buffers_for(uint64_t number)
{
    size_t size = number * block_size;
    char *buffers;
    if (huge_pages) {
        size = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        buffers = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
        if (buffers == MAP_FAILED)
            err(2, "no %zu bytes of huge pages: see /proc/sys/vm/nr_hugepages", size);
    } else {
        buffers = device_buffer(size);
    }
    memset(buffers, 0x5a, size);
    return buffers;
}

static void one_at_a_time(uint64_t deadline)
{
    char *buffer = buffers_for(1);
    for (uint64_t begun = 0; !enough(begun, deadline); begun++) {
        off_t address = next_address();
        uint64_t start = now();
        ssize_t done = writes ? pwrite(device_fd, buffer, block_size, address)
                              : pread(device_fd, buffer, block_size, address);
        note(now() - start, done == (ssize_t)block_size);
    }
}

static void many_in_flight(uint64_t deadline)
{
    static struct iocb requests_of[MAX_DEPTH], *batch[MAX_DEPTH];
    static struct io_event events[MAX_DEPTH];
    static uint64_t started[MAX_DEPTH];
    char *buffers = buffers_for(depth);
    aio_context_t context = 0;
    uint64_t begun = 0, in_flight = 0, free_slots = 0;
    static uint64_t slots[MAX_DEPTH];
    if (syscall(SYS_io_setup, depth, &context) != 0)
        err(2, "io_setup");
    for (uint64_t slot = 0; slot < depth; slot++)
        slots[free_slots++] = slot;
    for (;;) {
        long batched = 0;
        while (free_slots > 0 && !enough(begun, deadline)) {
            uint64_t slot = slots[--free_slots];
            requests_of[slot] = (struct iocb){
                .aio_data = slot,
                .aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
                .aio_fildes = (uint32_t)device_fd,
                .aio_buf = (uint64_t)(uintptr_t)(buffers + slot * block_size),
                .aio_nbytes = block_size,
                .aio_offset = next_address(),
            };
            started[slot] = now();
            batch[batched++] = &requests_of[slot];
            begun++;
        }
        for (long sent = 0; sent < batched;) {
            long taken = syscall(SYS_io_submit, context, batched - sent, batch + sent);
            if (taken <= 0)
                err(2, "io_submit");
            sent += taken;
        }
        in_flight += (uint64_t)batched;
        if (in_flight == 0)
            break;
        long ended = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
        uint64_t time = now();
        for (long index = 0; index < ended; index++) {
            uint64_t slot = events[index].data;
            note(time - started[slot], events[index].res == (int64_t)block_size);
            slots[free_slots++] = slot;
            in_flight--;
        }
    }
    syscall(SYS_io_destroy, context);
}

static void usage(void)
{
    fprintf(stderr, "usage: blkbench --device FILE --rw read|write|randread|randwrite [--block B] [--depth 1..%d]\n"
                    "                [--offset B] [--length B] [--count N] [--duration SECONDS] [--huge-pages]\n",
            MAX_DEPTH);
    exit(2);
}

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"device", required_argument, NULL, 'f'}, {"rw", required_argument, NULL, 'w'},
        {"offset", required_argument, NULL, 'o'}, {"length", required_argument, NULL, 'l'},
        {"block", required_argument, NULL, 'b'},  {"depth", required_argument, NULL, 'd'},
        {"count", required_argument, NULL, 'c'},  {"duration", required_argument, NULL, 't'},
        {"huge-pages", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    kind = "";
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'f': device = optarg; break;
        case 'w': kind = optarg; break;
        case 'o': offset = amount_of(optarg); break;
        case 'l': length = amount_of(optarg); break;
        case 'b': block_size = amount_of(optarg); break;
        case 'd': depth = amount_of(optarg); break;
        case 'c': count_limit = amount_of(optarg); break;
        case 't': duration_s = amount_of(optarg); break;
        case 'h': huge_pages = true; break;
        default: exit(2);
        }
    }
    is_random = strncmp(kind, "rand", 4) == 0;
    writes = strcmp(is_random ? kind + 4 : kind, "write") == 0;
    bool reads = strcmp(is_random ? kind + 4 : kind, "read") == 0;
    if (device == NULL || (!writes && !reads) || block_size == 0 || block_size % 512 != 0 || offset % 512 != 0 ||
        depth == 0 || depth > MAX_DEPTH)
        usage();
}

static void open_region(void)
{
    uint64_t size;
    device_fd = open_device(device, writes ? O_RDWR : O_RDONLY, &size);
    uint64_t rest = size > offset ? size - offset : 0;
    length = length != 0 ? length : rest;
    if (length > rest || length < block_size)
        errx(2, "%s has %" PRIu64 " bytes from the offset on, too few", device, rest);
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    open_region();
    uint64_t began = now(), deadline = began + (duration_s != 0 ? duration_s : 2) * SECOND;
    if (depth == 1)
        one_at_a_time(deadline);
    else
        many_in_flight(deadline);
    double seconds = (double)(now() - began) / 1e9;
    printf("{\"rw\":\"%s\",\"block\":%" PRIu64 ",\"depth\":%" PRIu64 ",\"requests\":%" PRIu64 ",\"errors\":%" PRIu64
           ",\"seconds\":%.4f,\"iops\":%.1f,\"mib_per_s\":%.2f,",
           kind, block_size, depth, latency.count, failures, seconds, (double)latency.count / seconds,
           (double)(latency.count * block_size) / seconds / (1 << 20));
    print_latency();
    printf("}\n");
    return failures != 0;
}
