# Types for `make ext`, which compiles turn_lock.py as it stands.
cdef class TurnLock:
    cdef readonly object _door
    cdef object _room
    cdef unsigned long _owner
    cdef Py_ssize_t _depth
