# Types for `make ext`, which compiles chain.py as it stands.
import cython

from pymodel.memory cimport GuestMemory, u64
from pymodel.queue.broken cimport beyond, broken

cdef int _SIZE, _NEXT, _WRITE, _INDIRECT, _ROOM
cdef int _OUTSIDE, _LOOP, _BOTH, _OUTSIDE_TABLE, _TABLE_LOOP, _NESTED, _ORDER, _LONG, _NO_TABLES, _TABLE
cdef long long _MAX_BYTES
cdef u64 _LAST_ADDRESS, _LENGTH

@cython.final
cdef class Chain:
    cdef public u64[::1] addresses
    cdef public unsigned int[::1] lengths
    cdef readonly int room
    cdef public int id
    cdef public int slots
    cdef readonly int count
    cdef readonly int readable_count
    cdef readonly long long readable_size
    cdef readonly long long writable_size
    cdef readonly bint wraps
    cdef public u64 table
    cdef public int descriptor

    cpdef int clear(self) except -1 nogil
    cpdef list pairs(self, int first, int end)
    cpdef int add(self, u64 address, unsigned int length, int flags) except -1 nogil
    cpdef int grow(self) except -1 with gil

    cpdef int walk(self, GuestMemory memory, u64 table, int size, int head, int table_max) except -1 nogil

    @cython.locals(left=int, address=u64, rest=u64, flags=int, count=int)
    cdef int follow(self, GuestMemory memory, u64 table, int size, int index, int table_max, bint nested) except -1 nogil

    @cython.locals(index=int, address=u64, rest=u64)
    cdef int add_table(self, GuestMemory memory, u64 table, int count) except -1 nogil

@cython.locals(count=cython.longlong)
cpdef int table_length(u64 table, unsigned int length, int table_max) except -1 nogil
