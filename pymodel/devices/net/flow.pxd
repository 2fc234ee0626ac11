# Types for `make ext`, which compiles flow.py as it stands.
import cython

from pymodel.memory cimport u64

cdef int _HEAD, _TCP, _UDP, _HOP_BY_HOP, _ROUTING, _DESTINATION, _FRAGMENT, _VLAN, _SERVICE_VLAN, _TAG, _IPV4, _IPV6, _NONE
cdef int _TYPE_AT, _INPUT

@cython.final
cdef class Flow:
    cdef readonly unsigned char[::1] head
    cdef object _bytes
    cdef readonly u64 head_at
    cdef readonly unsigned char[::1] data
    cdef readonly int version
    cdef readonly int protocol
    cdef readonly int size

    @cython.locals(at=int, kind=int)
    cpdef int read(self, int length) except -1 nogil
    cdef int word(self, int at, int length) except -1 nogil
    @cython.locals(protocol=int)
    cdef int ipv4(self, int at, int length) except -1 nogil
    @cython.locals(protocol=int, payload=int)
    cdef int ipv6(self, int at, int length) except -1 nogil
    @cython.locals(number=int)
    cdef int found(self, int version, int protocol, int addresses, int size, int payload, int length) except -1 nogil

@cython.final
cdef class Toeplitz:
    cdef int _types
    cdef readonly unsigned int value
    cdef readonly int report
    cdef unsigned int[::1] _tables

    @cython.locals(plain=int)
    cpdef int of(self, Flow flow) except -1 nogil
    @cython.locals(value=cython.uint, number=int)
    cdef u64 hash(self, Flow flow, int length) except? 0xFFFFFFFFFFFFFFFF nogil
