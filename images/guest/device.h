/* A block device, or a file in its place, read and written past the page cache. */
#pragma once
#include <err.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

/* Opens it for O_RDONLY or O_RDWR and finds its size in bytes, or ends the program. */
static int open_device(const char *name, int access, uint64_t *size)
{
    struct stat status;
    int device = open(name, access | O_DIRECT | O_CLOEXEC);
    if (device < 0 || fstat(device, &status) != 0)
        err(2, "cannot open %s", name);
    *size = 0;
    if (S_ISBLK(status.st_mode))
        ioctl(device, BLKGETSIZE64, size);
    else
        *size = (uint64_t)status.st_size;
    return device;
}

/* Memory that the device takes, to be freed. */
static void *device_buffer(size_t size)
{
    void *buffer = NULL;
    if (posix_memalign(&buffer, 4096, size) != 0)
        abort();
    return buffer;
}
