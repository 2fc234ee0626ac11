from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "<poll.h>":
    short POLLIN
    cdef struct pollfd:
        int fd
        short events
        short revents

cdef struct Posted:
    uint32_t region
    uint64_t offset
    uint32_t count
    uint8_t data[8]
    size_t size


cdef class Line:
    # Of `fds` the first two are the line's own. What `nap` found: input of the client, something else, or nothing.
    cdef int peek(self, Posted *post) noexcept nogil
    cdef void drop(self, const Posted *post) noexcept nogil
    cdef int nap(self, pollfd *fds, int count, int milliseconds) noexcept nogil
    cdef bint trigger(self, uint32_t vector) noexcept nogil

cdef enum:
    NAP_NOTHING = 0
    NAP_INPUT = 1
    NAP_OTHER = 2
