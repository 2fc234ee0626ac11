# Types for `make ext`, which compiles receive_engine.py as it stands.
import cython

from pymodel.devices.net.channel cimport Channel
from pymodel.devices.net.counters cimport NetCounters
from pymodel.devices.net.flow cimport Flow, Toeplitz
from pymodel.devices.net.header cimport Header
from pymodel.memory cimport Vectors, u64
from pymodel.queue.engine cimport Engine

cdef int _EMPTY, _MORE, _OTHER, _SKIP, _WROTE, _NOTHING, _NOT_NOW, _BATCH, _BUFFERS, _MOST
cdef long long _LOOK, _HEADER, _ETHERNET, _HASHED, _HEAD, _LONGEST

cdef class ReceiveEngine(Engine):
    cdef readonly Channel channel
    cdef readonly long long left
    cdef NetCounters _counters
    cdef Header _header
    cdef unsigned int _start
    cdef Toeplitz _hashes
    cdef Flow _flow
    cdef u64[::1] _own
    cdef u64 _own_at
    cdef bint _merge
    cdef long long _longest
    cdef long long _enough
    cdef Vectors _room
    cdef object _spare
    cdef u64 _spare_at
    cdef int _looked_at
    cdef int _first
    cdef int _count
    cdef u64[::1] _heads
    cdef unsigned int[::1] _pieces
    cdef long long[::1] _ends
    cdef unsigned int[::1] _ids
    cdef unsigned int[::1] _slots

    @cython.locals(result=int, rounds=int)
    cdef int run(self) except -1 nogil
    @cython.locals(usual=int, room=cython.longlong, count=cython.longlong, result=int, first=int)
    cdef int next(self) except -1 nogil
    cdef int fill(self, long long needed) except -1 nogil
    cdef long long free(self) except? -1 nogil
    @cython.locals(number=int, part=int, before=u64, size=cython.longlong)
    cdef int add(self) except -1 nogil
    @cython.locals(first=int)
    cdef int open(self) except -1 nogil
    @cython.locals(first=int)
    cdef int close(self) except -1 nogil
    cdef int wanted(self, long long length) except -1 nogil
    @cython.locals(length=cython.longlong, head=u64, offset=int, end=cython.longlong, used=int, start=cython.longlong, until=cython.longlong)
    cdef int deliver(self, long long count) except -1 nogil
    @cython.locals(count=cython.longlong, report=u64)
    cdef u64 hash(self, long long length) except? 0xFFFFFFFFFFFFFFFF nogil
    cdef int keep(self, long long count, long long room) except -1 nogil
    @cython.locals(slots=int)
    cdef int undo(self) except -1 nogil
