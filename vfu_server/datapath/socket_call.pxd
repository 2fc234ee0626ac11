# The system calls that frames pass sockets by. Vectors are laid out as their pieces.
cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        pass

cdef extern from "<sys/socket.h>" nogil:
    int AF_UNIX, MSG_NOSIGNAL, MSG_TRUNC
    cdef struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
    Py_ssize_t recv(int fd, void *data, size_t length, int flags)
    Py_ssize_t recvmsg(int fd, msghdr *message, int flags)
    Py_ssize_t sendmsg(int fd, const msghdr *message, int flags)

cdef extern from "<sys/un.h>" nogil:
    cdef struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]
