# Types for `make ext`, which compiles frame_head.py as it stands.
import cython

from pymodel.memory cimport u64

cdef int _HEADER, _ETHERNET, _TAG, _HEAD, _SEGMENTS_MAX, _TCP, _UDP, _HOP_BY_HOP, _DESTINATION
cdef int _IPV4, _IPV6, _VLAN, _SERVICE_VLAN, _NEEDS_CSUM, _GSO_NONE, _GSO_ECN, _GSO_TCPV4, _GSO_TCPV6, _GSO_UDP_L4
cdef int _OPTIONS_MAX, _TCP_LEAST, _UDP_LEAST, _TCP_CHECKSUM, _UDP_CHECKSUM, _PAD, _LOOK
cdef u64 _CSUM, _TSO4, _TSO6, _ECN, _USO4, _USO6

@cython.final
cdef class FrameHead:
    cdef u64[::1] _words
    cdef unsigned char[::1] _bytes
    cdef object _all
    cdef readonly u64 place
    cdef readonly u64 needed
    cdef readonly u64 first
    cdef readonly u64 second
    cdef readonly int protocol
    cdef readonly int version
    cdef readonly int network
    cdef readonly int transport
    cdef readonly int payload
    cdef readonly int size

    @cython.locals(number=int, needs_csum=int, gso=int, size=int, start=int, offset=int)
    cpdef int check(self, int length) except -1 nogil
    @cython.locals(within=int, kind=int, protocol=int, least=int)
    cdef int segmentable(self, int length, int gso, int size) except -1 nogil
    @cython.locals(at=int, tags=int)
    cdef int find_network(self, int within) except -1 nogil
    @cython.locals(at=int, found=int, count=int)
    cdef int find_transport(self, int within, int protocol) except -1 nogil
    cdef int byte(self, int at) except -1 nogil
    cdef int word(self, int at) except -1 nogil
    cdef int put(self, int at, int value) except -1 nogil
