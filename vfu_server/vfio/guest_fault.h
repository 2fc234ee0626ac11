/*
 * Survives SIGBUS in guest memory.
 *
 * A client can hand over a file that is shorter than the range it maps, or truncate it later. Touching what is
 * missing raises SIGBUS, which would end every function of the server. The handler puts zeros there instead, and
 * in all that follows, and counts the pages, so that the owner can see that the guest's memory is gone. One
 * mapping of the process becomes two by that and never more, whatever the client truncates when.
 */
#ifndef GUEST_FAULT_H
#define GUEST_FAULT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* How many mappings can be watched in a process. */
#define GUEST_FAULT_SLOTS 32768

/* One mapping. Read by the signal handler, so all of it is lock-free atomics. */
struct guest_fault_slot {
    _Atomic uintptr_t start;
    _Atomic uintptr_t end; /* of what is not lost; 0 while the slot is free */
    _Atomic size_t page_size;
    _Atomic uint64_t lost; /* pages */
    _Atomic(uint64_t *) total;
    struct guest_fault_slot *next_free;
};

/* Install the handler, once per process. Returns 0, or -1 with errno. */
int guest_fault_install(void);

/*
 * Watch [start, start + length), made of pages of page_size bytes. Pages that are lost are added to `total` too.
 * Returns NULL where all slots are taken.
 */
struct guest_fault_slot *guest_fault_watch(void *start, size_t length, size_t page_size, uint64_t *total);

/* How many pages of the slot were lost. */
static inline uint64_t
guest_fault_lost(struct guest_fault_slot *slot)
{
    return atomic_load_explicit(&slot->lost, memory_order_relaxed);
}

/* Stop watching, before the memory is unmapped. */
void guest_fault_forget(struct guest_fault_slot *slot);

#endif
