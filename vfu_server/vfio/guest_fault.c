#include "guest_fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

static struct guest_fault_slot slots[GUEST_FAULT_SLOTS];
static _Atomic int slots_used;               /* one more than the highest slot that was ever in use */
static struct guest_fault_slot *slots_freed; /* under `lock`, as is all that writes `slots`, the handler apart */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction earlier;

/* Put zeros into [page, page + length). mmap is a bare system call: safe in a handler, though POSIX does not list it. */
static bool
replace(uintptr_t page, size_t length)
{
    return mmap((void *)page, length, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == (void *)page;
}

static bool
mend(uintptr_t address)
{
    int used = atomic_load_explicit(&slots_used, memory_order_acquire);

    for (int i = 0; i < used; i++) {
        struct guest_fault_slot *slot = &slots[i];
        uintptr_t end = atomic_load_explicit(&slot->end, memory_order_acquire);
        uintptr_t start = atomic_load_explicit(&slot->start, memory_order_relaxed);
        size_t size = atomic_load_explicit(&slot->page_size, memory_order_relaxed);

        if (address < start || address >= end) {
            continue;
        }
        uintptr_t page = address & ~((uintptr_t)size - 1);
        if (page < start) {
            page = start; /* what stands in front of it is somebody else's */
        }
        if (!replace(page, end - page)) {
            return false;
        }
        uint64_t lost = (end - page + size - 1) / size;
        atomic_store_explicit(&slot->end, page, memory_order_release);
        atomic_fetch_add_explicit(&slot->lost, lost, memory_order_relaxed);
        __atomic_fetch_add(atomic_load_explicit(&slot->total, memory_order_relaxed), lost, __ATOMIC_RELAXED);
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

struct guest_fault_slot *
guest_fault_watch(void *start, size_t length, size_t page_size, uint64_t *total)
{
    struct guest_fault_slot *slot = NULL;
    int used;

    pthread_mutex_lock(&lock);
    used = atomic_load_explicit(&slots_used, memory_order_relaxed);
    if (slots_freed != NULL) {
        slot = slots_freed;
        slots_freed = slot->next_free;
    } else if (used < GUEST_FAULT_SLOTS) {
        slot = &slots[used];
        atomic_store_explicit(&slots_used, used + 1, memory_order_release);
    }
    if (slot != NULL) {
        atomic_store_explicit(&slot->lost, 0, memory_order_relaxed);
        atomic_store_explicit(&slot->total, total, memory_order_relaxed);
        atomic_store_explicit(&slot->page_size, page_size, memory_order_relaxed);
        atomic_store_explicit(&slot->start, (uintptr_t)start, memory_order_relaxed);
        atomic_store_explicit(&slot->end, (uintptr_t)start + length, memory_order_release);
    }
    pthread_mutex_unlock(&lock);
    return slot;
}

void
guest_fault_forget(struct guest_fault_slot *slot)
{
    pthread_mutex_lock(&lock);
    atomic_store_explicit(&slot->end, 0, memory_order_release);
    slot->next_free = slots_freed;
    slots_freed = slot;
    pthread_mutex_unlock(&lock);
}
