/*
 * Keeps disks of VFs busy: reads or writes of one size, DEPTH in flight on one queue of each VF, from one thread.
 *
 *   vf-load read|write DEPTH SIZE SECTORS SECONDS MEMORY BASE VF...
 *
 * A driver has set the VFs up before, and leaves them alone meanwhile. MEMORY is the descriptor of the file that is their
 * memory, which devices find at BASE, SECTORS the size of each disk; it ends after SECONDS, or at SIGTERM. Each VF is
 *
 *   SOCKET:KICK:EVENT:ENTRIES:DESCRIPTORS:AVAILABLE:USED:ROOM
 *
 * with the descriptor of its connection, the message that notifies the queue in hexadecimal, the descriptor of the queue's
 * eventfd, and its split ring (EVENT_IDX), with nothing in flight. ROOM is where requests go: DEPTH times SIZE bytes of data,
 * then headers of 16 bytes, then a byte for each status. BASE, the areas and ROOM are addresses as devices find them.
 *
 * Prints "ready" when all are busy, from when on time and requests count, and at the end one JSON line:
 *   {"requests":N,"slowest":those of the slowest VF,"kicks":N,"seconds":S,"cpu_seconds":of this program,"begun":N}
 * where "begun" counts also the requests that were under way when it was to end, and are waited for.
 * Ends with 0, 1 when a request failed or none completes any more, 2 when it could not start.
 *
 * Source: virtio 1.4, "Split Virtqueues" and "Block Device".
 */
#include <err.h>
#include <inttypes.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "options.h"

enum { CHAIN = 3, MAX_VFS = 1024, MAX_KICK = 64, SECTOR = 512, NO_STATUS = 0xff, PATIENCE_MS = 20000 };

struct vf {
    int socket, event;
    uint8_t kick[MAX_KICK];
    size_t kick_size;
    struct vring ring;
    volatile uint16_t *used_event, *avail_event;
    uint16_t next, told, next_used; /* indices: of the next available one, of those that the device was told of */
    struct virtio_blk_outhdr *headers;
    uint8_t *statuses;
    uint64_t begun, done, kicks;
};

static bool writes;
static uint64_t depth, size, sectors, base;
static uint8_t *memory;
static struct vf vfs[MAX_VFS];
static unsigned count;
static volatile sig_atomic_t stopping;

static void on_stop(int number)
{
    (void)number;
    stopping = 1;
}

/* How far the device has come. */
static uint16_t used_index(const struct vf *vf)
{
    uint16_t index = *(volatile uint16_t *)&vf->ring.used->idx;
    atomic_thread_fence(memory_order_acquire);
    return index;
}

/* Makes a slot's request available once more, for the next place on the disk. The device is not told. */
static void add(struct vf *vf, uint64_t slot)
{
    uint64_t blocks = sectors * SECTOR / size;
    /* An odd step, so that each place of a disk of a power of two has its turn. */
    vf->headers[slot].sector = vf->begun++ * 977 % blocks * (size / SECTOR);
    vf->statuses[slot] = NO_STATUS;
    vf->ring.avail->ring[vf->next++ % vf->ring.num] = (uint16_t)(slot * CHAIN);
}

/* Publishes what was added, and notifies the device where it wants to know. */
static void publish(struct vf *vf)
{
    if (vf->next == vf->told)
        return;
    atomic_thread_fence(memory_order_release);
    *(volatile uint16_t *)&vf->ring.avail->idx = vf->next;
    atomic_thread_fence(memory_order_seq_cst);
    if (vring_need_event(*vf->avail_event, vf->next, vf->told)) {
        if (send(vf->socket, vf->kick, vf->kick_size, MSG_NOSIGNAL) != (ssize_t)vf->kick_size)
            err(1, "the server takes no kick");
        vf->kicks++;
    }
    vf->told = vf->next;
}

/* Takes what was used, makes it available again unless all ends, and asks for the next interrupt. */
static void turn(struct vf *vf)
{
    for (uint16_t used = used_index(vf); vf->next_used != used; vf->done++) {
        uint32_t slot = vf->ring.used->ring[vf->next_used++ % vf->ring.num].id / CHAIN;
        if (slot >= depth)
            errx(1, "a buffer was used that was not there");
        if (vf->statuses[slot] != VIRTIO_BLK_S_OK)
            errx(1, "a request ended with status %u", vf->statuses[slot]);
        if (!stopping)
            add(vf, slot);
    }
    publish(vf);
    *vf->used_event = vf->next_used;
    atomic_thread_fence(memory_order_seq_cst);
    /* What was used before the device saw that has no interrupt. It waits its turn, or others would have none. */
    if (used_index(vf) != vf->next_used)
        eventfd_write(vf->event, 1);
}

static void *at(uint64_t address)
{
    return memory + (address - base);
}

static void make_requests(struct vf *vf, uint64_t room)
{
    uint64_t headers = room + depth * size, statuses = headers + depth * sizeof *vf->headers;
    vf->headers = at(headers);
    vf->statuses = at(statuses);
    for (uint64_t slot = 0; slot < depth; slot++) {
        struct vring_desc *chain = &vf->ring.desc[slot * CHAIN];
        uint16_t data_flags = writes ? 0 : VRING_DESC_F_WRITE, next = (uint16_t)(slot * CHAIN + 1);
        vf->headers[slot] = (struct virtio_blk_outhdr){.type = writes ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN};
        chain[0] = (struct vring_desc){headers + slot * sizeof *vf->headers, sizeof *vf->headers, VRING_DESC_F_NEXT, next};
        chain[1] = (struct vring_desc){room + slot * size, (uint32_t)size, data_flags | VRING_DESC_F_NEXT,
                                       (uint16_t)(next + 1)};
        chain[2] = (struct vring_desc){statuses + slot, 1, VRING_DESC_F_WRITE, 0};
    }
}

