# cython: language_level=3
"""What a loop without the interpreter needs of a client's connection.

A class of its own so that whoever runs such a loop is not compiled against the library.
"""

from libc.errno cimport ENOENT


cdef class Line:
    cdef int peek(self, posted *post) noexcept nogil:
        """As `link_peek_post` of library_guard.h: 1 with `post`, 0 for something else, -1 for nothing, -2 at the end."""
        return 0

    cdef void drop(self, const posted *post) noexcept nogil:
        """Take off what `peek` gave."""

    cdef int nap(self, pollfd *fds, int count, int milliseconds) noexcept nogil:
        """Wait for what `peek` may find then, for a wake, and for `count` descriptors in all: see `wait_for_others`."""
        return NAP_OTHER

    cdef int trigger(self, uint32_t vector) noexcept nogil:
        """Send an interrupt. 0, or why it was not sent: ENOENT for no eventfd, EAGAIN for one that takes no more."""
        return ENOENT


cdef int wait_for_others(pollfd *fds, object others) except -1:
    """Have descriptors, each with its events, behind the line's own. How many there are then in all.

    Raises ValueError for too many.
    """
    cdef int count = OWN
    for fd, events in others:
        if count == WAITS_MAX:
            raise ValueError(f"more than {WAITS_MAX - OWN} other file descriptors to wait for")
        fds[count].fd = fd
        fds[count].events = events
        fds[count].revents = 0
        count += 1
    return count
