/*
 * kexec KERNEL INITRAMFS ARGUMENTS: another kernel takes over from this one at once, and no firmware runs.
 *
 * Devices are shut down as for a reboot, and are found by the new kernel as they are then.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    if (count != 4) {
        fputs("usage: kexec KERNEL INITRAMFS ARGUMENTS\n", stderr);
        return 2;
    }
    int kernel = open(arguments[1], O_RDONLY | O_CLOEXEC);
    int initramfs = open(arguments[2], O_RDONLY | O_CLOEXEC);
    if (kernel < 0 || initramfs < 0)
        err(2, "cannot open the kernel or its initramfs");
    if (syscall(SYS_kexec_file_load, kernel, initramfs, strlen(arguments[3]) + 1, arguments[3], 0UL) != 0)
        err(1, "cannot load the kernel");
    reboot(RB_KEXEC);
    err(1, "cannot start the kernel");
}
