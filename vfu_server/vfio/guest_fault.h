/*
 * Survives SIGBUS in guest memory.
 *
 * A client can hand over a file that is shorter than the range it maps, or truncate it later. Touching what is
 * missing raises SIGBUS, which would end every function of the server. The handler puts a page of zeros there
 * instead and counts it, so that the owner can see that the guest's memory is gone.
 */
#ifndef GUEST_FAULT_H
#define GUEST_FAULT_H

#include <stddef.h>
#include <stdint.h>

/* Install the handler, once per process. Returns 0, or -1 with errno. */
int guest_fault_install(void);

/* Watch [start, start + length), made of pages of page_size bytes. Returns a slot, or -1 where all are taken. */
int guest_fault_watch(void *start, size_t length, size_t page_size);

/* How many pages of the slot were lost. */
uint64_t guest_fault_lost(int slot);

/* Stop watching, before the memory is unmapped. */
void guest_fault_forget(int slot);

#endif
