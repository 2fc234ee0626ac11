/*
 * Uses PCI virtual functions through VFIO, and moves a virtio device from one to another while it is busy.
 *
 *   vfiomove [OPTION...] blk ADDRESS... -- STEP...
 *   vfiomove [OPTION...] --peer INTERFACE net ADDRESS... -- STEP...
 *
 *   --packed       packed rings
 *   --depth 32     how many requests are under way, or frames in either direction
 *   --ring 256     descriptors of a queue, where the device has so many
 *   --renew        a function that the device has left is reset
 *   --master-last  a function may not use the bus before it runs
 *   --plain        a stream's optional parts are left out
 *
 * The driver is in this program, its queues in memory that all functions reach at the same addresses. Its device is the
 * first one, until it moves. Steps are taken one after the other:
 *
 *   io=N        until N more requests, or frames of either direction, are answered and found to be right; as many as DEPTH
 *               are under way, and still are when the step ends
 *   fill        makes requests available until DEPTH are under way, and tells the device
 *   drain       until nothing is under way any more; the device is told of nothing
 *   check       of a disk: reads all that was written
 *   probe       of a network: which frames to several addresses arrive, as "arrived"
 *   move=K      the device moves to function K by way of PRE_COPY; jump=K: without PRE_COPY
 *   moves=N     N times to the next function, with as many requests as DEPTH between
 *   state=S     the device's state, named as in VFIO, in lower case
 *   note        registers are noted; same: they are as they were noted
 *   size        how much there is to migrate, as "bytes"
 *   save=FILE   takes all that the device's stream has now into a file; load=FILE: the other way round
 *   reset       of the device, in whatever state it is; the driver starts anew
 *
 * Lines on stdout are JSON: a "start", a "step" for each, perhaps "fault" ones, at last one "done". A step that was
 * refused has the name of the error as "failed", what refused it as "by", and the next step is taken all the same. A move
 * that is refused leaves the device where it was, running.
 *
 * Whatever is used must have been given, once, and an interrupt must come for it within 20 seconds; see move.h, too.
 *
 * Ends with 0 if there was no fault, 1 if there was one, 2 if it could not start.
 */
#define _GNU_SOURCE
#include <err.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk_load.h"
#include "move.h"
#include "net_load.h"
#include "options.h"

static struct driver driver = {.queue_size = 256};

static void done(void)
{
    printf("{\"event\":\"done\",\"faults\":%" PRIu64 ",\"answered\":%" PRIu64 ",\"moves\":%" PRIu64 ",", faults, answered,
           moves);
    load->figures();
    printf(",\"interrupts\":[");
    for (unsigned index = 0; index < driver.count; index++) {
        printf("%s[", index == 0 ? "" : ",");
        for (unsigned queue = 0; queue < driver.queue_count; queue++)
            printf("%s%" PRIu64, queue == 0 ? "" : ",", driver.functions[index].interrupts[queue + 1]);
        printf("]");
    }
    printf("]}\n");
    exit(faults != 0);
}

static unsigned function_of(const char *text)
{
    uint64_t number = number_of(text);
    if (number >= driver.count)
        errx(2, "there is no function %" PRIu64, number);
    return (unsigned)number;
}

static void start(void)
{
    start_device(&driver);
    load->begin(&driver);
}

static void do_io(const char *argument)
{
    serve(&driver, number_of(argument));
}

static void do_fill(const char *argument)
{
    fill(&driver);
    (void)argument;
}

static void do_drain(const char *argument)
{
    drain(&driver);
    (void)argument;
}

static void do_check(const char *argument)
{
    drain(&driver);
    for (begin_check(); !check_is_over();) {
        fill(&driver);
        drain(&driver);
    }
    (void)argument;
}

static void do_probe(const char *argument)
{
    for (send_probes(); !probes_are_over();)
        attend(&driver);
    strcpy(told, ",\"arrived\":[\"end\"");
    for (unsigned index = 1; index < PROBES - 1; index++)
        if (net.probed >> index & 1)
            snprintf(told + strlen(told), sizeof told - strlen(told), ",\"%s\"", probes[index].name);
    strcat(told, "]");
    (void)argument;
}

static void do_move(const char *argument)
{
    move_to(&driver, function_of(argument), true);
}

static void do_jump(const char *argument)
{
    move_to(&driver, function_of(argument), false);
}

static void do_moves(const char *argument)
{
    for (uint64_t left = number_of(argument); left > 0 && !failed; left--) {
        serve(&driver, depth);
        move_to(&driver, (driver.at + 1) % driver.count, true);
    }
}

static void do_state(const char *argument)
{
    for (uint32_t state = 0; state < STATES; state++)
        if (strcmp(argument, state_names[state]) == 0) {
            refused(state_names[state], set_state(device_of(&driver), state));
            load->stopped();
            return;
        }
    errx(2, "there is no state %s", argument);
}

static void do_note(const char *argument)
{
    read_registers(&driver, &noted);
    (void)argument;
}

static void do_same(const char *argument)
{
    compare_registers(&driver);
    (void)argument;
}

static void do_size(const char *argument)
{
    uint64_t size = 0;
    refused("size", stream_size(device_of(&driver), &size));
    snprintf(told, sizeof told, ",\"bytes\":%" PRIu64, size);
    (void)argument;
}

