# cython: language_level=3
"""What a loop without the interpreter needs of a client's connection.

A class of its own so that whoever runs such a loop is not compiled against the library.
"""

cdef class Line:
    cdef int peek(self, Posted *post) noexcept nogil:
        """As `link_peek_post` of library_guard.h: 1 with `post`, 0 for something else, -1 for nothing, -2 at the end."""
        return 0

    cdef void drop(self, const Posted *post) noexcept nogil:
        """Take off what `peek` gave."""

    cdef int nap(self, pollfd *fds, int count, int milliseconds) noexcept nogil:
        """Wait for what `peek` may find then, for a wake, and for descriptors from the third on."""
        return NAP_OTHER

    cdef bint trigger(self, uint32_t vector) noexcept nogil:
        """Send an interrupt. Whether it was sent."""
        return False
