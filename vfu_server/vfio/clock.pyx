# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The time. `clock.pyi` documents what is public."""

cimport cython


@cython.final
cdef class Clock:
    cpdef long long now(self) noexcept nogil:
        return now() + self.ahead
