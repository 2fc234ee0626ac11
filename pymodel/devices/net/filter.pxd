# Types for `make ext`, which compiles filter.py as it stands.
import cython

from pymodel.memory cimport u64

cdef int _ETHERNET, _VLAN, _SERVICE, _VLANS, _PROMISC, _ALLMULTI, _ALLUNI, _NOMULTI, _NOUNI, _NOBCAST
cdef u64 _BROADCAST

cdef class Filter:
    cdef readonly object addresses

    cdef int wants(self, u64 first, u64 second) except -1 nogil

cdef class ReceiveFilter(Filter):
    cdef bint _by_vlan
    cdef int _modes
    cdef u64[::1] _unicast
    cdef u64[::1] _multicast
    cdef u64[::1] _vlans

    @cython.locals(kind=int, vlan=int, to=u64)
    cdef int wants(self, u64 first, u64 second) except -1 nogil

@cython.locals(number=int)
cdef int among(u64 address, u64[::1] addresses) except -1 nogil
