# Types for `make ext`, which compiles ring.py as it stands.
from pymodel.memory cimport Buffer
from pymodel.queue.chain cimport Chain

cdef class RingBuffer(Buffer):
    cdef public int id
    cdef public int count
    cdef public long long written

cdef class Ring:
    cdef public int index
    cdef public bint event_idx
    cdef public bint indirect
    cdef public bint in_order
    cdef public int long_tables
    cdef public int table_max
    cdef public int size
    cdef public object desc
    cdef public object driver
    cdef public object device
    cdef public int unanswered

    cpdef bint pending(self, memory) except -1
    cpdef Chain take(self, memory)
    cpdef untake(self, int count)
    cpdef publish(self, memory, list buffers)
    cpdef bint wants_interrupt(self, memory) except -1
    cpdef suppress_kicks(self, memory)
    cpdef bint ask_for_kicks(self, memory) except -1
