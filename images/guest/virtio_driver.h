/*
 * A virtio driver whose device may move: its queues stay where they are in memory, and the function below changes.
 *
 * Source: virtio 1.4, "Virtio Over PCI Bus" and "Device Initialization". Queue N has vector N + 1, changes of the
 * configuration vector 0. A device that does not do as it must ends the program with 2.
 */
#pragma once
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <poll.h>
#include <stddef.h>

#include "faults.h"
#include "vfio.h"
#include "virtqueue.h"

enum { MAX_QUEUES = 3, MAX_FUNCTIONS = 4, CONFIG_SHOWN = 64, PATIENCE_MS = 20000 };

#define BIT(number) (UINT64_C(1) << (number))
#define MEMORY_AT UINT64_C(0x10000000) /* where devices find the memory */
#define MEMORY_SIZE (UINT64_C(1) << 20)

/* Where the structures of a function are. */
struct structures {
    volatile struct virtio_pci_common_cfg *common;
    volatile uint8_t *notify, *config;
    uint32_t notify_multiplier, config_size;
};

/* What a driver can read of its device and what must be the same wherever that is. */
struct registers {
    uint64_t features;
    uint16_t config_vector, queues;
    uint8_t status;
    struct {
        uint16_t size, vector, enabled;
        uint32_t parts[6];
    } queue[MAX_QUEUES];
    uint8_t config[CONFIG_SHOWN];
};

struct driver {
    struct function functions[MAX_FUNCTIONS];
    struct structures structures[MAX_FUNCTIONS];
    unsigned count, at; /* functions, and which of them is the device */
    uint64_t wanted, features;
    struct queue queues[MAX_QUEUES];
    uint32_t notify_at[MAX_QUEUES]; /* in the notify structure */
    unsigned queue_count;
    uint16_t queue_size; /* the largest that is wanted */
    uint8_t *memory;
    uint64_t used; /* of the memory */
};

static struct function *device_of(struct driver *driver)
{
    return &driver->functions[driver->at];
}

/* So many bytes of the memory, and where devices find them. */
static uint8_t *take_memory(struct driver *driver, uint64_t size, uint64_t *address)
{
    uint8_t *taken = driver->memory + driver->used;
    *address = MEMORY_AT + driver->used;
    driver->used += (size + 63) & ~UINT64_C(63);
    if (driver->used > MEMORY_SIZE)
        errx(2, "the memory is too small");
    return taken;
}

static void find_structures(const struct function *function, struct structures *found)
{
    *found = (struct structures){0};
    unsigned at = read_config(function, PCI_CAPABILITY_LIST, 1);
    for (; at != 0; at = read_config(function, at + PCI_CAP_LIST_NEXT, 1)) {
        if (read_config(function, at, 1) != PCI_CAP_ID_VNDR)
            continue;
        unsigned bar = read_config(function, at + VIRTIO_PCI_CAP_BAR, 1);
        if (bar >= BARS || function->bars[bar] == NULL)
            continue;
        uint8_t *structure = function->bars[bar] + read_config(function, at + VIRTIO_PCI_CAP_OFFSET, 4);
        uint32_t size = read_config(function, at + VIRTIO_PCI_CAP_LENGTH, 4);
        switch (read_config(function, at + VIRTIO_PCI_CAP_CFG_TYPE, 1)) {
        case VIRTIO_PCI_CAP_COMMON_CFG: found->common = (void *)structure; break;
        case VIRTIO_PCI_CAP_NOTIFY_CFG:
            found->notify = structure;
            found->notify_multiplier = read_config(function, at + VIRTIO_PCI_NOTIFY_CAP_MULT, 4);
            break;
        case VIRTIO_PCI_CAP_DEVICE_CFG:
            found->config = structure;
            found->config_size = size < CONFIG_SHOWN ? size : CONFIG_SHOWN;
            break;
        }
    }
    if (found->common == NULL || found->notify == NULL || found->config == NULL)
        errx(2, "%s has no virtio structures that can be mapped", function->address);
}

/* Opens all functions, with memory that each of them reaches. */
static void open_functions(struct driver *driver, char **addresses, unsigned count)
{
    int container = open_container();
    for (driver->count = 0; driver->count < count; driver->count++) {
        struct function *function = &driver->functions[driver->count];
        function->address = addresses[driver->count];
        open_function(function, container, driver->count == 0);
        set_command(function, PCI_COMMAND_MEMORY);
        find_structures(function, &driver->structures[driver->count]);
    }
    driver->memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (driver->memory == MAP_FAILED)
        err(2, "no memory");
    map_memory(container, driver->memory, MEMORY_AT, MEMORY_SIZE);
}

static void add_status(volatile struct virtio_pci_common_cfg *common, uint8_t bits)
{
    common->device_status = common->device_status | bits;
}

static uint64_t offered(volatile struct virtio_pci_common_cfg *common)
{
    common->device_feature_select = 0;
    uint64_t features = common->device_feature;
    common->device_feature_select = 1;
    return features | (uint64_t)common->device_feature << 32;
}

