# Types for `make ext`, which compiles counters.py as it stands.
import cython

from pymodel.memory cimport u64

cdef int _RX, _TX, _EACH

@cython.final
cdef class NetCounters:
    cdef u64[::1] _device
    cdef u64[::1] _queues

    cpdef int received(self, int queue, u64 length) except -1 nogil
    cpdef int sent(self, int queue, u64 length) except -1 nogil
    @cython.locals(place=int)
    cpdef drop(self, str reason, object queue=*, long long count=*)
    @cython.locals(place=int)
    cpdef count(self, str name)
    cdef int _passed(self, int name, int queue, u64 length) except -1 nogil
