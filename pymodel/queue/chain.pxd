# Types for `make ext`, which compiles chain.py as it stands.
import cython

cdef int _SIZE, _NEXT, _WRITE, _INDIRECT

cdef class Chain:
    cdef public int id
    cdef public int count
    cdef readonly list readable
    cdef readonly list writable
    cdef readonly long long readable_size
    cdef readonly long long writable_size

    cpdef add(self, address, long long length, int flags)

@cython.locals(chain=Chain, index=int, length=cython.longlong, flags=int, following=int)
cpdef Chain walk(memory, table, int size, int head, int table_max)

@cython.locals(count=cython.longlong, rest=cython.longlong)
cpdef list read_table(memory, table, long long length, int table_max)

@cython.locals(count=int, index=int, size=cython.longlong, flags=int, following=int)
cdef _walk_table(list descriptors, Chain chain)
