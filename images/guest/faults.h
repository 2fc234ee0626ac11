/* What was found to be wrong: a JSON line for each of the first, and how many there were. */
#pragma once
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

enum { MAX_FAULTS_SHOWN = 20 };

static uint64_t faults;

static void fault(const char *kind, uint64_t at, uint64_t expected, uint64_t found)
{
    if (faults++ < MAX_FAULTS_SHOWN)
        printf("{\"event\":\"fault\",\"kind\":\"%s\",\"at\":%" PRIu64 ",\"expected\":%" PRIu64 ",\"found\":%" PRIu64
               "}\n",
               kind, at, expected, found);
}
