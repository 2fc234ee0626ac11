/* CRC32C (Castagnoli), eight bytes a step. Call make_crc_table once before the first sum. */
#pragma once
#include <stddef.h>
#include <stdint.h>

static uint32_t crc_table[8][256];

static void make_crc_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0); /* reflected */
        crc_table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int slice = 1; slice < 8; slice++)
            crc_table[slice][byte] =
                (crc_table[slice - 1][byte] >> 8) ^ crc_table[0][crc_table[slice - 1][byte] & 0xff];
}

/* The sum of a whole number of 8-byte words. */
static uint32_t crc32c(const uint64_t *words, size_t count)
{
    uint32_t crc = 0xffffffffu;
    for (size_t index = 0; index < count; index++) {
        uint64_t word = words[index] ^ crc;
        crc = crc_table[7][word & 0xff] ^ crc_table[6][(word >> 8) & 0xff] ^ crc_table[5][(word >> 16) & 0xff] ^
              crc_table[4][(word >> 24) & 0xff] ^ crc_table[3][(word >> 32) & 0xff] ^
              crc_table[2][(word >> 40) & 0xff] ^ crc_table[1][(word >> 48) & 0xff] ^ crc_table[0][word >> 56];
    }
    return ~crc;
}
