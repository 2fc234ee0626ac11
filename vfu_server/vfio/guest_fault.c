#include "guest_fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

/* More than the library's regions of 256 functions together; a client that wants more is told so. */
#define SLOTS 8192

/* Read by the signal handler, so all of it is lock-free atomics. A slot is in use while `end` is not 0. */
struct slot {
    _Atomic uintptr_t start;
    _Atomic uintptr_t end;
    _Atomic size_t page_size;
    _Atomic uint64_t lost;
};

static struct slot slots[SLOTS];
static _Atomic int slots_used; /* one more than the highest slot that was ever in use */
static bool taken[SLOTS];      /* under `lock`, as is all that writes `slots`, the handler apart */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction earlier;

static bool
mend(uintptr_t address)
{
    int used = atomic_load_explicit(&slots_used, memory_order_acquire);

    for (int i = 0; i < used; i++) {
        struct slot *slot = &slots[i];
        uintptr_t end = atomic_load_explicit(&slot->end, memory_order_acquire);
        uintptr_t start = atomic_load_explicit(&slot->start, memory_order_relaxed);
        uintptr_t size = atomic_load_explicit(&slot->page_size, memory_order_relaxed);

        if (address < start || address >= end) {
            continue;
        }
        /* mmap is a bare system call: safe in a handler, though POSIX does not list it. */
        void *page = (void *)(address & ~(size - 1));
        if (mmap(page, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page) {
            return false;
        }
        atomic_fetch_add_explicit(&slot->lost, 1, memory_order_relaxed);
        return true;
    }
    return false;
}

static void
on_sigbus(int number, siginfo_t *info, void *context)
{
    int saved = errno;

    (void)context;
    /* si_code <= 0 is a signal that somebody sent: si_addr means nothing then. */
    if (info->si_code <= 0 || !mend((uintptr_t)info->si_addr)) {
        /* Not ours: the instruction runs again after the return and meets the earlier handler. */
        sigaction(number, &earlier, NULL);
        if (info->si_code <= 0) {
            raise(number);
        }
    }
    errno = saved;
}

int
guest_fault_install(void)
{
    static bool installed;
    struct sigaction action;
    int result = 0;

    pthread_mutex_lock(&lock);
    if (!installed) {
        memset(&action, 0, sizeof(action));
        action.sa_sigaction = on_sigbus;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigfillset(&action.sa_mask);
        result = sigaction(SIGBUS, &action, &earlier);
        installed = result == 0;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int
guest_fault_watch(void *start, size_t length, size_t page_size)
{
    int found = -1;

    pthread_mutex_lock(&lock);
    for (int i = 0; i < SLOTS; i++) {
        if (!taken[i]) {
            taken[i] = true;
            atomic_store_explicit(&slots[i].lost, 0, memory_order_relaxed);
            atomic_store_explicit(&slots[i].page_size, page_size, memory_order_relaxed);
            atomic_store_explicit(&slots[i].start, (uintptr_t)start, memory_order_relaxed);
            atomic_store_explicit(&slots[i].end, (uintptr_t)start + length, memory_order_release);
            if (i >= slots_used) {
                atomic_store_explicit(&slots_used, i + 1, memory_order_release);
            }
            found = i;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return found;
}

uint64_t
guest_fault_lost(int slot)
{
    return atomic_load_explicit(&slots[slot].lost, memory_order_relaxed);
}

void
guest_fault_forget(int slot)
{
    pthread_mutex_lock(&lock);
    atomic_store_explicit(&slots[slot].end, 0, memory_order_release);
    taken[slot] = false;
    pthread_mutex_unlock(&lock);
}
