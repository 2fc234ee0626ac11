# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The fast side of a tap interface: frames between the kernel and guest memory, without the interpreter.

`tap_channel.pyi` documents what is public. What C code needs explaining is here.
"""

cimport cython
from libc.errno cimport EAGAIN, EBADFD, EINTR, errno

from pymodel.devices.net import channel as channels

from pymodel.devices.net.channel cimport Channel
from pymodel.memory cimport GuestMemory, Vectors, u64

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        pass
    Py_ssize_t readv(int fd, const iovec *parts, int count)
    Py_ssize_t writev(int fd, const iovec *parts, int count)

# What a `Channel` says.
cdef int DONE = channels.DONE, LOST = channels.LOST, NOT_NOW = channels.NOT_NOW, NOTHING = channels.NOTHING


@cython.final
cdef class TapChannel(Channel):
    cdef int send(self, GuestMemory memory, Vectors frame) except -2 nogil:
        cdef Py_ssize_t count = writev(self.fd, <iovec *>&frame.pieces[0], frame.count)
        if count < 0:
            if errno in (EAGAIN, EINTR, EBADFD):
                return NOT_NOW
            # EIO is an interface that is down, EINVAL a header that the kernel does not believe.
            return LOST
        return DONE

    cdef int receive(self, GuestMemory memory, Vectors room, int first) except -2 nogil:
        cdef Py_ssize_t count = readv(self.fd, <iovec *>&room.pieces[2 * first], room.count - first)
        if count < 0:
            return NOTHING if errno == EAGAIN else NOT_NOW
        return <int>count
