# Types for `make ext`, which compiles switch.py as it stands.
import cython

from pymodel.devices.net.frame_head cimport FrameHead
from pymodel.memory cimport GuestMemory, Vectors, u64
from vfu_server.networks.address_table cimport AddressTable
from vfu_server.networks.inbox cimport Inbox
from vfu_server.vfio.clock cimport Clock
from vfu_server.vfio.mutex cimport Mutex

cdef int _DONE, _NOT_NOW, _ALL
cdef long long _AGE
cdef u64 _ADDRESS, _REST

@cython.final
cdef class Member:
    cdef readonly unsigned int number
    cdef readonly Inbox inbox
    cdef readonly FrameHead head
    cdef public Member left
    cdef public Member right
    cdef public object addresses
    cdef public int found
    cdef public unsigned int[::1] targets
    cdef Vectors _pieces

@cython.final
cdef class Switch:
    cdef Clock _clock
    cdef Mutex _mutex
    cdef object _changing
    cdef list _members
    cdef Member _root
    cdef AddressTable _owners
    cdef AddressTable _learned

    cpdef int pass_on(self, Member source, GuestMemory memory, Vectors frame, int piece, int length) except -2 nogil
    @cython.locals(to=u64, origin=u64, now=cython.longlong, entry=int)
    cdef int route(self, Member source) except -1 nogil
    @cython.locals(known=int)
    cdef int learn(self, Member source, u64 origin, long long now) except -2 nogil
    @cython.locals(number=int)
    cdef int each(self, Member source, GuestMemory memory, Vectors frame, int piece, int length) except -1 nogil
    cdef int give_all(self, Member member, Member source, GuestMemory memory, Vectors frame, int piece, int length) except -1 nogil
    cdef int give_one(self, Member member, unsigned int path, Member source, GuestMemory memory, Vectors frame, int piece, int length) except -1 nogil
    cdef int give(self, Member member, Member source, GuestMemory memory, Vectors frame, int piece, int length) except -1 nogil
    @cython.locals(at=int, entry=int)
    cdef int _change(self, unsigned int number, u64[::1] gone, u64[::1] new, bint forget) except -1 nogil
