# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""A function's thread while there is nothing but kicks: from message to interrupt without the interpreter.

`loop.pyi` documents what is public. What C code needs explaining is here.

The function's lock is the gate: a batch holds it, and whoever closes the gate, resets or stops the function does so in
Python with the lock held. So a batch runs only if Python has not had the lock since the loop was made ready
(`TurnLock.entries`), and nothing has to be told to stop.
"""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from pymodel.pci import lane as lanes_module
from pymodel.queue import engine as engine_module

from pymodel.queue.engine cimport Engine
from vfu_server.vfio.clock cimport now
from vfu_server.vfio.line cimport NAP_OTHER, POLLIN, WAITS_MAX, Line, pollfd, posted, wait_for_others
from vfu_server.vfio.turn_lock cimport TurnLock

LANES_MAX = MOST

cdef enum:
    MOST = 512
    # Posted writes that are taken ahead of a batch.
    KICKS = 64

# Nanoseconds that something may wait for buffers.
cdef long long PATIENCE = <long long>(engine_module.PATIENCE * 1e9)

# What `Engine.run` says.
cdef int MORE = engine_module.MORE, OTHER = engine_module.OTHER, BEGUN = engine_module.BEGUN

# How an interrupt is sent: by a vector, or one of these.
cdef int NOBODY = lanes_module.NOBODY, ASK = lanes_module.ASK

# Why the loop ends: for the library, or for the model.
cdef enum:
    LIBRARY, MODEL


cdef class Served:
    """A lane, in a list of them: without the interpreter such a list can be gone through, and one of Python's can't."""

    cdef Engine engine
    cdef Served next
    cdef int number
    cdef uint64_t offset
    cdef uint32_t region
    cdef uint16_t name
    cdef int vector
    cdef bint kicked
    cdef long long until      # a time of `now`: what is held for so long is for the consumer; 0 where nothing is
    cdef bint other           # the next buffer is for the consumer


@cython.final
cdef class Loop:
    cdef Line line
    cdef TurnLock lock
    cdef Served first
    cdef set ports           # what lanes wait for, as others would
    cdef int current         # the number of the lane whose batch it is
    cdef readonly bint armed
    cdef bint behind         # the model had the last turn: a message has the next
    cdef unsigned long entries

    def __cinit__(self, Line line not None, TurnLock lock not None):
        self.line = line
        self.lock = lock

    def arm(self, lanes):
        cdef Served lane
        self.first = None
        self.ports = set()
        for number, (engine, region, offset, name, vector, kicked) in enumerate(lanes[:MOST]):
            lane = Served.__new__(Served)
            lane.engine = engine
            lane.number = number
            lane.region, lane.offset, lane.name, lane.vector, lane.kicked = region, offset, name, vector, kicked
            if lane.engine.fd >= 0:
                self.ports.add((lane.engine.fd, POLLIN))
            lane.next, self.first = self.first, lane
        self.armed = self.first is not None
        self.entries = self.lock.entries

    def run(self, timeout, also=()):
        """Whether the library is to look at the client, or at what else it waits for."""
        # Each lane has one descriptor at most.
        cdef pollfd fds[WAITS_MAX + MOST]
        cdef int count, result
        cdef long long until = -1
        cdef Served lane
        cdef Engine engine
        if not self.armed:
            return True
        # A lane waits for its port itself.
        count = wait_for_others(fds, [wait for wait in also if wait not in self.ports])
        if timeout is not None:
            until = now() + <long long>(timeout * 1e9)
        try:
            with nogil:
                result = self.go(fds, count, until)
        except Exception:
            # Of a batch, so the lock is held. What is wrong the model finds too, and it has the words for it.
            self.armed = False
            lane = self.first
            while lane.number != self.current:
                lane = lane.next
            lane.other = True
            engine = lane.engine
            engine.undo()
            # What was begun is done all the same, so that the disk is not kept; the model tells the driver.
            with nogil:
                self.perform(engine)
            engine.land()
            self.lock.give()
            result = MODEL
        self.behind = result == MODEL
        return result == LIBRARY

    def others(self):
        cdef list found = []
        cdef Served lane = self.first
        while lane is not None:
            if lane.other or lane.kicked:
                found.append(lane.engine.queue.index)
                lane.other = lane.kicked = False
            lane = lane.next
        return found

    cdef int go(self, pollfd *fds, int count, long long until) except -1 nogil:
        """Run until there is something for others; `until` is a time of `now`, or -1."""
        cdef posted post
        cdef int found, kicks, wait, ports
        cdef long long at, end
        cdef bint any = some_kicked(self.first)
        while True:
            found = -1
            kicks = 0
            while kicks < KICKS:
                found = self.line.peek(&post)
                if found != 1 or not kick(self.first, &post):
                    break
                self.line.drop(&post)
                kicks += 1
                any = True
            if self.behind and found != -1 and not kicks:
                return LIBRARY
            if any:
                any = self.work()
                if not self.armed:
                    return MODEL
            if kicks == KICKS:
                found = -1
            if found != -1:
                # Another message, a part of one, or the end.
                return LIBRARY
            end = earliest(self.first, until)
            wait = 0
            if not any and kicks < KICKS:
                at = now() if end >= 0 else 0
                wait = -1 if end < 0 else 0 if end <= at else <int>((end - at + 999_999) // 1_000_000)
            ports = watch(self.first, fds + count, 0)
            if self.line.nap(fds, count + ports, wait) & NAP_OTHER:
                if some_ready(fds + 1, count - 1):
                    return LIBRARY
                any = some_ready(fds + count, ports) or any
                ready(self.first, fds + count)
            if end >= 0:
                at = now()
                if 0 <= until <= at:
                    return LIBRARY
                if self.overdue(self.first, at):
                    self.armed = False
                    return MODEL

    cdef bint overdue(self, Served lane, long long at) noexcept nogil:
        """Whether this lane or one that follows it holds something for too long; the model is to have it."""
        if lane is None:
            return False
        if lane.until and lane.until <= at and not lane.kicked:
            lane.until = 0
            lane.other = True
        return self.overdue(lane.next, at) or lane.other

    cdef int work(self) except -1 nogil:
        """Run what was kicked; whether there is more. Not `armed` any more where Python has to go on."""
        cdef bint more
        self.lock.take()
        if self.lock.entries != self.entries:
            self.armed = False
        more = self.work_on(self.first)
        self.lock.give()
        return more

    cdef int work_on(self, Served lane) except -1 nogil:
        """The same for a lane and those that follow it; the lock is held."""
        if lane is None:
            return False
        if self.armed and lane.kicked:
            self.current = lane.number
            self.batch(lane, lane.engine)
        return self.work_on(lane.next) or lane.kicked

    cdef int perform(self, Engine engine) except -1 nogil:
        """Have an engine do what it has begun; the lock is held before and after it."""
        cdef bint more = True
        while more:
            self.lock.give()
            engine.perform()
            self.lock.take()
            more = engine.proceed()
        return 0

    cdef int batch(self, Served lane, Engine engine) except -1 nogil:
        """One batch of a lane; the lock is held, though not all the time."""
        cdef int result = engine.run()
        if result == BEGUN:
            self.perform(engine)
            if self.lock.entries != self.entries:
                # Somebody may wait for these requests.
                self.armed = False
            engine.finish()
            engine.queue.settle(engine.memory)
            result = MORE
        lane.kicked = result == MORE
        if not engine.held:
            lane.until = 0
        elif not lane.until:
            lane.until = now() + PATIENCE
        if result == OTHER or engine.failed:
            lane.other = True
            self.armed = False
        if engine.queue.owed:
            if lane.vector == ASK:
                lane.other = True
                self.armed = False
            else:
                if lane.vector != NOBODY:
                    self.line.trigger(<uint32_t>lane.vector)
                    engine.queue.interrupts += 1
                engine.queue.owed = False
        return 0


cdef bint some_kicked(Served lane) noexcept nogil:
    """Whether this lane or one that follows it was kicked."""
    return lane is not None and (lane.kicked or some_kicked(lane.next))


cdef long long earliest(Served lane, long long until) noexcept nogil:
    """A time to wake up at, or -1: the first of this one and those of this lane and what follows it."""
    if lane is None:
        return until
    if lane.until and (until < 0 or lane.until < until):
        until = lane.until
    return earliest(lane.next, until)


cdef int watch(Served lane, pollfd *fds, int count) noexcept nogil:
    """Have the descriptors of lanes in `fds`, behind `count` of them. How many there are then."""
    if lane is None:
        return count
    if lane.engine.fd >= 0 and not lane.kicked:
        fds[count].fd = lane.engine.fd
        fds[count].events = POLLIN
        fds[count].revents = 0
        count += 1
    return watch(lane.next, fds, count)


cdef void ready(Served lane, const pollfd *fds) noexcept nogil:
    """The lanes of descriptors that are ready have work; `fds` is as `watch` left it."""
    if lane is None:
        return
    if lane.engine.fd >= 0 and not lane.kicked:
        lane.kicked = fds[0].revents != 0
        fds += 1
    ready(lane.next, fds)


cdef bint some_ready(const pollfd *fds, int count) noexcept nogil:
    """Whether something happened to one of these descriptors."""
    cdef int number
    for number in range(count):
        if fds[number].revents:
            return True
    return False


cdef bint kick(Served lane, const posted *post) noexcept nogil:
    """Whether a write is the notification of a lane, as a driver means it; it is noted then."""
    if lane is None:
        return False
    if lane.offset != post.offset or lane.region != post.region:
        return kick(lane.next, post)
    if post.count < 2 or (post.data[0] | post.data[1] << 8) != lane.name:
        return False
    lane.kicked = True
    lane.engine.queue.kicks += 1
    return True
