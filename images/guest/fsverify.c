/*
 * Works on a file system as many programs at once would, and says whether each file holds what was put into it.
 *
 *   fsverify work --folder FOLDER [--workers 4] [--seconds N] [--count OPERATIONS] [--report-ms 500]
 *   fsverify check --folder FOLDER
 *
 * work: each worker has a folder of its own below FOLDER and at random replaces files (written to a new name, fsync,
 * rename over the old), renames, deletes and reads them, makes and removes folders, and appends numbered blocks to a
 * journal, with fsync. It ends by SIGTERM, --seconds or --count (of each worker), after it has read all of its files.
 * check: reads what a run left, also one that was cut off: each file must be whole, and each journal without a hole. A
 * journal's last block may be a part of one.
 *
 * Each line on stdout is "key=value" pairs: event=progress|fault|done|check, then operations=N files=N bytes=N (read and
 * compared) blocks=N (of all journals, known to be on the disk) errors=N corrupt=N. After a crash, check must find no
 * fewer blocks than the last progress line told.
 *
 * Ends with 0 if nothing was wrong, 1 if something was, 2 if it could not start.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "options.h"
#include "random.h"

enum { SLOTS = 24, MAX_WORDS = 32768, BLOCK_WORDS = 512, MAX_WORKERS = 64, NAME = 512 };

#define MAGIC UINT64_C(0x7966697265767366) /* "fsverify" in memory */

/* A file is a magic, a seed, its number of words, and words that follow from the seed. */
enum { HEAD_WORDS = 3 };

struct worker {
    int number;
    uint64_t random, seeds[SLOTS]; /* 0: no such file */
    uint64_t block;
    int journal;
    uint64_t words[MAX_WORDS];
};

static const char *folder;
static uint64_t workers = 4, seconds, count, report_ms = 500;
static atomic_bool stopping;
static atomic_uint running;
static atomic_uint_fast64_t operations, files, bytes, blocks, errors, corrupt;

static void report(const char *event)
{
    printf("event=%s operations=%" PRIuFAST64 " files=%" PRIuFAST64 " bytes=%" PRIuFAST64 " blocks=%" PRIuFAST64
           " errors=%" PRIuFAST64 " corrupt=%" PRIuFAST64 "\n",
           event, atomic_load(&operations), atomic_load(&files), atomic_load(&bytes), atomic_load(&blocks),
           atomic_load(&errors), atomic_load(&corrupt));
}

static void fault(const char *name, const char *what)
{
    printf("event=fault file=%s what=%s\n", name, what);
}

static void failed(const char *name)
{
    atomic_fetch_add(&errors, 1);
    fault(name, strerrorname_np(errno));
}

static void damaged(const char *name, const char *what)
{
    atomic_fetch_add(&corrupt, 1);
    fault(name, what);
}

/* The words of a file or block after `seed`; the seed decides on the size of a file too. */
static size_t fill(uint64_t *words, uint64_t seed, size_t size)
{
    words[0] = MAGIC;
    words[1] = seed;
    words[2] = size;
    for (size_t index = HEAD_WORDS; index < size; index++)
        words[index] = scattered(seed + index);
    return size * 8;
}

static bool holds(const uint64_t *words, size_t size)
{
    if (words[0] != MAGIC || words[2] != size)
        return false;
    for (size_t index = HEAD_WORDS; index < size; index++)
        if (words[index] != scattered(words[1] + index))
            return false;
    return true;
}

static size_t words_of(uint64_t seed)
{
    /* Mostly small files, some of 256 KiB. */
    return HEAD_WORDS + (seed >> 20) % (seed % 8 == 0 ? MAX_WORDS - HEAD_WORDS : 1024);
}

/* Reads a file and compares; seed 0 stands for whatever the file itself says. */
static void read_file(const char *name, uint64_t seed, uint64_t *words)
{
    int file = open(name, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, words, MAX_WORDS * 8);
    if (size < 0)
        failed(name);
    else if (size % 8 != 0 || size < HEAD_WORDS * 8 || !holds(words, (size_t)size / 8))
        damaged(name, "content");
    else if (seed != 0 && words[1] != seed)
        damaged(name, "another-file");
    if (file >= 0)
        close(file);
    atomic_fetch_add(&files, 1);
    atomic_fetch_add(&bytes, size > 0 ? (uint64_t)size : 0);
}

