/*
 * A driver's half of a virtqueue, split or packed, in memory that goes with it from device to device.
 *
 * Each buffer has a slot, whose number tells it from others; chains are of up to CHAIN descriptors, and in a split ring
 * a slot has descriptors of its own. Source: virtio 1.4, "Virtqueues".
 */
#pragma once
#include <linux/virtio_ring.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { CHAIN = 3, MAX_SLOTS = 64, WRAP = 1 << 15 };

#define PACKED_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define PACKED_USED (1u << VRING_PACKED_DESC_F_USED)

/* What of a chain one descriptor is for. */
struct piece {
    uint64_t address;
    uint32_t length;
    bool writable;
};

struct queue {
    bool packed;
    uint16_t size;
    struct vring split;
    struct vring_packed_desc *ring;
    uint64_t parts[3]; /* the addresses of descriptor, driver and device area */
    uint16_t next;     /* split: index of the next available one; packed: its place, with the wrap counter as bit 15 */
    uint16_t next_used; /* the same of the next used one */
    uint8_t taken[MAX_SLOTS]; /* descriptors of a buffer that is under way, else 0 */
    unsigned under_way;
};

/* Makes an empty queue of `memory`, which the device finds at `address`; what it takes of it. */
static uint64_t make_queue(struct queue *queue, uint16_t size, bool packed, uint8_t *memory, uint64_t address)
{
    uint64_t room = packed ? size * sizeof *queue->ring + 2 * sizeof(struct vring_packed_desc_event)
                           : vring_size(size, VRING_USED_ALIGN_SIZE);
    *queue = (struct queue){.packed = packed, .size = size};
    memset(memory, 0, room);
    vring_init(&queue->split, size, memory, VRING_USED_ALIGN_SIZE);
    queue->ring = (void *)memory;
    queue->parts[0] = address;
    queue->parts[1] = address + size * sizeof *queue->ring;
    queue->parts[2] = packed ? queue->parts[1] + sizeof(struct vring_packed_desc_event)
                             : address + (uint64_t)((uint8_t *)queue->split.used - memory);
    queue->next = queue->next_used = packed ? WRAP : 0;
    return (room + 63) & ~UINT64_C(63);
}

/* A place so many descriptors further on in a packed ring. */
static uint16_t ahead(const struct queue *queue, uint16_t place, unsigned count)
{
    unsigned offset = (place & ~WRAP) + count, wrap = place & WRAP;
    return (uint16_t)(offset < queue->size ? offset | wrap : (offset - queue->size) | (wrap ^ WRAP));
}

static void add_split(struct queue *queue, unsigned slot, const struct piece *pieces, unsigned count)
{
    unsigned head = slot * CHAIN;
    for (unsigned index = 0; index < count; index++)
        queue->split.desc[head + index] = (struct vring_desc){
            .addr = pieces[index].address,
            .len = pieces[index].length,
            .flags = (uint16_t)((pieces[index].writable ? VRING_DESC_F_WRITE : 0) |
                                (index + 1 < count ? VRING_DESC_F_NEXT : 0)),
            .next = (uint16_t)(head + index + 1),
        };
    queue->split.avail->ring[queue->next % queue->size] = (uint16_t)head;
    atomic_thread_fence(memory_order_release);
    *(volatile uint16_t *)&queue->split.avail->idx = ++queue->next;
}

static void add_packed(struct queue *queue, unsigned slot, const struct piece *pieces, unsigned count)
{
    unsigned first = queue->next & ~WRAP, first_flags = 0;
    for (unsigned index = 0; index < count; index++) {
        struct vring_packed_desc *descriptor = &queue->ring[queue->next & ~WRAP];
        unsigned flags = (pieces[index].writable ? VRING_DESC_F_WRITE : 0) |
                         (index + 1 < count ? VRING_DESC_F_NEXT : 0) |
                         (queue->next & WRAP ? PACKED_AVAIL : PACKED_USED);
        descriptor->addr = pieces[index].address;
        descriptor->len = pieces[index].length;
        descriptor->id = (uint16_t)slot;
        if (index == 0)
            first_flags = flags;
        else
            descriptor->flags = (uint16_t)flags;
        queue->next = ahead(queue, queue->next, 1);
    }
    atomic_thread_fence(memory_order_release);
    *(volatile uint16_t *)&queue->ring[first].flags = (uint16_t)first_flags;
}

/* Makes the buffer of a slot, which is not under way, available. The device is not told. */
static void add_buffer(struct queue *queue, unsigned slot, const struct piece *pieces, unsigned count)
{
    (queue->packed ? add_packed : add_split)(queue, slot, pieces, count);
    queue->taken[slot] = (uint8_t)count;
    queue->under_way++;
}

/* A slot that is not under way, or -1. */
static int free_slot(const struct queue *queue, unsigned slots)
{
    for (unsigned slot = 0; slot < slots; slot++)
        if (queue->taken[slot] == 0)
            return (int)slot;
    return -1;
}

static bool next_split(struct queue *queue, uint32_t *id, uint32_t *length)
{
    if (*(volatile uint16_t *)&queue->split.used->idx == queue->next_used)
        return false;
    atomic_thread_fence(memory_order_acquire);
    const struct vring_used_elem *used = &queue->split.used->ring[queue->next_used++ % queue->size];
    *id = used->id % CHAIN == 0 ? used->id / CHAIN : MAX_SLOTS;
    *length = used->len;
    return true;
}

static bool next_packed(struct queue *queue, uint32_t *id, uint32_t *length)
{
    const struct vring_packed_desc *descriptor = &queue->ring[queue->next_used & ~WRAP];
    unsigned flags = *(const volatile uint16_t *)&descriptor->flags & (PACKED_AVAIL | PACKED_USED);
    if (flags != (queue->next_used & WRAP ? PACKED_AVAIL | PACKED_USED : 0))
        return false;
    atomic_thread_fence(memory_order_acquire);
    *id = descriptor->id;
    *length = descriptor->len;
    if (*id < MAX_SLOTS)
        queue->next_used = ahead(queue, queue->next_used, queue->taken[*id]);
    return true;
}

enum { NOTHING_USED = -1, USED_WRONGLY = -2 };

/* The slot of the next used buffer and what was written to it; or NOTHING_USED; or USED_WRONGLY: not under way. */
static int take_used(struct queue *queue, uint32_t *length)
{
    uint32_t id;
    if (!(queue->packed ? next_packed : next_split)(queue, &id, length))
        return NOTHING_USED;
    if (id >= MAX_SLOTS || queue->taken[id] == 0)
        return USED_WRONGLY;
    queue->taken[id] = 0;
    queue->under_way--;
    return (int)id;
}
