cimport cython


@cython.final
cdef class Event:
    cdef readonly int fd

    cpdef int tell(self) noexcept nogil
    cpdef int forget(self) noexcept nogil
