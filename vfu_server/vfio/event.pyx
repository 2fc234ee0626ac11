# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""An eventfd(2). `event.pyi` documents what is public."""

cimport cython
from libc.stdint cimport uint64_t

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int, int)
    int eventfd_write(int, uint64_t)
    int eventfd_read(int, uint64_t *)

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int)

cdef extern from "Python.h":
    object PyErr_SetFromErrno(object)


@cython.final
cdef class Event:
    def __cinit__(self):
        self.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.fd < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        self.close()

    def close(self):
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0:
            c_close(fd)

    cpdef int tell(self) noexcept nogil:
        return eventfd_write(self.fd, 1)

    cpdef int forget(self) noexcept nogil:
        cdef uint64_t count
        return eventfd_read(self.fd, &count)
