# Types for `make ext`, which compiles packed.py as it stands.
import cython

from pymodel.queue.chain cimport Chain, read_table
from pymodel.queue.ring cimport Ring, RingBuffer

cdef int _SIZE, _NEXT, _WRITE, _INDIRECT, _BOTH, _AHEAD, _FLAGS, _LEN

cdef class PackedRing(Ring):
    cdef int _avail
    cdef int _avail_wrap
    cdef int _used
    cdef int _used_wrap
    cdef int _seen
    cdef int _held
    cdef int _flags
    cdef int _told_flags

    cdef bint _available(self, memory, int offset, int wrap) except -1
    cpdef bint pending(self, memory) except -1

    @cython.locals(chain=Chain, size=int, offset=int, wrap=int, room=int, copied=list, count=int, ahead=int,
                   length=cython.longlong, flags=int)
    cpdef Chain take(self, memory)

    cpdef untake(self, int count)

    @cython.locals(size=int, offset=int, wrap=int, at=int, used=int, first_flags=int, moved=int, number=int,
                   buffer=RingBuffer, written=cython.longlong, flags=int)
    cpdef publish(self, memory, list buffers)

    @cython.locals(flags=int)
    cpdef bint wants_interrupt(self, memory) except -1

    cpdef suppress_kicks(self, memory)

    @cython.locals(edge=int, wrap=int, news=bint)
    cpdef bint ask_for_kicks(self, memory) except -1

    cdef _tell(self, memory, int flags)
