# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""A lock for what several threads share. `mutex.pyi` documents what is public."""

cimport cython

cdef extern from "Python.h" nogil:
    ctypedef struct PyThreadState:
        pass
    int PyGILState_Check()
    PyThreadState *PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState *)

cdef enum:
    # Times that one who needs the interpreter's lock too comes away empty-handed.
    TRIES = 16


@cython.final
cdef class Mutex:
    def __cinit__(self):
        pthread_mutex_init(&self.lock, NULL)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.lock)

    cpdef int take(self) noexcept nogil:
        cdef PyThreadState *state
        cdef int tries = 0
        if pthread_mutex_trylock(&self.lock) == 0:
            return 0
        if not PyGILState_Check():
            return pthread_mutex_lock(&self.lock)
        while True:
            state = PyEval_SaveThread()
            pthread_mutex_lock(&self.lock)
            tries += 1
            if tries == TRIES:
                PyEval_RestoreThread(state)
                return 0
            # Who waits for the interpreter keeps nobody waiting who does without it.
            pthread_mutex_unlock(&self.lock)
            PyEval_RestoreThread(state)
            if pthread_mutex_trylock(&self.lock) == 0:
                return 0

    cpdef int give(self) noexcept nogil:
        return pthread_mutex_unlock(&self.lock)
