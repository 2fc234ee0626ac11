/*
 * Requests of a disk, DEPTH of them at a time, in a random order, each of one block and no two of the same one.
 *
 * A block holds its number, its version and noise that both make; what is read must be what was written last.
 */
#pragma once
#include <linux/virtio_blk.h>

#include "load.h"
#include "random.h"

enum { BLOCK = 4096, BLOCKS = 1024, WORDS = BLOCK / 8, SECTORS = BLOCK / 512 };

/* What a device is given of one slot: header, data and status. */
struct request {
    struct virtio_blk_outhdr header;
    uint8_t status;
};

static struct {
    struct request *requests;
    uint64_t (*data)[WORDS];
    uint64_t requests_at, data_at;
    unsigned block_of[MAX_SLOTS];
    bool busy[BLOCKS];
    /* The version that a block has, and one that it may have: that of a write which a reset cut off. */
    uint64_t version[BLOCKS], uncertain[BLOCKS];
    uint64_t newest, random;
    uint64_t written, read, checked;
    bool checking; /* all blocks are read, in order, and nothing is written */
} disk = {.random = 1};

static void fill_block(uint64_t *words, uint64_t block, uint64_t version)
{
    uint64_t state = scattered(version * BLOCKS + block) | 1;
    words[0] = block;
    words[1] = version;
    for (size_t index = 2; index < WORDS; index++)
        words[index] = random_step(&state);
}

static void judge_block(const uint64_t *words, unsigned block)
{
    static uint64_t expected[WORDS];
    if (disk.uncertain[block] != 0 && words[1] == disk.uncertain[block])
        disk.version[block] = disk.uncertain[block];
    disk.uncertain[block] = 0;
    fill_block(expected, block, disk.version[block]);
    if (memcmp(words, expected, BLOCK) != 0)
        fault("content", block, disk.version[block], words[1]);
}

static void lay_out_disk(struct driver *driver)
{
    disk.requests = (void *)take_memory(driver, depth * sizeof *disk.requests, &disk.requests_at);
    disk.data = (void *)take_memory(driver, depth * (uint64_t)BLOCK, &disk.data_at);
}

/* Has the device write through, which no part of the standard carries. */
static void begin_disk(struct driver *driver)
{
    if (driver->features & BIT(VIRTIO_BLK_F_CONFIG_WCE))
        driver->structures[driver->at].config[offsetof(struct virtio_blk_config, wce)] = 0;
}

static bool next_block(unsigned *block)
{
    if (!disk.checking) {
        do
            *block = (unsigned)(random_step(&disk.random) % BLOCKS);
        while (disk.busy[*block]);
        return true;
    }
    while (disk.checked < BLOCKS && disk.version[disk.checked] == 0)
        disk.checked++;
    *block = (unsigned)disk.checked++;
    return *block < BLOCKS;
}

static bool add_request(struct driver *driver)
{
    struct queue *queue = &driver->queues[0];
    int slot = free_slot(queue, depth);
    unsigned block;
    if (slot < 0 || !next_block(&block))
        return false;
    /* What is uncertain is looked at before it is written again. */
    bool write = disk.version[block] == 0 || (disk.uncertain[block] == 0 && random_step(&disk.random) % 4 != 0);
    write &= !disk.checking;
    struct request *request = &disk.requests[slot];
    *request = (struct request){
        .header = {.type = write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, .sector = block * (uint64_t)SECTORS},
        .status = 0xff,
    };
    if (write)
        fill_block(disk.data[slot], block, ++disk.newest);
    else
        memset(disk.data[slot], 0xa5, BLOCK); /* so that a read that transfers nothing is seen */
    disk.block_of[slot] = block;
    disk.busy[block] = true;
    uint64_t at = disk.requests_at + (unsigned)slot * sizeof *request;
    struct piece pieces[CHAIN] = {
        {at, sizeof request->header, false},
        {disk.data_at + (unsigned)slot * (uint64_t)BLOCK, BLOCK, !write},
        {at + offsetof(struct request, status), 1, true},
    };
    add_buffer(queue, (unsigned)slot, pieces, CHAIN);
    return true;
}

static void tell_disk(struct driver *driver)
{
    notify(driver, 0);
}

static void take_request(struct driver *driver, unsigned queue, unsigned slot, uint32_t length)
{
    const struct request *request = &disk.requests[slot];
    unsigned block = disk.block_of[slot];
    bool write = request->header.type == VIRTIO_BLK_T_OUT;
    uint32_t expected = write ? 1 : BLOCK + 1;
    if (request->status != VIRTIO_BLK_S_OK || length != expected)
        fault("request", block, expected, length + UINT64_C(1000000) * request->status);
    if (write) {
        disk.version[block] = disk.data[slot][1];
        disk.uncertain[block] = 0;
        disk.written++;
    } else {
        judge_block(disk.data[slot], block);
        disk.read++;
    }
    disk.busy[block] = false;
    answered++;
    (void)driver, (void)queue;
}

static bool disk_is_quiet(const struct driver *driver)
{
    return driver->queues[0].under_way == 0;
}

static void forget_requests(const struct driver *driver)
{
    for (unsigned slot = 0; slot < depth; slot++) {
        if (driver->queues[0].taken[slot] == 0)
            continue;
        unsigned block = disk.block_of[slot];
        if (disk.requests[slot].header.type == VIRTIO_BLK_T_OUT)
            disk.uncertain[block] = disk.data[slot][1];
        disk.busy[block] = false;
    }
}

static void disk_figures(void)
{
    printf("\"written\":%" PRIu64 ",\"read\":%" PRIu64, disk.written, disk.read);
}

/* A disk says nothing of its own accord. */
static void feed_disk(struct driver *driver)
{
    (void)driver;
}

static void disk_stopped(void)
{
}

static void begin_check(void)
{
    disk.checking = true;
    disk.checked = 0;
}

static bool check_is_over(void)
{
    disk.checking = disk.checked < BLOCKS;
    return !disk.checking;
}

static const struct load blk_load = {
    .name = "blk",
    .features = BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_CONFIG_WCE),
    .queues = 1,
    .lay_out = lay_out_disk,
    .begin = begin_disk,
    .add = add_request,
    .tell = tell_disk,
    .feed = feed_disk,
    .take = take_request,
    .quiet = disk_is_quiet,
    .forget = forget_requests,
    .stopped = disk_stopped,
    .figures = disk_figures,
};
