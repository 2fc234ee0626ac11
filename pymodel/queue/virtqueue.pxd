# Types for `make ext`, which compiles virtqueue.py as it stands.
import cython

from pymodel.memory cimport GuestMemory, Segments
from pymodel.queue.chain cimport Chain
from pymodel.queue.ring cimport Ring, RingBuffer

cdef int _NOT_YET, _GIVEN_BACK

cdef class TakenBuffer(RingBuffer):
    cdef public long long life
    cdef public long long number
    cdef Virtqueue _owner

@cython.final
cdef class Virtqueue:
    cdef readonly int index
    cdef readonly int max_size
    cdef readonly int notify_data
    cdef public int outstanding
    cdef public long long requests
    cdef public long long bytes
    cdef public long long kicks
    cdef public long long interrupts
    cdef public long long life
    cdef public int size
    cdef public int vector
    cdef public bint enabled
    cdef public object desc
    cdef public object driver
    cdef public object device
    cdef public bint owed
    cdef public bint waiting
    cdef public bint untouched
    cdef public Ring ring
    cdef public object watcher
    cdef bint _lost
    cdef readonly Chain chain
    cdef GuestMemory _memory
    cdef object _line
    cdef readonly dict in_flight
    cdef list _further
    cdef long long _taken
    cdef bint _in_order
    cdef bint _refetchable
    cdef int _long_tables
    cdef int _shown_notify_data

    cpdef run(self, GuestMemory memory, consumer)

    cdef str _place(self, int reason)

    @cython.locals(ring=Ring, life=cython.longlong, rounds=int, enough=cython.longlong, buffer=TakenBuffer)
    cdef bint _rounds(self, GuestMemory memory, consumer) except -1

    cdef TakenBuffer _take(self, GuestMemory memory)
    cpdef TakenBuffer take_next(self)
    cpdef take_back(self, TakenBuffer buffer)
    cpdef completed(self, TakenBuffer buffer)
    cdef _use(self, RingBuffer buffer)
    cpdef publish(self, GuestMemory memory)
    @cython.locals(used=int)
    cdef int _publish(self, GuestMemory memory) except -1 nogil
    cpdef int settle(self, GuestMemory memory) except -1 nogil
