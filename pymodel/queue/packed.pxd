# Types for `make ext`, which compiles packed.py as it stands.
import cython

from pymodel.memory cimport GuestMemory, u64
from pymodel.queue.broken cimport broken
from pymodel.queue.chain cimport Chain, table_length
from pymodel.queue.ring cimport Ring

cdef int _SIZE, _NEXT, _WRITE, _INDIRECT, _FLAGS, _LEN, _AVAIL, _USED
cdef int _EVENT_DESC, _EVENT_FLAGS, _EVENT_MASK, _ENABLE, _DISABLE, _BY_DESC, _WRAP_SHIFT, _OFFSET
cdef int _SKIP, _WROTE, _ROOM, _GAP, _NOT_ALONE
cdef u64 _LENGTH

@cython.final
cdef class PackedRing(Ring):
    cdef int _avail
    cdef int _avail_wrap
    cdef int _used
    cdef int _used_wrap
    cdef int _seen
    cdef int _held
    cdef int _told_flags

    @cython.locals(flags=int)
    cdef int available(self, GuestMemory memory, int offset, int wrap) except -1 nogil

    cpdef int pending(self, GuestMemory memory) except -1 nogil

    @cython.locals(offset=int, wrap=int, room=int, count=int, address=u64, rest=u64, flags=int)
    cpdef int take(self, GuestMemory memory, Chain chain) except -1 nogil

    cpdef int untake(self, int slots) except -1 nogil

    @cython.locals(offset=int, wrap=int, at=int, used=int, first=int, first_flags=int, moved=int, number=int, flags=u64,
                   element=u64)
    cpdef int publish(self, GuestMemory memory) except -1 nogil

    @cython.locals(flags=int, ago=int, wanted=int)
    cpdef int wants_interrupt(self, GuestMemory memory) except -1 nogil

    cpdef int suppress_kicks(self, GuestMemory memory) except -1 nogil

    @cython.locals(before=int, offset=int, wrap=int)
    cpdef int ask_for_kicks(self, GuestMemory memory) except -1 nogil

    cdef int tell(self, GuestMemory memory, int flags) except -1 nogil

@cython.locals(distance=int)
cpdef int between(int start, int end, int size) except? -1 nogil
