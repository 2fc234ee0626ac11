# Types for `make ext`, which compiles switch_channel.py as it stands.
import cython

from pymodel.devices.net.channel cimport Channel
from pymodel.memory cimport GuestMemory, Vectors, u64
from vfu_server.networks.switch cimport Member, Switch

cdef int _LOST
cdef u64 _HEAD

cdef class SwitchChannel(Channel):
    cdef Switch _switch
    cdef Member _member

    @cython.locals(length=u64, count=u64, piece=int)
    cdef int send(self, GuestMemory memory, Vectors frame) except -2 nogil
    @cython.locals(length=int)
    cdef int receive(self, GuestMemory memory, Vectors room, int first) except -2 nogil
