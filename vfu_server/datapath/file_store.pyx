# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
"""The fast side of a disk in a file: between the page cache and guest memory, without the interpreter.

`file_store.pyi` documents what is public. What C code needs explaining is here.

A read, and a write where the file system can tell, goes straight to or from guest memory while the function's lock is
held: RWF_NOWAIT has the kernel give up instead of waiting. Other writes are copied first, and then made without the
lock, so that a reset has nothing of the guest's left in use, and nobody waits for the file but its own function. A long
one goes in parts, each copied with the lock and made without: a part is still in the processor's cache when it is
written.
"""

cimport cython
from libc.errno cimport EINTR, EIO, EOPNOTSUPP, ENOSYS, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from pymodel.devices.block import store as stores

from pymodel.devices.block.store cimport Store
from pymodel.memory cimport GuestMemory, Vectors, u64
from pymodel.queue.chain cimport Chain
from vfu_server.vfio.clock cimport now

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        pass
    int RWF_NOWAIT
    Py_ssize_t preadv2(int fd, const iovec *parts, int count, long long offset, int flags)
    Py_ssize_t pwritev2(int fd, const iovec *parts, int count, long long offset, int flags)

cdef extern from "<unistd.h>" nogil:
    int SEEK_END
    long long lseek(int fd, long long offset, int whence)
    Py_ssize_t pwrite(int fd, const void *data, size_t length, long long offset)

# What `Store` says.
cdef int DONE = stores.DONE, NOT_NOW = stores.NOT_NOW, BEGUN = stores.BEGUN

cdef enum:
    # Writes that are begun at a time, and bytes of them. One with more bytes than a part is begun alone, and one of more
    # than LONGEST is for the pool.
    WRITES_MAX = 64
    BYTES_MAX = 1 << 20
    PART = 1 << 18
    LONGEST = 1 << 22

cdef struct Write:
    char *data
    size_t length
    long long offset
    int error
    long long taken           # nanoseconds, over all parts


