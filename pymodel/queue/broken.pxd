# Types for `make ext`, which compiles broken.py as it stands.
from pymodel.memory cimport u64

cpdef int broken(int reason, long long first=*, long long second=*) except -1 with gil
cpdef int beyond(u64 address, u64 length) except -1 with gil
