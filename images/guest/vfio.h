/*
 * PCI functions that a program has through VFIO: their registers, the memory that they reach, interrupts, states.
 *
 * Source: Linux, "VFIO - Virtual Function I/O" and <linux/vfio.h>. Functions share one container, so that all see the
 * same addresses, as the devices of one virtual machine do. Whatever must not fail ends the program with 2.
 */
#pragma once
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* What the headers of Linux 6.1 do not have. */
#ifndef VFIO_MIGRATION_PRE_COPY
#define VFIO_MIGRATION_PRE_COPY (1 << 2)
#define VFIO_DEVICE_STATE_PRE_COPY 6
#define VFIO_DEVICE_STATE_PRE_COPY_P2P 7
#define VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9
#define VFIO_MIG_GET_PRECOPY_INFO _IO(VFIO_TYPE, VFIO_BASE + 21)
struct vfio_device_feature_mig_data_size {
    __aligned_u64 stop_copy_length;
};
struct vfio_precopy_info {
    __u32 argsz;
    __u32 flags;
    __aligned_u64 initial_bytes;
    __aligned_u64 dirty_bytes;
};
#endif

enum { BARS = 6, MAX_VECTORS = 4 };

struct function {
    const char *address; /* as in 0000:01:01.0 */
    int device;
    uint64_t config;       /* where its configuration space is in `device` */
    uint8_t *bars[BARS];   /* NULL for one that cannot be mapped */
    unsigned vectors;      /* of MSI-X */
    int events[MAX_VECTORS]; /* eventfds, one for each vector that there is */
    uint64_t interrupts[MAX_VECTORS]; /* how many were taken from them */
    int stream;            /* of its migration, or -1 */
};

static const char *const state_names[] = {"error",    "stop",        "running",  "stop_copy",
                                          "resuming", "running_p2p", "pre_copy", "pre_copy_p2p"};
enum { STATES = sizeof state_names / sizeof *state_names };

static int open_container(void)
{
    int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
    if (container < 0 || ioctl(container, VFIO_GET_API_VERSION) != VFIO_API_VERSION ||
        ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) <= 0)
        err(2, "there is no VFIO");
    return container;
}

/* Lets the functions of the container reach memory, at an address of its own. */
static void map_memory(int container, void *memory, uint64_t address, uint64_t size)
{
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof map,
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)memory,
        .iova = address,
        .size = size,
    };
    if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map) != 0)
        err(2, "cannot map memory");
}

static int open_group(const char *address, int container)
{
    char link[PATH_MAX], group[PATH_MAX], path[PATH_MAX + 16];
    snprintf(link, sizeof link, "/sys/bus/pci/devices/%s/iommu_group", address);
    ssize_t size = readlink(link, group, sizeof group - 1);
    if (size < 0)
        err(2, "%s is not behind an IOMMU", address);
    group[size] = '\0';
    snprintf(path, sizeof path, "/dev/vfio/%s", strrchr(group, '/') + 1);
    int opened = open(path, O_RDWR | O_CLOEXEC);
    struct vfio_group_status status = {.argsz = sizeof status};
    if (opened < 0 || ioctl(opened, VFIO_GROUP_GET_STATUS, &status) != 0)
        err(2, "cannot open %s", path);
    if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE))
        errx(2, "the group of %s has another driver too", address);
    if (ioctl(opened, VFIO_GROUP_SET_CONTAINER, &container) != 0)
        err(2, "cannot have the group of %s", address);
    return opened;
}

static uint64_t region_of(struct function *function, uint32_t index, uint8_t **mapped)
{
    struct vfio_region_info region = {.argsz = sizeof region, .index = index};
    if (ioctl(function->device, VFIO_DEVICE_GET_REGION_INFO, &region) != 0)
        err(2, "%s has no region %u", function->address, index);
    if (mapped != NULL && region.flags & VFIO_REGION_INFO_FLAG_MMAP) {
        void *memory =
            mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, function->device, (off_t)region.offset);
        *mapped = memory == MAP_FAILED ? NULL : memory;
    }
    return region.offset;
}

static uint32_t read_config(const struct function *function, unsigned offset, unsigned size)
{
    uint32_t value = 0;
    if (pread(function->device, &value, size, (off_t)(function->config + offset)) != (ssize_t)size)
        err(2, "%s: cannot read its configuration space", function->address);
    return value;
}

static void write_config(const struct function *function, unsigned offset, uint32_t value, unsigned size)
{
    if (pwrite(function->device, &value, size, (off_t)(function->config + offset)) != (ssize_t)size)
        err(2, "%s: cannot write its configuration space", function->address);
}

