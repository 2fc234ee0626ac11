cimport cython

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)


cdef inline long long now() noexcept nogil:
    """Nanoseconds of the clock that never goes back."""
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <long long>at.tv_sec * 1_000_000_000 + at.tv_nsec


@cython.final
cdef class Clock:
    cdef public long long ahead

    cpdef long long now(self) noexcept nogil
