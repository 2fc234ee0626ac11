# Types for `make ext`, which compiles address_table.py as it stands.
import cython

from pymodel.memory cimport u64

cdef u64 _WORD

@cython.final
cdef class AddressTable:
    cdef readonly int size
    cdef readonly int count
    cdef u64 _factor
    cdef int _shift
    cdef u64[::1] _addresses
    cdef unsigned int[::1] _members
    cdef long long[::1] _times
    cdef int[::1] _buckets
    cdef int[::1] _next
    cdef int _free
    cdef int[::1] _older
    cdef int[::1] _newer

    cpdef int first(self, u64 address) except -2 nogil
    cpdef int another(self, int entry) except -2 nogil
    cpdef unsigned int member(self, int entry) except? 0 nogil
    cdef long long time(self, int entry) except? -1 nogil
    @cython.locals(entry=int, bucket=int)
    cpdef int add(self, u64 address, unsigned int member, long long time) except -1 nogil
    cpdef int touch(self, int entry, long long time) except -1 nogil
    @cython.locals(bucket=int, before=int)
    cpdef int remove(self, int entry) except -1 nogil
    @cython.locals(entry=int, after=int)
    cpdef int forget(self, unsigned int member) except -1 nogil
    @cython.locals(entry=int)
    cpdef int take_over(self, AddressTable other) except -1 nogil
    cdef int bucket(self, u64 address) except -1 nogil
    cdef int same(self, int entry, u64 address) except -2 nogil
    cdef int link(self, int entry, long long time) except -1 nogil
    cdef int unlink(self, int entry) except -1 nogil