static void name_slot(const struct worker *worker, uint64_t slot, char *name)
{
    snprintf(name, NAME, "%s/w%d/f%" PRIu64, folder, worker->number, slot);
}

static void replace(struct worker *worker, uint64_t slot)
{
    char name[NAME], fresh[NAME];
    uint64_t seed = random_step(&worker->random);
    name_slot(worker, slot, name);
    snprintf(fresh, NAME, "%s/w%d/new", folder, worker->number);
    size_t size = fill(worker->words, seed, words_of(seed));
    int file = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool well = file >= 0 && write(file, worker->words, size) == (ssize_t)size && fsync(file) == 0;
    if (file >= 0)
        close(file);
    if (well && rename(fresh, name) == 0)
        worker->seeds[slot] = seed;
    else
        failed(name);
}

static void move(struct worker *worker, uint64_t from, uint64_t to)
{
    char source[NAME], target[NAME];
    name_slot(worker, from, source);
    name_slot(worker, to, target);
    if (from == to || worker->seeds[from] == 0)
        return;
    if (rename(source, target) != 0) {
        failed(source);
        return;
    }
    worker->seeds[to] = worker->seeds[from];
    worker->seeds[from] = 0;
}

static void delete(struct worker *worker, uint64_t slot)
{
    char name[NAME];
    name_slot(worker, slot, name);
    if (worker->seeds[slot] == 0)
        return;
    if (unlink(name) != 0)
        failed(name);
    worker->seeds[slot] = 0;
}

static void append(struct worker *worker)
{
    uint64_t block[BLOCK_WORDS];
    size_t size = fill(block, worker->block, BLOCK_WORDS);
    if (write(worker->journal, block, size) != (ssize_t)size || fdatasync(worker->journal) != 0) {
        failed("journal");
        return;
    }
    worker->block++;
    atomic_fetch_add(&blocks, 1);
}

static void nest(struct worker *worker)
{
    char name[NAME];
    for (int depth = 1; depth <= 3; depth++) {
        snprintf(name, NAME, "%s/w%d/d%.*s", folder, worker->number, 2 * (depth - 1), "/d/d");
        if (mkdir(name, 0755) != 0)
            failed(name);
    }
    for (int depth = 3; depth >= 1; depth--) {
        snprintf(name, NAME, "%s/w%d/d%.*s", folder, worker->number, 2 * (depth - 1), "/d/d");
        if (rmdir(name) != 0)
            failed(name);
    }
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    char name[NAME];
    for (uint64_t done = 0; !atomic_load(&stopping) && (count == 0 || done < count); done++) {
        uint64_t choice = random_step(&worker->random), slot = choice / 16 % SLOTS, other = choice / 4096 % SLOTS;
        switch (choice % 8) {
        case 0: case 1: replace(worker, slot); break;
        case 2: move(worker, slot, other); break;
        case 3: delete(worker, slot); break;
        case 4: nest(worker); break;
        case 5: append(worker); break;
        default:
            name_slot(worker, slot, name);
            if (worker->seeds[slot] != 0)
                read_file(name, worker->seeds[slot], worker->words);
        }
        atomic_fetch_add(&operations, 1);
    }
    close(worker->journal);
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        name_slot(worker, slot, name);
        if (worker->seeds[slot] != 0)
            read_file(name, worker->seeds[slot], worker->words);
        else if (access(name, F_OK) == 0)
            damaged(name, "undead");
    }
    free(worker);
    atomic_fetch_sub(&running, 1);
    return NULL;
}

