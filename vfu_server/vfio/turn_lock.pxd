cimport cython

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    pthread_t pthread_self()
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)


@cython.final
cdef class TurnLock:
    cdef pthread_mutex_t door
    cdef pthread_mutex_t room
    cdef pthread_t owner
    cdef int depth
    cdef readonly unsigned long entries

    # Without the interpreter's lock, and not reentrant.
    cdef void take(self) noexcept nogil
    cdef void give(self) noexcept nogil
