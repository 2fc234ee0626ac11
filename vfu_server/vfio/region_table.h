/*
 * Ranges of addresses that do not overlap, by address. Made for very many of them: a look-up searches two short arrays of
 * numbers, and a change moves a part of one of them. With 50,000 ranges that takes the same few steps as with a
 * thousand; what grows is how much of it the processor's caches lack.
 */
#ifndef REGION_TABLE_H
#define REGION_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct guest_fault_slot;

/* One range of guest addresses, [start, last]; guest_memory.pyx says what the rest is. */
struct region {
    uint64_t start;
    uint64_t last;
    char *host;                    /* NULL where it can't be reached */
    struct guest_fault_slot *slot;
    void *mapping;                 /* a Mapping, or NULL */
    uint64_t offset;               /* in the file */
    uint32_t prot;
};

struct region_table {
    size_t count;
    size_t chunks_used;
    size_t chunks_room;
    uint64_t *firsts; /* the start of each chunk's first range */
    struct region_chunk **chunks;
};

/* A region that has some of [start, last], or NULL. */
struct region *region_table_overlapping(const struct region_table *table, uint64_t start, uint64_t last);

/* Add a region that overlaps none. Returns false, with nothing changed, where there is no memory. */
bool region_table_insert(struct region_table *table, struct region *region);

/* Take out a region that is there. The caller frees it. */
void region_table_remove(struct region_table *table, struct region *region);

#endif
