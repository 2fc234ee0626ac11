/*
 * A device moves from one function to another, as a virtual machine's monitor has it do.
 *
 * What is made available before it stops, and after it, must be answered where it goes on, without being told of again.
 * Memory must not be written to between stop and start, and registers must be as they were.
 */
#pragma once
#include "clock.h"
#include "load.h"

enum { STREAM_SIZE = 1 << 20, PIECE = 1000 /* of a stream that is written: records are cut anywhere */, TURNS = 3 };

/* What a step has to tell: why it failed, if it did, and members for its line. */
static int failed;
static const char *failed_by;
static char told[1024];

static bool renew;       /* a function that the device has left is reset */
static bool master_last; /* a function may not use the bus before it runs */
static bool plain;       /* what is optional of a stream is left out */
static uint64_t moves;
static struct registers noted;

/* Takes the name of what is tried; whether it failed, which ends a step. */
static bool refused(const char *what, int error)
{
    failed = error;
    failed_by = what;
    return error != 0;
}

/* Reads while there is something; 0, or what it failed with. */
static int read_stream(const struct function *function, uint8_t *stream, size_t *size)
{
    for (;;) {
        ssize_t got = read(function->stream, stream + *size, STREAM_SIZE - *size);
        if (got <= 0)
            return got == 0 || errno == ENOMSG ? 0 : errno;
        *size += (size_t)got;
    }
}

static int write_stream(const struct function *function, const uint8_t *stream, size_t size, size_t *taken)
{
    for (*taken = 0; *taken < size;) {
        size_t piece = size - *taken < PIECE ? size - *taken : PIECE;
        ssize_t got = write(function->stream, stream + *taken, piece);
        if (got < 0)
            return errno;
        *taken += (size_t)got;
    }
    return 0;
}

/* Of a stream, as Linux has it: a record's head, behind which parts follow each other. */
struct record {
    uint64_t size;
    uint32_t flags, tag;
};

/* Of a device part, virtio 1.4. */
struct part {
    uint16_t type;
    uint8_t flags, reserved;
    uint8_t selector[8];
    uint32_t length;
} __attribute__((packed));
enum { PART_OPTIONAL = 1 };

/* Leaves all optional parts out of a stream; its size then. */
static size_t without_optional(uint8_t *stream, size_t size)
{
    size_t kept = 0;
    for (size_t at = 0; at < size;) {
        struct record record;
        memcpy(&record, stream + at, sizeof record);
        at += sizeof record;
        size_t head = kept, end = at + record.size;
        kept += sizeof record;
        while (at < end) {
            struct part part;
            memcpy(&part, stream + at, sizeof part);
            size_t whole = sizeof part + part.length;
            if (!(part.flags & PART_OPTIONAL)) {
                memmove(stream + kept, stream + at, whole);
                kept += whole;
            }
            at += whole;
        }
        record.size = kept - head - sizeof record;
        memcpy(stream + head, &record, sizeof record);
    }
    return kept;
}

/* They are as they were noted; what a driver writes of the configuration is optional in a stream. */
static void compare_registers(const struct driver *driver)
{
    struct registers found;
    read_registers(driver, &found);
    const uint8_t *before = (const uint8_t *)&noted, *after = (const uint8_t *)&found;
    for (size_t offset = 0; offset < (plain ? offsetof(struct registers, config) : sizeof found); offset++)
        if (before[offset] != after[offset])
            fault("register", offset, before[offset], after[offset]);
}

static void compare_memory(const uint8_t *before, const uint8_t *after)
{
    for (size_t offset = 0; offset < MEMORY_SIZE; offset++)
        if (before[offset] != after[offset]) {
            fault("written while stopped", offset, before[offset], after[offset]);
            break;
        }
}

/* The stream of a device that runs at first and has stopped in the end. */
static bool leave(struct driver *driver, bool precopy, uint8_t *stream, size_t *size)
{
    struct function *source = device_of(driver);
    uint64_t initial, dirty, expected, left = 0;
    if (refused("size", stream_size(source, &expected)))
        return false;
    if (precopy && refused("pre_copy", set_state(source, VFIO_DEVICE_STATE_PRE_COPY)))
        return false;
    for (unsigned turn = 0; precopy && turn < TURNS; turn++) {
        if (refused("read", read_stream(source, stream, size)) ||
            refused("precopy_info", precopy_left(source, &initial, &dirty)))
            return false;
        left += initial + dirty;
        serve(driver, depth);
    }
    if (precopy && refused("read", read_stream(source, stream, size)))
        return false;
    size_t before = *size;
    fill(driver);
    if (refused("stop_copy", set_state(source, VFIO_DEVICE_STATE_STOP_COPY)) ||
        refused("read", read_stream(source, stream, size)))
        return false;
    snprintf(told, sizeof told, ",\"precopy\":%zu,\"left\":%" PRIu64 ",\"stream\":%zu,\"size\":%" PRIu64, before, left,
             *size, expected);
    return true;
}

/* Configuration space is not of the stream: command and MSI-X are handed over beside it. */
static bool arrive(struct driver *driver, struct function *target, const uint8_t *stream, size_t size)
{
    static uint8_t memory[MEMORY_SIZE];
    size_t taken;
    memcpy(memory, driver->memory, MEMORY_SIZE);
    if (refused("resuming", set_state(target, VFIO_DEVICE_STATE_RESUMING)) ||
        refused("write", write_stream(target, stream, size, &taken)))
        return false;
    set_command(target, master_last ? PCI_COMMAND_MEMORY : PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    set_interrupts(target, true);
    if (!master_last)
        compare_memory(memory, driver->memory);
    if (refused("running", set_state(target, VFIO_DEVICE_STATE_RUNNING)))
        return false;
    if (master_last) {
        compare_memory(memory, driver->memory);
        set_command(target, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    }
    return true;
}

/* Of a function that the device has left. Before, an interrupt of it may still be on its way to another processor. */
static void let_go(struct function *source)
{
    close_stream(source);
    set_interrupts(source, false);
    set_command(source, PCI_COMMAND_MEMORY);
    if (renew)
        refused("reset", reset_function(source));
}

/* Where that is refused, the device goes on where it was. */
static void move_to(struct driver *driver, unsigned where, bool precopy)
{
    static uint8_t stream[STREAM_SIZE];
    struct function *source = device_of(driver), *target = &driver->functions[where];
    size_t size = 0;
    uint64_t began = now();
    read_registers(driver, &noted);
    if (!leave(driver, precopy, stream, &size)) {
        set_state(source, VFIO_DEVICE_STATE_RUNNING);
        return;
    }
    uint64_t stopped = now();
    while (load->add(driver))
        ;
    load->tell(driver);
    load->feed(driver);
    if (plain)
        size = without_optional(stream, size);
    bool arrived = arrive(driver, target, stream, size);
    uint64_t ran = now();
    load->stopped();
    close_stream(target);
    if (!arrived) {
        set_state(target, VFIO_DEVICE_STATE_RUNNING);
        set_state(source, VFIO_DEVICE_STATE_RUNNING);
        return;
    }
    driver->at = where;
    moves++;
    drain(driver);
    compare_registers(driver);
    let_go(source);
    snprintf(told + strlen(told), sizeof told - strlen(told), ",\"stopped_ms\":%.1f,\"all_ms\":%.1f",
             (double)(ran - stopped) / 1e6, (double)(now() - began) / 1e6);
}
