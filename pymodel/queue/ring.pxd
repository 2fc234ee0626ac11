# Types for `make ext`, which compiles ring.py as it stands.
from pymodel.memory cimport Buffer, GuestMemory, u64
from pymodel.queue.chain cimport Chain

cdef int _SKIP, _WROTE
cdef long long _LONGEST

cdef class RingBuffer(Buffer):
    cdef public int id
    cdef public int slots
    cdef public long long written

cdef class Ring:
    cdef public int index
    cdef public bint event_idx
    cdef public bint indirect
    cdef public bint in_order
    cdef public int long_tables
    cdef public int table_max
    cdef public int size
    cdef public u64 desc
    cdef public u64 driver
    cdef public u64 device
    cdef public int unanswered
    cdef readonly int completed
    cdef unsigned int[::1] _ids
    cdef unsigned int[::1] _slots
    cdef unsigned int[::1] _lengths
    cdef unsigned char[::1] _marks

    cdef int put(self, int id, int slots, long long written, int marks) except -1 nogil
    cdef int pending(self, GuestMemory memory) except -1 nogil
    cdef int take(self, GuestMemory memory, Chain chain) except -1 nogil
    cdef int untake(self, int slots) except -1 nogil
    cdef int publish(self, GuestMemory memory) except -1 nogil
    cdef int wants_interrupt(self, GuestMemory memory) except -1 nogil
    cdef int suppress_kicks(self, GuestMemory memory) except -1 nogil
    cdef int ask_for_kicks(self, GuestMemory memory) except -1 nogil
