# Types for `make ext`, which compiles engine.py as it stands.
import cython

from pymodel.devices.block.store cimport Store
from pymodel.memory cimport u64
from pymodel.queue.chain cimport Chain
from pymodel.queue.engine cimport Engine

cdef u64 _IN, _OUT, _FLUSH, _GET_ID
cdef unsigned int _HEADER, _ID_BYTES
cdef int _SECTOR, _OK, _IOERR, _WROTE, _DONE, _BEGUN, _MOST
cdef long long _NOT_MINE, _LATER, _TYPE

cdef class BlockEngine(Engine):
    cdef readonly Store store
    cdef u64 size
    cdef u64 unit
    cdef public bint may_write
    cdef object _serial
    cdef u64 _serial_at
    cdef int _told
    cdef unsigned int[::1] _ids
    cdef unsigned int[::1] _slots
    cdef u64[::1] _status
    cdef int[::1] _errors

    @cython.locals(room=cython.longlong, kind=u64, sector=u64, written=cython.longlong, length=u64, result=int)
    cdef long long request(self) except? -3 nogil
    cdef int fits(self, u64 sector, u64 length) except -1 nogil
    cdef u64 status_at(self) except? 0xFFFFFFFFFFFFFFFF nogil
    cdef int marks(self, Chain chain, long long written) except -1 nogil
    cdef int perform(self) except -1 nogil
    cdef int proceed(self) except -1 nogil

    @cython.locals(number=int)
    cdef int land(self) except -1 nogil

    cdef int finish(self) except -1 nogil