static void do_save(const char *argument)
{
    static uint8_t stream[STREAM_SIZE];
    size_t size = 0;
    if (refused("read", read_stream(device_of(&driver), stream, &size)))
        return;
    FILE *file = fopen(argument, "we");
    if (file == NULL || fwrite(stream, 1, size, file) != size || fclose(file) != 0)
        err(2, "cannot write %s", argument);
    snprintf(told, sizeof told, ",\"bytes\":%zu", size);
}

static void do_load(const char *argument)
{
    static uint8_t stream[STREAM_SIZE];
    FILE *file = fopen(argument, "re");
    if (file == NULL)
        err(2, "cannot read %s", argument);
    size_t size = fread(stream, 1, sizeof stream, file), taken = 0;
    fclose(file);
    refused("write", write_stream(device_of(&driver), stream, size, &taken));
    snprintf(told, sizeof told, ",\"bytes\":%zu", taken);
}

static void do_reset(const char *argument)
{
    load->forget(&driver);
    if (refused("reset", reset_function(device_of(&driver))))
        return;
    close_stream(device_of(&driver));
    start();
    (void)argument;
}

static const struct step {
    const char *name;
    void (*take)(const char *argument);
    const struct load *of; /* NULL: any */
} steps[] = {
    {"io", do_io, NULL},
    {"fill", do_fill, NULL},
    {"drain", do_drain, NULL},
    {"check", do_check, &blk_load},
    {"probe", do_probe, &net_load},
    {"move", do_move, NULL},
    {"jump", do_jump, NULL},
    {"moves", do_moves, NULL},
    {"state", do_state, NULL},
    {"note", do_note, NULL},
    {"same", do_same, NULL},
    {"size", do_size, NULL},
    {"save", do_save, NULL},
    {"load", do_load, NULL},
    {"reset", do_reset, NULL},
};

static const struct step *step_of(const char *text)
{
    size_t length = strcspn(text, "=");
    for (size_t index = 0; index < sizeof steps / sizeof *steps; index++)
        if (strlen(steps[index].name) == length && strncmp(steps[index].name, text, length) == 0 &&
            (steps[index].of == NULL || steps[index].of == load))
            return &steps[index];
    errx(2, "there is no step %s of %s", text, load->name);
}

static void take_step(const char *text)
{
    const char *argument = strchr(text, '=');
    failed = 0;
    told[0] = '\0';
    step_of(text)->take(argument != NULL ? argument + 1 : "");
    printf("{\"event\":\"step\",\"step\":\"%s\",\"failed\":\"%s\",\"by\":\"%s\",\"at\":%u,\"state\":\"%s\"%s}\n", text,
           failed ? strerrorname_np(failed) : "", failed ? failed_by : "", driver.at, state_of(device_of(&driver)),
           told);
}

static void usage(void)
{
    fprintf(stderr, "usage: vfiomove [--packed] [--depth 1..%d] [--ring N] [--renew] [--master-last] [--plain]\n"
                    "                [--peer INTERFACE] blk|net ADDRESS... -- STEP...\n", MAX_SLOTS);
    exit(2);
}

/* The functions' addresses begin at optind + 1 then. */
static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"packed", no_argument, NULL, 'k'},     {"depth", required_argument, NULL, 'd'},
        {"ring", required_argument, NULL, 'r'}, {"master-last", no_argument, NULL, 'm'},
        {"peer", required_argument, NULL, 'p'}, {"renew", no_argument, NULL, 'n'},
        {"plain", no_argument, NULL, 'l'},      {NULL, 0, NULL, 0},
    };
    static const struct load *const loads[] = {&blk_load, &net_load};
    driver.wanted = BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_ACCESS_PLATFORM);
    for (int option; (option = getopt_long(argc, argv, "+", options, NULL)) != -1;) {
        switch (option) {
        case 'k': driver.wanted |= BIT(VIRTIO_F_RING_PACKED); break;
        case 'd': depth = (unsigned)number_of(optarg); break;
        case 'r': driver.queue_size = (uint16_t)number_of(optarg); break;
        case 'm': master_last = true; break;
        case 'n': renew = true; break;
        case 'l': plain = true; break;
        case 'p': open_peer(optarg); break;
        default: usage();
        }
    }
    for (size_t index = 0; optind < argc && index < sizeof loads / sizeof *loads; index++)
        if (strcmp(argv[optind], loads[index]->name) == 0)
            load = loads[index];
    if (load == NULL || depth == 0 || depth > MAX_SLOTS || driver.queue_size < depth * CHAIN)
        usage();
    driver.wanted |= load->features;
    driver.queue_count = load->queues;
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    char **addresses = &argv[optind + 1];
    unsigned count = 0;
    while (addresses[count] != NULL && strcmp(addresses[count], "--") != 0)
        count++;
    if (count == 0 || count > MAX_FUNCTIONS || addresses[count] == NULL)
        usage();
    setvbuf(stdout, NULL, _IOLBF, 4096);
    open_functions(&driver, addresses, count);
    load->lay_out(&driver);
    start();
    printf("{\"event\":\"start\",\"load\":\"%s\",\"features\":%" PRIu64 ",\"migration\":%" PRIu64 "}\n", load->name,
           driver.features, migration_flags(device_of(&driver)));
    for (char **step = &addresses[count + 1]; *step != NULL; step++)
        take_step(*step);
    done();
}
