/* How long requests took: the mean and the longest of all, and percentiles of the first MAX_SAMPLES. */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_SAMPLES = 1 << 21 };

static struct {
    uint64_t count, sum, longest; /* in ns, as the samples are */
    uint32_t samples[MAX_SAMPLES];
} latency;

static void note_latency(uint64_t nanoseconds)
{
    if (latency.count < MAX_SAMPLES)
        latency.samples[latency.count] = nanoseconds > UINT32_MAX ? UINT32_MAX : (uint32_t)nanoseconds;
    latency.count++;
    latency.sum += nanoseconds;
    if (nanoseconds > latency.longest)
        latency.longest = nanoseconds;
}

static int ascending(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

/* As a member of a JSON object. */
static void print_latency(void)
{
    uint64_t sampled = latency.count < MAX_SAMPLES ? latency.count : MAX_SAMPLES;
    qsort(latency.samples, sampled, sizeof *latency.samples, ascending);
    printf("\"latency_us\":{\"mean\":%.2f,\"p50\":%.2f,\"p99\":%.2f,\"max\":%.2f}",
           (double)latency.sum / (double)(latency.count ? latency.count : 1) / 1e3, latency.samples[sampled / 2] / 1e3,
           latency.samples[sampled * 99 / 100] / 1e3, (double)latency.longest / 1e3);
}
