# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The fast side of a stream socket: frames between it and guest memory, without the interpreter.

`stream_channel.pyi` documents what is public. What C code needs explaining is here.

What comes in is read many frames at a time, into the buffer that the port has too, and copied from there: a call for
each frame would cost more. What goes out is written from guest memory.
"""

cimport cython
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pymodel.devices.net import channel as channels
from pymodel.devices.net import header as headers
from vfu_server.datapath import frame_stream as streams

from pymodel.devices.net.channel cimport Channel
from pymodel.memory cimport GuestMemory, Vectors, u64
from vfu_server.datapath.frame_stream cimport FrameStream
from vfu_server.datapath.socket_call cimport MSG_NOSIGNAL, iovec, msghdr, recv, sendmsg
from vfu_server.vfio.turn_lock cimport TurnLock

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t number)

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_read(int fd, uint64_t *value)
    int eventfd_write(int fd, uint64_t value)

# What a `Channel` says.
cdef int DONE = channels.DONE, NOT_NOW = channels.NOT_NOW, FULL = channels.FULL, NOTHING = channels.NOTHING

cdef int HEADER = headers.SIZE, LENGTH = streams.LENGTH, PART = streams.PART, BAD = streams.BAD


@cython.final
cdef class StreamChannel(Channel):
    cdef TurnLock lock
    cdef FrameStream stream
    cdef int news

    def __cinit__(self, TurnLock lock not None, FrameStream stream not None, int news, int room):
        self.lock = lock
        self.stream = stream
        self.news = news

    def __init__(self, TurnLock lock not None, FrameStream stream not None, int news, int room):
        super().__init__()
        self.room = room

    cdef int send(self, GuestMemory memory, Vectors frame) except -2 nogil:
        cdef int result
        if (<const unsigned short *>frame.pieces[0])[0]:
            # It asks for an offload.
            return NOT_NOW
        self.lock.take()
        result = self.write(frame)
        self.lock.give()
        return result

    cdef int receive(self, GuestMemory memory, Vectors room, int first) except -2 nogil:
        cdef int result
        self.lock.take()
        try:
            result = self.read(memory, room, first)
        finally:
            self.lock.give()
        return result

    cdef int write(self, Vectors frame) noexcept nogil:
        """The same as `send`, with the lock."""
        cdef msghdr message
        cdef u64 header = frame.pieces[0]
        cdef uint32_t length = htonl(<uint32_t>(frame.size - HEADER))
        cdef Py_ssize_t count
        if self.fd < 0:
            return NOT_NOW
        if self.stream.blocked:
            return self.full()
        # The length stands where the header does.
        frame.pieces[0] = <u64>&length
        frame.pieces[1] = LENGTH
        memset(&message, 0, sizeof(message))
        message.msg_iov = <iovec *>&frame.pieces[0]
        message.msg_iovlen = frame.count
        count = sendmsg(self.fd, &message, MSG_NOSIGNAL)
        if count < 0 and errno == EAGAIN:
            count = 0
        if 0 <= count < <Py_ssize_t>frame.size - HEADER + LENGTH:
            self.keep(frame, count)
        frame.pieces[0] = header
        frame.pieces[1] = HEADER
        if count < 0:
            # The port lets go of the peer.
            return NOT_NOW
        return DONE if count else self.full()

    cdef void keep(self, Vectors frame, Py_ssize_t sent) noexcept nogil:
        """Keep what the peer does not have of a frame that it has in part, and have the port's thread see to it."""
        cdef u64 at = <u64>sent, size
        cdef int number
        self.stream.sent = self.stream.kept = 0
        for number in range(frame.count if sent else 0):
            size = frame.pieces[2 * number + 1]
            if at < size:
                memcpy(&self.stream.rest[self.stream.kept], <const char *>frame.pieces[2 * number] + at, size - at)
                self.stream.kept += <int>(size - at)
                at = size
            at -= size
        self.stream.blocked = True
        eventfd_write(self.news, 1)

    cdef int full(self) noexcept nogil:
        """Nothing goes out until `room` tells, which it can't have yet: what it told is of before."""
        cdef uint64_t told
        eventfd_read(self.room, &told)
        return FULL

    cdef int read(self, GuestMemory memory, Vectors room, int first) except -2 nogil:
        """The same as `receive`, with the lock."""
        cdef int length
        cdef Py_ssize_t count
        if self.fd < 0:
            return NOT_NOW
        while True:
            length = self.stream.next()
            if length == BAD:
                return NOT_NOW
            if length != PART:
                break
            self.stream.make_room()
            count = recv(self.fd, &self.stream.came[self.stream.end], self.stream.came.shape[0] - self.stream.end, 0)
            if count <= 0:
                # The port has the words for the end.
                return NOTHING if count < 0 and errno == EAGAIN else NOT_NOW
            self.stream.end += <int>count
        memset(<void *>room.pieces[2 * first], 0, HEADER)
        memory.spread(<u64>&self.stream.came[self.stream.start + LENGTH], length, room, first + 1)
        self.stream.start += LENGTH + length
        return HEADER + length
