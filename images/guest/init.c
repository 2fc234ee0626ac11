/*
 * The guest's first process: mounts, loads modules, and serves the console protocol on ttyS0.
 *
 * After "guest: ready" it reads lines. Each is run by `sh -c` with no standard input and both outputs on the console;
 * then "\nguest: exit STATUS COUNT\n" follows, where COUNT numbers the lines from 1 (a command killed by signal S ends
 * with 128 + S). Nothing is echoed, and there is no prompt. With `guest.shell` on the kernel command line there is an
 * interactive shell for a person instead.
 *
 * With `root=DEVICE` it waits for that block device, makes the ext4 file system on it the root, and goes on as the /init
 * that it finds there; if that cannot be, it says so and stays where it is.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { LINE_SIZE = 65536, WAIT_FOR_ROOT_MS = 10000, EXT4_MAGIC = 0xef53 };

static char kernel_arguments[4096];

static void write_all(const char *text, size_t size)
{
    while (size > 0) {
        ssize_t written = write(STDOUT_FILENO, text, size);
        if (written < 0 && errno != EINTR)
            return;
        if (written > 0) {
            text += written;
            size -= (size_t)written;
        }
    }
}

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    write_all(text, size < (int)sizeof text ? (size_t)size : sizeof text - 1);
}

static void mount_or_say(const char *type, const char *where)
{
    mkdir(where, 0755);
    if (mount(type, where, type, 0, NULL) != 0 && errno != EBUSY)
        say("guest: cannot mount %s: %s\n", where, strerror(errno));
}

/* Loads the modules that the file /modules/order names, one path a line, in that order. */
static void load_modules(void)
{
    char line[256];
    FILE *order = fopen("/modules/order", "re");
    if (order == NULL)
        return;
    while (fgets(line, sizeof line, order) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        int module = open(line, O_RDONLY | O_CLOEXEC);
        if (module < 0 || (syscall(SYS_finit_module, module, "", 0) != 0 && errno != EEXIST))
            say("guest: cannot load %s: %s\n", line, strerror(errno));
        if (module >= 0)
            close(module);
    }
    fclose(order);
}

/* Makes the serial port this process's console; raw, so that lines may be long and nothing is echoed. */
static void open_console(bool raw)
{
    int console = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    if (console < 0)
        console = open("/dev/console", O_RDWR | O_NOCTTY);
    if (console < 0)
        return;
    struct termios settings;
    if (tcgetattr(console, &settings) == 0) {
        if (raw)
            cfmakeraw(&settings);
        else
            settings.c_lflag |= ECHO | ICANON | ISIG;
        cfsetspeed(&settings, B115200);
        tcsetattr(console, TCSANOW, &settings);
    }
    dup2(console, STDIN_FILENO);
    dup2(console, STDOUT_FILENO);
    dup2(console, STDERR_FILENO);
    if (console > STDERR_FILENO)
        close(console);
}

/* Waits for one child and reaps every orphan that ends meanwhile. */
static int wait_for(pid_t child)
{
    for (;;) {
        int status;
        pid_t ended = waitpid(-1, &status, 0);
        if (ended == child)
            return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        if (ended < 0 && errno != EINTR)
            return 127;
    }
}

static int run(const char *command)
{
    pid_t child = fork();
    if (child < 0)
        return 126;
    if (child == 0) {
        setsid();
        int nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, STDIN_FILENO);
        close(nothing);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    return wait_for(child);
}

/* One line without its end; false at the end of the file. A longer line than fits is cut. */
static bool read_line(char *line, size_t size)
{
    size_t length = 0;
    for (;;) {
        char byte;
        ssize_t got = read(STDIN_FILENO, &byte, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        if (byte == '\n') {
            line[length] = '\0';
            return true;
        }
        if (byte != '\r' && length + 1 < size)
            line[length++] = byte;
    }
}

static void serve(void)
{
    static char line[LINE_SIZE];
    unsigned long count = 0;
    say("guest: ready\n");
    while (read_line(line, sizeof line)) {
        int status = run(line);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        say("\nguest: exit %d %lu\n", status, ++count);
    }
}

static void interactive(void)
{
    for (;;) {
        pid_t child = fork();
        if (child == 0) {
            setsid();
            ioctl(STDIN_FILENO, TIOCSCTTY, 1);
            execl("/bin/sh", "sh", "-i", (char *)NULL);
            _exit(127);
        }
        wait_for(child);
    }
}

static void read_kernel_arguments(void)
{
    int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? 0 : read(file, kernel_arguments, sizeof kernel_arguments - 1);
    if (file >= 0)
        close(file);
    kernel_arguments[size > 0 ? size : 0] = '\0';
}

static bool root_is_a_disk(void)
{
    struct statfs status;
    return statfs("/", &status) == 0 && status.f_type == EXT4_MAGIC;
}

/* Comes back only if there is no root= or it does not work out. */
static void enter_root(void)
{
    static const char *const moved[] = {"dev", "proc", "sys", "run", "tmp"};
    const char *found = strstr(kernel_arguments, " root=");
    char device[256], place[300];
    if (found == NULL || sscanf(found, " root=%255s", device) != 1)
        return;
    for (int waited = 0; access(device, F_OK) != 0 && waited < WAIT_FOR_ROOT_MS; waited += 10)
        usleep(10000);
    mkdir("/disk", 0755);
    if (mount(device, "/disk", "ext4", 0, NULL) != 0) {
        say("guest: cannot mount the root %s: %s\n", device, strerror(errno));
        return;
    }
    for (size_t index = 0; index < sizeof moved / sizeof *moved; index++) {
        char from[300];
        snprintf(from, sizeof from, "/%s", moved[index]);
        snprintf(place, sizeof place, "/disk/%s", moved[index]);
        mkdir(place, 0755);
        if (mount(from, place, NULL, MS_MOVE, NULL) != 0)
            say("guest: cannot move %s: %s\n", from, strerror(errno));
    }
    if (chdir("/disk") != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0)
        say("guest: cannot enter the root: %s\n", strerror(errno));
    execl("/init", "init", (char *)NULL);
    say("guest: the root has no init: %s\n", strerror(errno));
}

int main(void)
{
    setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin", 1);
    setenv("HOME", "/root", 1);
    setenv("TERM", "vt100", 1);
    umask(022);
    bool entered = root_is_a_disk();
    if (!entered) {
        mount_or_say("proc", "/proc");
        mount_or_say("sysfs", "/sys");
        mount_or_say("devtmpfs", "/dev");
        mount_or_say("tmpfs", "/run");
        mount_or_say("tmpfs", "/tmp");
        mount_or_say("debugfs", "/sys/kernel/debug");
    }
    read_kernel_arguments();
    bool shell = strstr(kernel_arguments, "guest.shell") != NULL;
    open_console(!shell);
    if (!entered) {
        load_modules();
        enter_root();
    }
    if (shell)
        interactive();
    serve();
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