/* Opens the function, which resets it. The first one of a container decides what translates for all. */
static void open_function(struct function *function, int container, bool first)
{
    int group = open_group(function->address, container);
    if (first && ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) != 0)
        err(2, "cannot use the IOMMU");
    function->device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, function->address);
    if (function->device < 0)
        err(2, "cannot open %s", function->address);
    function->config = region_of(function, VFIO_PCI_CONFIG_REGION_INDEX, NULL);
    for (uint32_t bar = 0; bar < BARS; bar++)
        region_of(function, VFIO_PCI_BAR0_REGION_INDEX + bar, &function->bars[bar]);
    struct vfio_irq_info irq = {.argsz = sizeof irq, .index = VFIO_PCI_MSIX_IRQ_INDEX};
    if (ioctl(function->device, VFIO_DEVICE_GET_IRQ_INFO, &irq) != 0)
        err(2, "%s has no MSI-X", function->address);
    function->vectors = irq.count < MAX_VECTORS ? irq.count : MAX_VECTORS;
    for (unsigned vector = 0; vector < function->vectors; vector++)
        function->events[vector] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    function->stream = -1;
}

/* Memory, bus master or both: bits of the command register. */
static void set_command(const struct function *function, uint16_t bits)
{
    write_config(function, PCI_COMMAND, bits, 2);
}

/* Has all vectors signalled, or none. */
static void set_interrupts(const struct function *function, bool on)
{
    struct {
        struct vfio_irq_set set;
        int32_t events[MAX_VECTORS];
    } irqs = {
        .set =
            {
                .argsz = sizeof irqs.set + (on ? function->vectors * sizeof *irqs.events : 0),
                .flags = VFIO_IRQ_SET_ACTION_TRIGGER | (on ? VFIO_IRQ_SET_DATA_EVENTFD : VFIO_IRQ_SET_DATA_NONE),
                .index = VFIO_PCI_MSIX_IRQ_INDEX,
                .count = on ? function->vectors : 0,
            },
    };
    memcpy(irqs.events, function->events, sizeof irqs.events);
    if (ioctl(function->device, VFIO_DEVICE_SET_IRQS, &irqs) != 0)
        err(2, "%s: cannot %s interrupts", function->address, on ? "enable" : "disable");
}

/* 0, or what it failed with. */
static int reset_function(const struct function *function)
{
    return ioctl(function->device, VFIO_DEVICE_RESET) == 0 ? 0 : errno;
}

/* Asks for a feature or sets one; 0, or what it failed with. `value` has `size` bytes. */
static int device_feature(const struct function *function, uint32_t flags, void *value, size_t size)
{
    union {
        struct vfio_device_feature feature;
        uint8_t bytes[sizeof(struct vfio_device_feature) + 64];
    } request = {.feature = {.argsz = sizeof request.feature + (uint32_t)size, .flags = flags}};
    memcpy(request.feature.data, value, size);
    if (ioctl(function->device, VFIO_DEVICE_FEATURE, &request) != 0)
        return errno;
    memcpy(value, request.feature.data, size);
    return 0;
}

/* The kinds of migration that the function can, as VFIO_MIGRATION_... bits; 0 for none at all. */
static uint64_t migration_flags(const struct function *function)
{
    struct vfio_device_feature_migration migration = {0};
    int failed = device_feature(function, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION, &migration,
                                sizeof migration);
    return failed ? 0 : migration.flags;
}

static const char *state_of(const struct function *function)
{
    struct vfio_device_feature_mig_state state = {0};
    int failed = device_feature(function, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &state,
                                sizeof state);
    return failed || state.device_state >= STATES ? "none" : state_names[state.device_state];
}

static void close_stream(struct function *function)
{
    if (function->stream >= 0)
        close(function->stream);
    function->stream = -1;
}

/* 0, or what it failed with. A new stream takes the place of the one before. */
static int set_state(struct function *function, uint32_t wanted)
{
    struct vfio_device_feature_mig_state state = {.device_state = wanted, .data_fd = -1};
    int failed = device_feature(function, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &state,
                                sizeof state);
    if (!failed && state.data_fd >= 0) {
        close_stream(function);
        function->stream = state.data_fd;
    }
    return failed;
}

/* How much the stream will have, if the function stops now. */
static int stream_size(const struct function *function, uint64_t *size)
{
    struct vfio_device_feature_mig_data_size found = {0};
    int failed = device_feature(function, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, &found,
                                sizeof found);
    *size = found.stop_copy_length;
    return failed;
}

/* How much of the stream is there to be read, while the function runs. */
static int precopy_left(const struct function *function, uint64_t *initial, uint64_t *dirty)
{
    struct vfio_precopy_info info = {.argsz = sizeof info};
    int failed = ioctl(function->stream, VFIO_MIG_GET_PRECOPY_INFO, &info) == 0 ? 0 : errno;
    *initial = info.initial_bytes;
    *dirty = info.dirty_bytes;
    return failed;
}
