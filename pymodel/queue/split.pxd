# Types for `make ext`, which compiles split.py as it stands.
import cython

from pymodel.queue.chain cimport Chain, walk
from pymodel.queue.ring cimport Ring, RingBuffer

cdef int _USED_SIZE, _FLAGS, _IDX, _ENTRIES

cdef class SplitRing(Ring):
    cdef int _last_avail
    cdef int _used
    cdef int _seen

    cpdef bint pending(self, memory) except -1

    @cython.locals(count=int)
    cdef _look(self, int available)

    @cython.locals(chain=Chain, slot=int, head=int)
    cpdef Chain take(self, memory)

    cpdef untake(self, int count)

    @cython.locals(first=int, number=int, buffer=RingBuffer, room=int, used=int, elements=list)
    cpdef publish(self, memory, list buffers)

    cdef _write(self, memory, int index, bytes elements)

    @cython.locals(event=int)
    cpdef bint wants_interrupt(self, memory) except -1

    cpdef suppress_kicks(self, memory)
    cpdef bint ask_for_kicks(self, memory) except -1