static void take_vf(struct vf *vf, const char *text)
{
    char kick[2 * MAX_KICK + 1];
    uint64_t available, used, descriptors, room;
    if (sscanf(text, "%d:%128[0-9a-f]:%d:%u:%" SCNu64 ":%" SCNu64 ":%" SCNu64 ":%" SCNu64, &vf->socket, kick, &vf->event,
               &vf->ring.num, &descriptors, &available, &used, &room) != 8 ||
        depth * CHAIN > vf->ring.num)
        usage();
    for (const char *digits = kick; sscanf(digits, "%2hhx", &vf->kick[vf->kick_size]) == 1; digits += 2)
        vf->kick_size++;
    vf->ring.desc = at(descriptors);
    vf->ring.avail = at(available);
    vf->ring.used = at(used);
    vf->used_event = &vf->ring.avail->ring[vf->ring.num];
    vf->avail_event = (uint16_t *)&vf->ring.used->ring[vf->ring.num];
    vf->next = vf->told = vf->ring.avail->idx;
    vf->next_used = vf->ring.used->idx;
    if (vf->next != vf->next_used)
        errx(2, "something is in flight already");
    make_requests(vf, room);
}

static void map_memory(int descriptor)
{
    struct stat status;
    if (fstat(descriptor, &status) != 0)
        err(2, "the memory");
    memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (memory == MAP_FAILED)
        err(2, "the memory");
}

static int watch_events(void)
{
    int watch = epoll_create1(EPOLL_CLOEXEC);
    for (unsigned index = 0; index < count; index++) {
        /* By its edges, so that nobody needs to read it. */
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = index};
        if (watch < 0 || epoll_ctl(watch, EPOLL_CTL_ADD, vfs[index].event, &event) != 0)
            err(2, "epoll");
    }
    return watch;
}

/* Waits for interrupts, and gives their VFs a turn. */
static void serve(int watch)
{
    struct epoll_event events[MAX_VFS];
    int ready = epoll_wait(watch, events, MAX_VFS, PATIENCE_MS);
    if (ready == 0)
        errx(1, "nothing completes any more");
    for (int index = 0; index < ready; index++)
        turn(&vfs[events[index].data.u32]);
}

/* What all VFs come to, and what the slowest one has done. */
struct totals {
    uint64_t begun, done, slowest, kicks;
};

static struct totals totals(void)
{
    struct totals found = {.slowest = UINT64_MAX};
    for (const struct vf *vf = vfs; vf < vfs + count; vf++) {
        found.begun += vf->begun;
        found.done += vf->done;
        found.slowest = vf->done < found.slowest ? vf->done : found.slowest;
        found.kicks += vf->kicks;
    }
    return found;
}

/* Begins anew to count, with what is in flight. */
static void forget_counts(void)
{
    for (struct vf *vf = vfs; vf < vfs + count; vf++) {
        vf->begun -= vf->done;
        vf->done = vf->kicks = 0;
    }
}

static void usage(void)
{
    fprintf(stderr, "usage: vf-load read|write DEPTH SIZE SECTORS SECONDS MEMORY BASE VF...\n");
    exit(2);
}

int main(int argc, char **argv)
{
    enum { FIRST_VF = 8 };
    if (argc <= FIRST_VF || argc > FIRST_VF + MAX_VFS)
        usage();
    writes = strcmp(argv[1], "write") == 0;
    depth = number_of(argv[2]);
    size = number_of(argv[3]);
    sectors = number_of(argv[4]);
    double seconds = atof(argv[5]);
    if (size == 0 || size % SECTOR != 0 || sectors * SECTOR < size || seconds <= 0)
        usage();
    map_memory((int)number_of(argv[6]));
    base = number_of(argv[7]);
    for (count = 0; FIRST_VF + (int)count < argc; count++)
        take_vf(&vfs[count], argv[FIRST_VF + count]);
    signal(SIGTERM, on_stop);
    int watch = watch_events();

    for (unsigned index = 0; index < count; index++) {
        for (uint64_t slot = 0; slot < depth; slot++)
            add(&vfs[index], slot);
        turn(&vfs[index]);
    }
    /* Until each has shown that it works, the rest are not yet as busy as they will be. */
    while (!stopping && totals().slowest < depth)
        serve(watch);
    forget_counts();
    uint64_t began = now(), cpu = now_on(CLOCK_PROCESS_CPUTIME_ID);
    puts("ready");
    fflush(stdout);
    while (!stopping && now() - began < (uint64_t)(seconds * 1e9))
        serve(watch);
    double took = (double)(now() - began) / 1e9, cpu_took = (double)(now_on(CLOCK_PROCESS_CPUTIME_ID) - cpu) / 1e9;
    struct totals within = totals(), all = within;
    for (stopping = 1; all.done < all.begun; all = totals())
        serve(watch);
    printf("{\"requests\":%" PRIu64 ",\"slowest\":%" PRIu64 ",\"kicks\":%" PRIu64
           ",\"seconds\":%.6f,\"cpu_seconds\":%.6f,\"begun\":%" PRIu64 "}\n",
           within.done, within.slowest, within.kicks, took, cpu_took, all.begun);
}
