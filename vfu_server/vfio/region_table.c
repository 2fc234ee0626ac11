#include "region_table.h"

#include <stdlib.h>
#include <string.h>

/* Ranges of one chunk. Two neighbours have more than half of it between them. */
#define CHUNK 256

struct region_chunk {
    size_t count;
    uint64_t starts[CHUNK];
    struct region *regions[CHUNK];
};

/* How many of the ascending `values` are not above `limit`. */
static size_t
up_to(const uint64_t *values, size_t count, uint64_t limit)
{
    size_t base = 0;

    while (count > 1) {
        size_t half = count / 2;

        base += values[base + half - 1] <= limit ? half : 0;
        count -= half;
    }
    return base + (count == 1 && values[base] <= limit);
}

struct region *
region_table_overlapping(const struct region_table *table, uint64_t start, uint64_t last)
{
    /* Of all that start at or before `last`, the last one ends last. */
    size_t chunk = up_to(table->firsts, table->chunks_used, last);

    if (chunk == 0) {
        return NULL;
    }
    const struct region_chunk *in = table->chunks[chunk - 1];
    struct region *region = in->regions[up_to(in->starts, in->count, last) - 1];
    return region->last >= start ? region : NULL;
}

static void
shift(struct region_chunk *chunk, size_t from, size_t to)
{
    size_t count = chunk->count - from;

    memmove(&chunk->starts[to], &chunk->starts[from], count * sizeof(chunk->starts[0]));
    memmove(&chunk->regions[to], &chunk->regions[from], count * sizeof(chunk->regions[0]));
}

static void
shift_chunks(struct region_table *table, size_t from, size_t to)
{
    size_t count = table->chunks_used - from;

    memmove(&table->firsts[to], &table->firsts[from], count * sizeof(table->firsts[0]));
    memmove(&table->chunks[to], &table->chunks[from], count * sizeof(table->chunks[0]));
}

/* Put an empty chunk at `at`. */
static bool
add_chunk(struct region_table *table, size_t at)
{
    if (table->chunks_used == table->chunks_room) {
        size_t room = table->chunks_room == 0 ? 8 : 2 * table->chunks_room;
        uint64_t *firsts = realloc(table->firsts, room * sizeof(*firsts));

        if (firsts == NULL) {
            return false;
        }
        table->firsts = firsts;
        struct region_chunk **chunks = realloc(table->chunks, room * sizeof(struct region_chunk *));
        if (chunks == NULL) {
            return false;
        }
        table->chunks = chunks;
        table->chunks_room = room;
    }
    struct region_chunk *chunk = malloc(sizeof(*chunk));
    if (chunk == NULL) {
        return false;
    }
    chunk->count = 0;
    shift_chunks(table, at, at + 1);
    table->chunks[at] = chunk;
    table->chunks_used++;
    return true;
}

/* Append what chunk `from` has from `first` on to chunk `to`. */
static void
move(struct region_table *table, size_t from, size_t first, size_t to)
{
    struct region_chunk *source = table->chunks[from];
    struct region_chunk *target = table->chunks[to];
    size_t count = source->count - first;

    memcpy(&target->starts[target->count], &source->starts[first], count * sizeof(source->starts[0]));
    memcpy(&target->regions[target->count], &source->regions[first], count * sizeof(source->regions[0]));
    target->count += count;
    source->count = first;
    table->firsts[to] = target->starts[0];
}

bool
region_table_insert(struct region_table *table, struct region *region)
{
    size_t at = up_to(table->firsts, table->chunks_used, region->start);

    at -= at > 0;
    if (table->chunks_used == 0 && !add_chunk(table, 0)) {
        return false;
    }
    if (table->chunks[at]->count == CHUNK) {
        if (!add_chunk(table, at + 1)) {
            return false;
        }
        move(table, at, CHUNK / 2, at + 1);
        at += table->firsts[at + 1] <= region->start;
    }
    struct region_chunk *chunk = table->chunks[at];
    size_t place = up_to(chunk->starts, chunk->count, region->start);
    shift(chunk, place, place + 1);
    chunk->starts[place] = region->start;
    chunk->regions[place] = region;
    chunk->count++;
    table->firsts[at] = chunk->starts[0];
    table->count++;
    return true;
}

static void
drop_chunk(struct region_table *table, size_t at)
{
    free(table->chunks[at]);
    shift_chunks(table, at + 1, at);
    table->chunks_used--;
}

/* Have chunk `at` take in the one after it, if the two are small. */
static void
join(struct region_table *table, size_t at)
{
    if (at + 1 < table->chunks_used &&
        table->chunks[at]->count + table->chunks[at + 1]->count <= CHUNK / 2) {
        move(table, at + 1, 0, at);
        drop_chunk(table, at + 1);
    }
}

void
region_table_remove(struct region_table *table, struct region *region)
{
    size_t at = up_to(table->firsts, table->chunks_used, region->start) - 1;
    struct region_chunk *chunk = table->chunks[at];
    size_t place = up_to(chunk->starts, chunk->count, region->start) - 1;

    shift(chunk, place + 1, place);
    chunk->count--;
    table->count--;
    if (chunk->count == 0) {
        drop_chunk(table, at);
    } else {
        table->firsts[at] = chunk->starts[0];
        join(table, at);
        if (at > 0) {
            join(table, at - 1);
        }
    }
    if (table->chunks_used == 0) {
        free(table->firsts);
        free(table->chunks);
        *table = (struct region_table){0};
    }
}
