#ifndef POSTED_H
#define POSTED_H

#include <stddef.h>
#include <stdint.h>

/* A write to a region that wants no reply, of as few bytes as a driver writes at once. */
struct posted {
    uint32_t region;
    uint64_t offset;
    uint32_t count; /* of bytes, 1 to 8 */
    uint8_t data[8];
    size_t size; /* of the message */
};

#endif
