/*
 * Becomes another program under the restrictions of conf/dipcd.service, as far as a process can
 * take them on by itself: sandbox PROGRAM ... --config FILE ...
 *
 * Everything is read-only but the directory of FILE; few capabilities; few system calls, and none
 * that makes namespaces, writable code, or sockets of other families. Which calls and capabilities
 * stands in a source that the test makes of the unit (allowed_calls, kept_capabilities).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

extern const int allowed_calls[], kept_capabilities[];

struct attributes {
    uint64_t set, clear, propagation, userns;
};

#define READ_ONLY 1
#define RECURSIVE 0x8000
#define NEW_NAMESPACES                                                                             \
    (CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET       \
     | CLONE_NEWCGROUP)

static void die(const char *what)
{
    fprintf(stderr, "sandbox: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void protect_files(const char *writable)
{
    struct attributes close = { .set = READ_ONLY }, open = { .clear = READ_ONLY };
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        die("mount namespace");
    if (mount(writable, writable, NULL, MS_BIND, NULL) < 0)
        die(writable);
    if (syscall(SYS_mount_setattr, AT_FDCWD, "/", RECURSIVE, &close, sizeof close) < 0)
        die("read-only");
    if (syscall(SYS_mount_setattr, AT_FDCWD, writable, 0, &open, sizeof open) < 0)
        die("writable");
}

static void bound_capabilities(void)
{
    for (int number = 0; number <= 63; number++) {
        int kept = 0;
        for (const int *one = kept_capabilities; *one >= 0; one++)
            kept |= *one == number;
        if (!kept && prctl(PR_CAPBSET_READ, number) == 1 && prctl(PR_CAPBSET_DROP, number) < 0)
            die("capability bounding set");
    }
}

static struct sock_filter code[4096];
static unsigned short length;

static void add(uint16_t what, uint32_t value, uint8_t if_true, uint8_t if_false)
{
    code[length++] = (struct sock_filter){ what, if_true, if_false, value };
}

static void load(size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0); }

static void answer(uint32_t value) { add(BPF_RET | BPF_K, value, 0, 0); }

static void refuse(int errno_value) { answer(SECCOMP_RET_ERRNO | (uint32_t)errno_value); }

/* The call `number` fails when its argument has all of these bits, or one of them. */
static void refuse_bits(int number, int argument, uint32_t bits, int all)
{
    add(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 5);
    load(offsetof(struct seccomp_data, args) + 8 * (size_t)argument);
    add(BPF_ALU | BPF_AND | BPF_K, bits, 0, 0);
    if (all)
        add(BPF_JMP | BPF_JEQ | BPF_K, bits, 0, 1);
    else
        add(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0);
    refuse(EPERM);
    load(offsetof(struct seccomp_data, nr));
}

static void refuse_call(int number, int errno_value)
{
    add(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 1);
    refuse(errno_value);
}

static void only_families(void)
{
    static const int families[] = { AF_UNIX, AF_INET, AF_INET6, AF_NETLINK };
    add(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 11);
    load(offsetof(struct seccomp_data, args));
    for (int i = 0; i < 4; i++) {
        add(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)families[i], 0, 1);
        answer(SECCOMP_RET_ALLOW);
    }
    refuse(EAFNOSUPPORT);
    load(offsetof(struct seccomp_data, nr));
}

static void filter_calls(void)
{
    struct sock_fprog program;
    load(offsetof(struct seccomp_data, nr));
    refuse_bits(SYS_mmap, 2, PROT_WRITE | PROT_EXEC, 1);
    refuse_bits(SYS_mprotect, 2, PROT_EXEC, 1);
    refuse_bits(SYS_clone, 0, NEW_NAMESPACES, 0);
    refuse_call(SYS_unshare, EPERM);
    refuse_call(SYS_setns, EPERM);
    refuse_call(SYS_clone3, ENOSYS);
    only_families();
    for (const int *number = allowed_calls; *number >= 0; number++) {
        add(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)*number, 0, 1);
        answer(SECCOMP_RET_ALLOW);
    }
    refuse(EPERM);
    program.len = length;
    program.filter = code;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        die("no_new_privs");
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        die("seccomp");
}

int main(int argc, char **argv)
{
    char *file = NULL;
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i - 1], "--config") == 0)
            file = strdup(argv[i]);
    if (file == NULL) {
        fprintf(stderr, "usage: sandbox PROGRAM ... --config FILE\n");
        return 2;
    }
    protect_files(dirname(file));
    bound_capabilities();
    filter_calls();
    execv(argv[1], argv + 1);
    die(argv[1]);
}
