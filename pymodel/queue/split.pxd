# Types for `make ext`, which compiles split.py as it stands.
import cython

from pymodel.memory cimport GuestMemory, u64
from pymodel.queue.broken cimport broken
from pymodel.queue.chain cimport Chain
from pymodel.queue.ring cimport Ring

cdef int _USED_SIZE, _FLAGS, _IDX, _ENTRIES, _NO_INTERRUPT, _NO_NOTIFY, _SKIP, _AVAILABLE, _HEAD

@cython.final
cdef class SplitRing(Ring):
    cdef int _last_avail
    cdef int _used
    cdef int _seen

    cpdef int pending(self, GuestMemory memory) except -1 nogil

    @cython.locals(count=int)
    cdef int look(self, int available) except -1 nogil

    @cython.locals(head=int)
    cpdef int take(self, GuestMemory memory, Chain chain) except -1 nogil

    cpdef int untake(self, int slots) except -1 nogil

    @cython.locals(first=int, number=int, element=u64)
    cpdef int publish(self, GuestMemory memory) except -1 nogil

    @cython.locals(event=int, wanted=int)
    cpdef int wants_interrupt(self, GuestMemory memory) except -1 nogil

    cpdef int suppress_kicks(self, GuestMemory memory) except -1 nogil

    @cython.locals(available=int)
    cpdef int ask_for_kicks(self, GuestMemory memory) except -1 nogil
