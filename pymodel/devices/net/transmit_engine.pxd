# Types for `make ext`, which compiles transmit_engine.py as it stands.
import cython

from pymodel.devices.net.channel cimport Channel
from pymodel.devices.net.counters cimport NetCounters
from pymodel.devices.net.header cimport Header
from pymodel.memory cimport Vectors, u64
from pymodel.queue.chain cimport Chain
from pymodel.queue.engine cimport Engine

cdef unsigned int _HEADER
cdef long long _LEAST, _MOST, _NOT_MINE
cdef int _EMPTY, _DONE, _FULL, _LOST, _SKIP

cdef class TransmitEngine(Engine):
    cdef readonly Channel channel
    cdef public bint full
    cdef NetCounters _counters
    cdef unsigned int _start
    cdef Header _header
    cdef u64[::1] _own
    cdef u64 _own_at
    cdef Vectors _frame

    @cython.locals(result=int)
    cdef int run(self) except -1 nogil
    @cython.locals(length=cython.longlong, found=cython.longlong, words=u64, offset=int, skip=cython.uint, number=int, said=int)
    cdef long long request(self) except? -3 nogil
    cdef int marks(self, Chain chain, long long written) except -1 nogil
