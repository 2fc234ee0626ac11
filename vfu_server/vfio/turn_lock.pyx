# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The lock of a function: whoever waits for it is next.

`turn_lock.pyi` documents what is public. What C code needs explaining is here.

The data path takes the lock without the interpreter's. So a thread that waits for it in Python gives up the
interpreter's lock meanwhile, as a batch may need that for an error.
"""

cimport cython
@cython.final
cdef class TurnLock:
    def __cinit__(self):
        pthread_mutex_init(&self.door, NULL)
        pthread_mutex_init(&self.room, NULL)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.door)
        pthread_mutex_destroy(&self.room)

    def __enter__(self):
        cdef pthread_t me = pthread_self()
        # Only this thread ever stores its own number there, so the look needs no lock.
        if self.owner != me:
            if pthread_mutex_trylock(&self.door) == 0:
                if pthread_mutex_trylock(&self.room) != 0:
                    with nogil:
                        pthread_mutex_lock(&self.room)
                pthread_mutex_unlock(&self.door)
            else:
                with nogil:
                    self.take()
            self.owner = me
            self.entries += 1
        self.depth += 1

    def __exit__(self, *_):
        self.depth -= 1
        if not self.depth:
            self.owner = 0
            pthread_mutex_unlock(&self.room)

    @property
    def awaited(self):
        if pthread_mutex_trylock(&self.door) == 0:
            pthread_mutex_unlock(&self.door)
            return False
        return True

    cdef void take(self) noexcept nogil:
        pthread_mutex_lock(&self.door)
        pthread_mutex_lock(&self.room)
        pthread_mutex_unlock(&self.door)

    cdef void give(self) noexcept nogil:
        pthread_mutex_unlock(&self.room)