/* Begins in an empty folder, as far as this program is concerned. */
static struct worker *hire(int number)
{
    char name[NAME];
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        abort();
    worker->number = number;
    worker->random = (uint64_t)time(NULL) * 64 + (uint64_t)number * UINT64_C(0x2545f4914f6cdd1d) + 1;
    snprintf(name, NAME, "%s/w%d", folder, number);
    mkdir(name, 0755);
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        name_slot(worker, slot, name);
        unlink(name);
    }
    snprintf(name, NAME, "%s/w%d/journal", folder, number);
    worker->journal = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (worker->journal < 0)
        err(2, "cannot make %s", name);
    /* Its name is on the disk before its first block counts. */
    fsync(worker->journal);
    return worker;
}

static void check_journal(const char *name)
{
    static uint64_t block[BLOCK_WORDS];
    int file = open(name, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        failed(name);
        return;
    }
    for (uint64_t number = 0;; number++) {
        ssize_t size = read(file, block, sizeof block);
        if (size < 0)
            failed(name);
        if (size < (ssize_t)sizeof block)
            break;
        if (!holds(block, BLOCK_WORDS) || block[1] != number) {
            /* What was appended but not yet told of may be zeros after a crash, at the very end. */
            if (block[0] != 0 || read(file, block, 1) > 0)
                damaged(name, "block");
            break;
        }
        atomic_fetch_add(&blocks, 1);
        atomic_fetch_add(&bytes, sizeof block);
    }
    close(file);
}

static int check(void)
{
    static uint64_t words[MAX_WORDS];
    char name[NAME];
    for (int number = 0; number < MAX_WORKERS; number++) {
        snprintf(name, NAME, "%s/w%d", folder, number);
        DIR *listing = opendir(name);
        if (listing == NULL)
            break;
        for (struct dirent *entry; (entry = readdir(listing)) != NULL;) {
            snprintf(name, NAME, "%s/w%d/%s", folder, number, entry->d_name);
            if (entry->d_name[0] == 'f')
                read_file(name, 0, words);
            else if (strcmp(entry->d_name, "journal") == 0)
                check_journal(name);
        }
        closedir(listing);
    }
    report("check");
    return atomic_load(&errors) + atomic_load(&corrupt) != 0;
}

static void usage(void)
{
    fprintf(stderr, "usage: fsverify work --folder F [--workers 1..%d] [--seconds N] [--count N] [--report-ms N]\n"
                    "       fsverify check --folder F\n", MAX_WORKERS);
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"folder", required_argument, NULL, 'f'}, {"workers", required_argument, NULL, 'w'},
        {"seconds", required_argument, NULL, 's'}, {"count", required_argument, NULL, 'c'},
        {"report-ms", required_argument, NULL, 'r'}, {NULL, 0, NULL, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'f': folder = optarg; break;
        case 'w': workers = number_of(optarg); break;
        case 's': seconds = number_of(optarg); break;
        case 'c': count = number_of(optarg); break;
        case 'r': report_ms = number_of(optarg); break;
        default: usage();
        }
    }
    const char *mode = optind + 1 == argc ? argv[optind] : "";
    if (folder == NULL || strlen(folder) > 200 || workers == 0 || workers > MAX_WORKERS || report_ms == 0)
        usage();
    setvbuf(stdout, NULL, _IOLBF, 4096);
    if (strcmp(mode, "check") == 0)
        return check();
    if (strcmp(mode, "work") != 0)
        usage();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    atomic_store(&running, (unsigned)workers);
    pthread_t threads[MAX_WORKERS];
    for (uint64_t index = 0; index < workers; index++)
        if (pthread_create(&threads[index], NULL, work, hire((int)index)) != 0)
            abort();
    for (uint64_t began = now(), next = began + report_ms * MILLISECOND; atomic_load(&running) > 0;) {
        struct timespec tick = {.tv_nsec = 20 * MILLISECOND};
        if (sigtimedwait(&set, NULL, &tick) > 0 || (seconds != 0 && now() - began >= seconds * SECOND))
            atomic_store(&stopping, true);
        if (now() >= next) {
            report("progress");
            next += report_ms * MILLISECOND;
        }
    }
    for (uint64_t index = 0; index < workers; index++)
        pthread_join(threads[index], NULL);
    report("done");
    return atomic_load(&errors) + atomic_load(&corrupt) != 0;
}
