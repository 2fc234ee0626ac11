/* What keeps a device busy, and checks what it does: a disk's requests, or frames of a network. */
#pragma once
#include "virtio_driver.h"

/* Prints the last line and ends the program. Each program has its own. */
static _Noreturn void done(void);

struct load {
    const char *name;
    uint64_t features; /* to take where they are offered */
    unsigned queues;
    void (*lay_out)(struct driver *driver); /* once: takes what it needs of the memory */
    void (*begin)(struct driver *driver);   /* after each start of the device */
    bool (*add)(struct driver *driver);     /* makes one more request available; false where no more are to be */
    void (*tell)(struct driver *driver);    /* tells the device of what was added */
    void (*feed)(struct driver *driver);    /* the other end's turn */
    void (*take)(struct driver *driver, unsigned queue, unsigned slot, uint32_t length);
    bool (*quiet)(const struct driver *driver);  /* whether nothing is under way */
    void (*forget)(const struct driver *driver); /* a reset: of what was under way nobody knows what became */
    void (*stopped)(void);                       /* what came to a device that stood still may be lost */
    void (*figures)(void);                       /* prints members of a JSON object */
};

static const struct load *load;
static unsigned depth = 32;
static uint64_t answered;  /* requests that were found to be right, or whose fault was told */
static int other_end = -1; /* where the other end's frames arrive */

static void take_all_used(struct driver *driver, unsigned index)
{
    uint32_t length = 0;
    for (int slot; (slot = take_used(&driver->queues[index], &length)) != NOTHING_USED;) {
        if (slot == USED_WRONGLY) {
            fault("used wrongly", index, 0, driver->queues[index].next_used);
            done();
        }
        load->take(driver, index, (unsigned)slot, length);
    }
}

/* A device that says nothing any more: how much it used in silence, of what was under way. */
static _Noreturn void give_up(struct driver *driver)
{
    for (unsigned index = 0; index < driver->queue_count; index++) {
        struct queue *queue = &driver->queues[index];
        uint64_t before = queue->under_way;
        uint32_t length;
        while (take_used(queue, &length) >= 0)
            ;
        fault("silence", index, before, before - queue->under_way);
    }
    done();
}

/* Waits for an interrupt or the other end, and does what is to be done then. */
static void attend(struct driver *driver)
{
    if (!wait_interrupt(driver, other_end))
        give_up(driver);
    for (unsigned index = 0; index < driver->queue_count; index++)
        if (take_interrupts(driver, index))
            take_all_used(driver, index);
    load->feed(driver);
}

/* As many requests as there are to be. */
static void fill(struct driver *driver)
{
    bool any = false;
    while (load->add(driver))
        any = true;
    if (any)
        load->tell(driver);
}

/* Until so many more are answered; others are under way then. */
static void serve(struct driver *driver, uint64_t more)
{
    for (uint64_t until = answered + more; answered < until;) {
        fill(driver);
        attend(driver);
    }
}

/* Until nothing is under way; the device is told of nothing. */
static void drain(struct driver *driver)
{
    while (!load->quiet(driver))
        attend(driver);
}
