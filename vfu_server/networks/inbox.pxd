# Types for `make ext`, which compiles inbox.py as it stands.
import cython

from pymodel.devices.net.filter cimport Filter
from pymodel.devices.net.frame_head cimport FrameHead
from pymodel.memory cimport GuestMemory, Vectors, u64
from vfu_server.vfio.event cimport Event
from vfu_server.vfio.mutex cimport Mutex

cdef int _FRAMES_MAX, _BYTES_MAX, _ROOM, _BEGUN, _WHOLE, _VOID, _BEGUN_VOID

@cython.final
cdef class Inbox:
    cdef readonly Event event
    cdef readonly u64 features
    cdef readonly Filter filter
    cdef readonly u64 lost
    cdef Mutex _mutex
    cdef bint _told
    cdef object _data
    cdef u64 _base
    cdef unsigned int[::1] _starts
    cdef unsigned int[::1] _lengths
    cdef unsigned char[::1] _states
    cdef int _first
    cdef int _count
    cdef int _bytes
    cdef int _end

    @cython.locals(count=int, number=int, slot=int)
    cdef int empty(self, u64 features) except -1 nogil
    @cython.locals(length=int)
    cpdef int look(self) except -1 nogil
    cpdef u64 place(self) except? 0 nogil
    cpdef int drop(self) except -1 nogil
    @cython.locals(found=bint)
    cpdef int takes(self, FrameHead head) except -1 nogil
    @cython.locals(found=bint)
    cpdef int wants(self, FrameHead head) except -1 nogil
    @cython.locals(slot=int, state=int)
    cpdef int put(self, FrameHead head, u64 needed, GuestMemory memory, Vectors frame, int piece, int length) except -1 nogil
    cpdef int lose(self, int count) except -1 nogil
    cdef int reserve(self, int length, u64 needed) except -2 nogil
    cdef int finish(self, int slot, int state) except -1 nogil
    cdef int skip(self) except -1 nogil
