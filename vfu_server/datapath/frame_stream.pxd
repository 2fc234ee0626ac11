# Types for `make ext`, which compiles frame_stream.py as it stands.
import cython

cdef long long _LONGEST
cdef int _LENGTH, _PART, _BAD

@cython.final
cdef class FrameStream:
    cdef readonly unsigned char[::1] came
    cdef readonly unsigned char[::1] rest
    cdef public int start
    cdef public int end
    cdef readonly long long length
    cdef public int sent
    cdef public int kept
    cdef public bint blocked

    cpdef int clear(self) except -1 nogil
    @cython.locals(at=int)
    cpdef int next(self) except -2 nogil
    @cython.locals(left=int)
    cpdef int make_room(self) except -1 nogil
