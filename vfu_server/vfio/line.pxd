from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "<poll.h>":
    short POLLIN
    cdef struct pollfd:
        int fd
        short events
        short revents

cdef extern from "posted.h":
    cdef struct posted:
        uint32_t region
        uint64_t offset
        uint32_t count
        uint8_t data[8]

cdef enum:
    # Of descriptors that are waited for the first ones are the line's own; others may follow.
    OWN = 2
    WAITS_MAX = OWN + 8

# What `nap` found.
cdef enum:
    NAP_NOTHING = 0
    NAP_INPUT = 1
    NAP_OTHER = 2


cdef class Line:
    cdef int peek(self, posted *post) noexcept nogil
    cdef void drop(self, const posted *post) noexcept nogil
    cdef int nap(self, pollfd *fds, int count, int milliseconds) noexcept nogil
    cdef int trigger(self, uint32_t vector) noexcept nogil

cdef int wait_for_others(pollfd *fds, object others) except -1
