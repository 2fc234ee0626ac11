/*
 * A vfio-user device with one BAR whose accesses a C callback answers: what the library costs with nothing behind it.
 *
 *   mmio-sample SOCKET
 *
 * Prints "ready" when it listens, and serves one client after the other until it is killed.
 */
#include <errno.h>
#include <libvfio-user.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BAR_SIZE = 0x4000 };

static char registers[BAR_SIZE];

static ssize_t on_access(vfu_ctx_t *context, char *data, size_t count, loff_t offset, bool is_write)
{
    (void)context;
    if (offset < 0 || (size_t)offset > sizeof registers || count > sizeof registers - (size_t)offset) {
        errno = EINVAL;
        return -1;
    }
    if (is_write)
        memcpy(registers + offset, data, count);
    else
        memcpy(data, registers + offset, count);
    return (ssize_t)count;
}

static vfu_ctx_t *device_at(const char *path)
{
    vfu_ctx_t *context = vfu_create_ctx(VFU_TRANS_SOCK, path, 0, NULL, VFU_DEV_TYPE_PCI);
    if (context == NULL || vfu_pci_init(context, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) != 0 ||
        vfu_setup_region(context, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, on_access,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) != 0 ||
        vfu_realize_ctx(context) != 0)
        return NULL;
    return context;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: mmio-sample SOCKET\n");
        return 2;
    }
    vfu_ctx_t *context = device_at(argv[1]);
    if (context == NULL) {
        perror(argv[1]);
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (vfu_attach_ctx(context) != 0) {
            perror("vfu_attach_ctx");
            return 1;
        }
        /* Blocks until the client leaves. */
        while (vfu_run_ctx(context) >= 0 || errno == EINTR)
            ;
    }
}
