/* Numbers on a command line. */
#pragma once
#include <err.h>
#include <stdint.h>
#include <stdlib.h>

/* Says how the program is called, and ends it with 2. Each program has its own. */
static _Noreturn void usage(void);

/* A decimal number. */
static inline uint64_t number_of(const char *text)
{
    char *end;
    uint64_t number = strtoull(text, &end, 10);
    if (end == text || *end != '\0')
        usage();
    return number;
}

/* A number as C writes it, perhaps with a K, M or G after it for KiB, MiB or GiB. */
static inline uint64_t amount_of(const char *text)
{
    char *end;
    uint64_t number = strtoull(text, &end, 0);
    uint64_t unit = *end == 'K' ? 1u << 10 : *end == 'M' ? 1u << 20 : *end == 'G' ? 1u << 30 : 1;
    if (end == text || (unit != 1 && end[1] != '\0') || (unit == 1 && *end != '\0'))
        errx(2, "%s is not a number", text);
    return number * unit;
}
