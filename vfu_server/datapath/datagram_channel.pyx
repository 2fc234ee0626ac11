# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The fast side of a datagram socket: frames between the kernel and guest memory, without the interpreter.

`datagram_channel.pyi` documents what is public. What C code needs explaining is here.
"""

cimport cython
from libc.errno cimport EAGAIN, errno
from libc.string cimport memcpy, memset

from pymodel.devices.net import channel as channels
from pymodel.devices.net import header as headers
from pymodel.devices.net import port as ports

from pymodel.devices.net.channel cimport Channel
from pymodel.memory cimport GuestMemory, Vectors
from vfu_server.datapath.socket_call cimport (
    AF_UNIX, MSG_NOSIGNAL, MSG_TRUNC, iovec, msghdr, recvmsg, sendmsg, sockaddr_un
)

# What a `Channel` says.
cdef int DONE = channels.DONE, NOT_NOW = channels.NOT_NOW, NOTHING = channels.NOTHING

cdef int HEADER = headers.SIZE, LONGEST = ports.FRAME_MAX


@cython.final
cdef class DatagramChannel(Channel):
    cdef sockaddr_un remote

    def __cinit__(self, int fd, bytes remote):
        if not 0 < len(remote) < <Py_ssize_t>sizeof(self.remote.sun_path):
            raise ValueError(f"a name of {len(remote)} bytes")
        self.remote.sun_family = AF_UNIX
        memcpy(self.remote.sun_path, <const char *>remote, len(remote))

    def __init__(self, int fd, bytes remote):
        super().__init__(fd)

    cdef int send(self, GuestMemory memory, Vectors frame) except -2 nogil:
        cdef msghdr message
        if (<const unsigned short *>frame.pieces[0])[0]:
            # It asks for an offload.
            return NOT_NOW
        memset(&message, 0, sizeof(message))
        message.msg_name = &self.remote
        message.msg_namelen = sizeof(self.remote)
        message.msg_iov = <iovec *>&frame.pieces[2]
        message.msg_iovlen = frame.count - 1
        if sendmsg(self.fd, &message, MSG_NOSIGNAL) < 0:
            # Nobody is there, or there is no room: the port has the words, and waits.
            return NOT_NOW
        return DONE

    cdef int receive(self, GuestMemory memory, Vectors room, int first) except -2 nogil:
        cdef msghdr message
        cdef Py_ssize_t count
        memset(&message, 0, sizeof(message))
        message.msg_iov = <iovec *>&room.pieces[2 * first + 2]
        message.msg_iovlen = room.count - first - 1
        # How long it really is.
        count = recvmsg(self.fd, &message, MSG_TRUNC)
        if count < 0:
            return NOTHING if errno == EAGAIN else NOT_NOW
        memset(<void *>room.pieces[2 * first], 0, HEADER)
        if count > LONGEST - HEADER:
            count = 0  # too long: no frame
        return <int>count + HEADER
