# Types for `make ext`, which compiles engine.py as it stands.
import cython

from pymodel.memory cimport GuestMemory
from pymodel.queue.chain cimport Chain
from pymodel.queue.virtqueue cimport Virtqueue

cdef int _EMPTY, _MORE, _OTHER, _BEGUN, _BATCH
cdef long long _BATCH_BYTES, _NOT_MINE, _LATER

cdef class Engine:
    cdef readonly Virtqueue queue
    cdef Chain chain
    cdef readonly GuestMemory memory
    cdef public long long life
    cdef int _taken
    cdef readonly int begun
    cdef readonly bint landed
    cdef public int failed
    cdef public int fd
    cdef public bint held

    @cython.locals(result=int, rounds=int, enough=cython.longlong, written=cython.longlong)
    cdef int run(self) except -1 nogil
    cdef long long request(self) except? -3 nogil
    cdef int marks(self, Chain chain, long long written) except -1 nogil
    cdef int perform(self) except -1 nogil
    cdef int proceed(self) except -1 nogil
    cdef int land(self) except -1 nogil
    cdef int finish(self) except -1 nogil
    cdef int undo(self) except -1 nogil
