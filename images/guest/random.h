/* Numbers that look random and can be made again. */
#pragma once
#include <stdint.h>

/* The next number of the sequence that follows from the state, which is never 0 (xorshift). */
static inline uint64_t random_step(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Spreads numbers that follow each other over the whole range, each to a place of its own. */
static inline uint64_t scattered(uint64_t number)
{
    return number * UINT64_C(0x9e3779b97f4a7c15);
}