@cython.final
cdef class FileStore(Store):
    cdef int fd
    cdef long long least          # the file was never shorter, or it lost something
    cdef bint reads
    cdef bint writes
    cdef bint copies
    cdef long long slow_after     # nanoseconds
    cdef Vectors vectors
    cdef char *copy
    cdef size_t used
    cdef Write begun[WRITES_MAX]
    cdef int count
    # Of a long one, what is yet to be copied: so many bytes, from there in `vectors` on.
    cdef u64 left
    cdef int piece
    cdef u64 within
    cdef readonly uint64_t written
    cdef readonly bint slow
    cdef public uint64_t others
    cdef public uint64_t durable

    def __cinit__(self, int fd, long long least, *, bint reads, bint writes, double slow_after):
        self.fd = fd
        self.least = least
        self.reads = reads
        self.writes = writes
        self.slow_after = <long long>(slow_after * 1e9)
        self.vectors = Vectors()

    def __dealloc__(self):
        free(self.copy)

    @property
    def busy(self):
        return self.count > 0

    def may_copy(self, bint allowed):
        self.copies = allowed
        self.slow = False

    cdef int gather(self, GuestMemory memory, Chain chain, int first, u64 skip, u64 length, bint write) except -1 nogil:
        """Whether a part of a chain was found in as few pieces as a call takes."""
        cdef u64 count, wanted = length
        self.vectors.count = 0
        self.vectors.size = 0
        while length:
            if skip >= chain.lengths[first]:
                skip -= chain.lengths[first]
                first += 1
                continue
            count = chain.lengths[first] - skip
            if count > length:
                count = length
            memory.places(chain.addresses[first] + skip, count, write, self.vectors)
            skip += count
            length -= count
        return self.vectors.size == wanted

    cdef int read(self, GuestMemory memory, Chain chain, int first, u64 skip, u64 length, u64 offset) except -1 nogil:
        cdef Py_ssize_t count
        if self.left or not self.reads or not self.gather(memory, chain, first, skip, length, True):
            return NOT_NOW
        count = preadv2(self.fd, <iovec *>&self.vectors.pieces[0], self.vectors.count, <long long>offset, RWF_NOWAIT)
        if count < 0 and errno in (EOPNOTSUPP, ENOSYS):
            self.reads = False
        return DONE if count >= 0 and <u64>count == length else NOT_NOW

    cdef int write(self, GuestMemory memory, Chain chain, int first, u64 skip, u64 length, u64 offset) except -1 nogil:
        cdef Py_ssize_t count
        if self.left or not (self.writes or self.copies) or lseek(self.fd, 0, SEEK_END) < self.least:
            return NOT_NOW
        if not self.gather(memory, chain, first, skip, length, False):
            return NOT_NOW
        if self.writes:
            count = pwritev2(self.fd, <iovec *>&self.vectors.pieces[0], self.vectors.count, <long long>offset,
                             RWF_NOWAIT)
            if count > 0 or (count == 0 and not length):
                self.written += 1
            if count >= 0 and <u64>count == length:
                return DONE
            if count < 0 and errno in (EOPNOTSUPP, ENOSYS):
                self.writes = False
        return self.begin(length, <long long>offset) if self.copies else NOT_NOW

    cdef int begin(self, u64 length, long long offset) noexcept nogil:
        """Copy what was gathered, or the first part of it, for `perform`."""
        if self.copy == NULL:
            self.copy = <char *>malloc(BYTES_MAX)
        if self.copy == NULL or self.count == WRITES_MAX or length > LONGEST:
            return NOT_NOW
        if self.count and (length > PART or length > BYTES_MAX - self.used):
            return NOT_NOW
        self.left = length
        self.piece = 0
        self.within = 0
        self.begun[self.count].taken = 0
        self.copy_part(&self.begun[self.count], offset)
        self.count += 1
        return BEGUN

    cdef void copy_part(self, Write *write, long long offset) noexcept nogil:
        """Copy as much as is one write of what is `left`."""
        cdef u64 count, wanted = min(self.left, <u64>PART)
        write.data = self.copy + self.used
        write.length = wanted
        write.offset = offset
        write.error = 0
        self.left -= wanted
        while wanted:
            count = min(wanted, self.vectors.pieces[2 * self.piece + 1] - self.within)
            memcpy(self.copy + self.used, <void *>(self.vectors.pieces[2 * self.piece] + self.within), count)
            self.used += count
            self.within += count
            wanted -= count
            if self.within == self.vectors.pieces[2 * self.piece + 1]:
                self.piece += 1
                self.within = 0

    cdef int clean(self) except -1 nogil:
        return self.durable == self.written + self.others

    cdef int perform(self) except -1 nogil:
        cdef int number
        cdef long long start
        cdef Write *write
        for number in range(self.count):
            write = &self.begun[number]
            start = now()
            write.error = put(self.fd, write)
            self.written += 1
            write.taken += now() - start
            if write.taken > self.slow_after:
                # The next one is for the pool; the disk hears of it when it is asked for a store again.
                self.slow = True
                self.copies = False
        return 0

    cdef int proceed(self, bint wanted) except -1 nogil:
        cdef Write *write = &self.begun[0]
        if not self.left:
            return False
        if wanted and not write.error and lseek(self.fd, 0, SEEK_END) < self.least:
            write.error = EIO
        if not wanted or write.error:
            self.left = 0
            return False
        self.used = 0
        self.copy_part(write, write.offset + <long long>write.length)
        return True

    cdef int error(self, int number) except -1 nogil:
        return self.begun[number].error

    cdef int landed(self) except -1 nogil:
        self.count = 0
        self.used = 0
        return 0


cdef int put(int fd, const Write *write) noexcept nogil:
    """Make a write, and return 0 or its error number."""
    cdef size_t done = 0
    cdef Py_ssize_t count
    while done < write.length:
        count = pwrite(fd, write.data + done, write.length - done, write.offset + <long long>done)
        if count > 0:
            done += <size_t>count
        elif count == 0:
            return EIO
        elif errno != EINTR:
            return errno
    return 0