static void start_queue(struct driver *driver, uint16_t index, bool packed)
{
    volatile struct virtio_pci_common_cfg *common = driver->structures[driver->at].common;
    struct queue *queue = &driver->queues[index];
    common->queue_select = index;
    uint16_t size = common->queue_size < driver->queue_size ? common->queue_size : driver->queue_size;
    uint64_t address;
    if (queue->size == 0)
        take_memory(driver, size * sizeof(struct vring_desc) * 2 + 64, &address);
    else
        address = queue->parts[0];
    make_queue(queue, size, packed, driver->memory + (address - MEMORY_AT), address);
    common->queue_size = size;
    common->queue_msix_vector = (uint16_t)(index + 1);
    common->queue_desc_lo = (uint32_t)queue->parts[0];
    common->queue_desc_hi = 0;
    common->queue_avail_lo = (uint32_t)queue->parts[1];
    common->queue_avail_hi = 0;
    common->queue_used_lo = (uint32_t)queue->parts[2];
    common->queue_used_hi = 0;
    common->queue_enable = 1;
    driver->notify_at[index] = common->queue_notify_off * driver->structures[driver->at].notify_multiplier;
}

/* Starts the device with empty queues, from its reset on. `wanted` are the features to take where they are offered. */
static void start_device(struct driver *driver)
{
    struct function *function = device_of(driver);
    volatile struct virtio_pci_common_cfg *common = driver->structures[driver->at].common;
    set_command(function, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    set_interrupts(function, true);
    common->device_status = 0;
    while (common->device_status != 0)
        usleep(1000);
    add_status(common, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    add_status(common, VIRTIO_CONFIG_S_DRIVER);
    driver->features = offered(common) & driver->wanted;
    for (uint32_t word = 0; word < 2; word++) {
        common->guest_feature_select = word;
        common->guest_feature = (uint32_t)(driver->features >> 32 * word);
    }
    add_status(common, VIRTIO_CONFIG_S_FEATURES_OK);
    if (!(common->device_status & VIRTIO_CONFIG_S_FEATURES_OK))
        errx(2, "%s refuses the features %#" PRIx64, function->address, driver->features);
    common->msix_config = 0;
    for (uint16_t index = 0; index < driver->queue_count; index++)
        start_queue(driver, index, driver->features & BIT(VIRTIO_F_RING_PACKED));
    add_status(common, VIRTIO_CONFIG_S_DRIVER_OK);
}

static void notify(struct driver *driver, uint16_t index)
{
    atomic_thread_fence(memory_order_seq_cst);
    *(volatile uint16_t *)(driver->structures[driver->at].notify + driver->notify_at[index]) = index;
}

/* Takes the interrupts that came for a queue, from whichever function had it then; whether there were any. */
static bool take_interrupts(struct driver *driver, unsigned queue)
{
    bool any = false;
    for (unsigned index = 0; index < driver->count; index++) {
        struct function *function = &driver->functions[index];
        uint64_t count;
        if (queue + 1 < function->vectors && read(function->events[queue + 1], &count, sizeof count) == sizeof count) {
            function->interrupts[queue + 1] += count;
            any = true;
        }
    }
    return any;
}

/* Waits for an interrupt of any queue, or for another descriptor (or -1); whether one came in time. */
static bool wait_interrupt(struct driver *driver, int other)
{
    struct pollfd watched[MAX_FUNCTIONS * MAX_QUEUES + 1] = {{.fd = other, .events = POLLIN}};
    nfds_t count = 1;
    for (unsigned index = 0; index < driver->count; index++)
        for (unsigned queue = 0; queue < driver->queue_count && queue + 1 < driver->functions[index].vectors; queue++)
            watched[count++] = (struct pollfd){.fd = driver->functions[index].events[queue + 1], .events = POLLIN};
    return poll(watched, count, PATIENCE_MS) > 0;
}

static void read_registers(const struct driver *driver, struct registers *found)
{
    const struct structures *structures = &driver->structures[driver->at];
    volatile struct virtio_pci_common_cfg *common = structures->common;
    memset(found, 0, sizeof *found);
    for (uint32_t word = 0; word < 2; word++) {
        common->guest_feature_select = word;
        found->features |= (uint64_t)common->guest_feature << 32 * word;
    }
    found->config_vector = common->msix_config;
    found->queues = common->num_queues;
    found->status = common->device_status;
    for (uint16_t index = 0; index < driver->queue_count; index++) {
        common->queue_select = index;
        found->queue[index].size = common->queue_size;
        found->queue[index].vector = common->queue_msix_vector;
        found->queue[index].enabled = common->queue_enable;
        volatile uint32_t *parts = &common->queue_desc_lo;
        for (unsigned part = 0; part < 6; part++)
            found->queue[index].parts[part] = parts[part];
    }
    for (uint32_t offset = 0; offset < structures->config_size; offset++)
        found->config[offset] = structures->config[offset];
}
