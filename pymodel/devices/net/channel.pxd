# Types for `make ext`, which compiles channel.py as it stands.
from pymodel.devices.net.filter cimport Filter
from pymodel.memory cimport GuestMemory, Vectors, u64

cdef int _NOT_NOW

cdef class Channel:
    cdef public int fd
    cdef public int room
    cdef public Filter filter
    cdef public u64 sent
    cdef public u64 sent_bytes
    cdef public u64 received
    cdef public u64 received_bytes
    cdef public u64 dropped_sending
    cdef public u64 dropped_receiving

    cdef int send(self, GuestMemory memory, Vectors frame) except -2 nogil
    cdef int receive(self, GuestMemory memory, Vectors room, int first) except -2 nogil
