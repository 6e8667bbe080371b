/*
 * A program with a part of a segment, for the tests of families: does one thing for each packet on
 * its standard input, a socket, and answers with one. An answer "! ERRNO" or "! SIGNAL" is one
 * that failed. Places are bytes from the beginning of the area; a word has eight.
 *
 *   trap            a userfaultfd, which comes with the answer, and the address of the sentinel
 *   lesser          the same with one for user mode only
 *   helper          the same with the mprotect trap: one end of a pair of sockets comes
 *   tamper          makes the userfaultfd blocking, and goes on doing so
 *   name            the word in the sentinel page
 *   map, open       maps the file that comes with it, closed; opens it: the address
 *   load AT, store AT VALUE        a word
 *   read AT         a word by read(2), that is, in kernel mode
 *   touch AT        a thread that loads a word; touched: its answer
 *   spin AT         a thread that counts a word up until "still", which says how far they came
 *   storm           a thread that forks and moves a mapping of its own, until "still"
 *   fork            a child that listens to the socket that comes with it: its pid
 *   populate        stores into every page
 *   births N        forks N children that end at once, one after the other: nanoseconds each
 *   unmap AT BYTES, move AT BYTES  elsewhere: the address
 *   unregister AT BYTES            from the userfaultfd
 *   exec            becomes another program
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SPINNERS = 4 };

static int listening = 0, trap = -1;
static char *area;
static size_t area_bytes, page_bytes;
static volatile uint64_t *sentinel;
static __thread sigjmp_buf escape;
static __thread volatile sig_atomic_t may_escape;

static void on_signal(int number)
{
    if (!may_escape) {
        signal(number, SIG_DFL);
        raise(number);
    }
    siglongjmp(escape, number);
}

static void say(const char *text, int fd)
{
    struct iovec part = { (char *)text, strlen(text) };
    union {
        char bytes[CMSG_SPACE(sizeof fd)];
        struct cmsghdr header;
    } control = { 0 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    }
    if (sendmsg(listening, &message, MSG_NOSIGNAL) < 0)
        _exit(0);
}

static int hear(char *text, size_t room)
{
    struct iovec part = { text, room - 1 };
    int fd = -1;
    union {
        char bytes[CMSG_SPACE(sizeof fd)];
        struct cmsghdr header;
    } control = { 0 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1,
        .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };
    ssize_t length = recvmsg(listening, &message, MSG_CMSG_CLOEXEC);
    if (length <= 0)
        _exit(0);
    text[length] = 0;
    if (CMSG_FIRSTHDR(&message))
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static void say_number(uint64_t number)
{
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    say(text, -1);
}

static void say_failure(const char *why)
{
    char text[64];
    snprintf(text, sizeof text, "! %s", why);
    say(text, -1);
}

/* A load or a store; the answer is the value or the signal. */
static void access_word(char *at, const uint64_t *value, char *answer, size_t room)
{
    int number = sigsetjmp(escape, 1);
    if (number) {
        snprintf(answer, room, "! %s", number == SIGBUS ? "SIGBUS" : "SIGSEGV");
    } else {
        may_escape = 1;
        if (value)
            *(volatile uint64_t *)at = *value;
        uint64_t found = *(volatile uint64_t *)at;
        snprintf(answer, room, "%llu", (unsigned long long)found);
    }
    may_escape = 0;
}

static void map_sentinel(void)
{
    void *page = mmap(NULL, page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(page, page_bytes, MADV_WIPEONFORK);
    sentinel = page;
}

static void make_trap(int flags)
{
    char text[32];
    map_sentinel();
    trap = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
    if (trap < 0)
        return say_failure(strerror(errno));
    snprintf(text, sizeof text, "%llu", (unsigned long long)(uintptr_t)sentinel);
    say(text, trap);
}

/* The orders of dipc-wire's trap.rs: number, word, address, bytes. */
static void *help(void *argument)
{
    int orders = (int)(intptr_t)argument;
    uint64_t order[4];
    while (recv(orders, order, sizeof order, 0) == sizeof order) {
        int access = order[1] == 2 ? PROT_NONE : PROT_READ | (order[1] == 4 ? PROT_WRITE : 0);
        uint64_t answer[2] = { order[0], 0 };
        if (order[1] == 1) {
            mprotect((void *)sentinel, page_bytes, PROT_READ | PROT_WRITE);
            *sentinel = order[2];
        } else if (mprotect((void *)(uintptr_t)order[2], order[3], access)) {
            answer[1] = errno;
        }
        send(orders, answer, sizeof answer, MSG_NOSIGNAL);
    }
    return NULL;
}

static void make_helper(void)
{
    int ends[2];
    pthread_t thread;
    char text[32];
    map_sentinel();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        return say_failure(strerror(errno));
    pthread_create(&thread, NULL, help, (void *)(intptr_t)ends[0]);
    snprintf(text, sizeof text, "%llu", (unsigned long long)(uintptr_t)sentinel);
    say(text, ends[1]);
    close(ends[1]);
}

static void *tamper(void *nothing)
{
    for (;;)
        fcntl(trap, F_SETFL, 0);
    return nothing;
}

static void map(int fd)
{
    struct stat about;
    fstat(fd, &about);
    area_bytes = about.st_size;
    area = mmap(NULL, area_bytes, PROT_NONE, MAP_SHARED, fd, 0);
    close(fd);
    say_number((uintptr_t)area);
}

static void read_word(size_t at)
{
    int ends[2];
    uint64_t word = 77;
    if (pipe(ends) || write(ends[1], &word, sizeof word) != sizeof word)
        return say_failure(strerror(errno));
    ssize_t length = read(ends[0], area + at, sizeof word);
    int error = errno;
    close(ends[0]);
    close(ends[1]);
    if (length == sizeof word)
        say_number(*(volatile uint64_t *)(area + at));
    else
        say_failure(strerror(error));
}

static pthread_t toucher;
static char touched[64];

static void *touch(void *at)
{
    access_word(at, NULL, touched, sizeof touched);
    return NULL;
}

static pthread_t spinners[SPINNERS];
static uint64_t spun[SPINNERS];
static char *spun_at[SPINNERS];
static int spinners_count;
static volatile int still;

static void *spin(void *number)
{
    int own = (int)(intptr_t)number;
    volatile uint64_t *word = (volatile uint64_t *)spun_at[own];
    while (!still) {
        (*word)++;
        spun[own]++;
    }
    return NULL;
}

/* Forks, and moves the second half of the area to and fro. */
static void *storm(void *nothing)
{
    char *home = area + area_bytes / 2, *other;
    size_t bytes = area_bytes / 2;
    other = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (!still) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child > 0)
            waitpid(child, NULL, 0);
        mremap(home, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, other);
        mremap(other, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, home);
        spun[SPINNERS - 1]++;
    }
    return nothing;
}

static void start_spinner(void *(*work)(void *), size_t at)
{
    int own = spinners_count++;
    still = 0;
    spun_at[own] = area + at;
    pthread_create(&spinners[own], NULL, work, (void *)(intptr_t)own);
    say("done", -1);
}

static void stop_spinners(void)
{
    char text[128];
    still = 1;
    for (int one = 0; one < spinners_count; one++)
        pthread_join(spinners[one], NULL);
    spinners_count = 0;
    snprintf(text, sizeof text, "%llu %llu %llu", (unsigned long long)spun[0],
        (unsigned long long)spun[1], (unsigned long long)spun[SPINNERS - 1]);
    say(text, -1);
}

static void fork_child(int fd)
{
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(listening);
        listening = fd;
        spinners_count = 0;
        return;
    }
    close(fd);
    if (child < 0)
        say_failure(strerror(errno));
    else
        say_number(child);
}

static void bear(long count)
{
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (long one = 0; one < count; one++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        waitpid(child, NULL, 0);
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    int64_t took = (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
    say_number(took / (count ? count : 1));
}

static void move(size_t at, size_t bytes)
{
    void *place = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *moved = mremap(area + at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    if (moved == MAP_FAILED)
        return say_failure(strerror(errno));
    area = (char *)moved - at;
    say_number((uintptr_t)moved);
}

static void unregister(size_t at, size_t bytes)
{
    struct uffdio_range range = { (uintptr_t)area + at, bytes };
    if (ioctl(trap, UFFDIO_UNREGISTER, &range))
        say_failure(strerror(errno));
    else
        say("done", -1);
}

static void obey(const char *word, unsigned long long one, unsigned long long two, int fd)
{
    char answer[64];
    pthread_t thread;
    if (!strcmp(word, "trap")) {
        make_trap(0);
    } else if (!strcmp(word, "lesser")) {
        make_trap(UFFD_USER_MODE_ONLY);
    } else if (!strcmp(word, "helper")) {
        make_helper();
    } else if (!strcmp(word, "tamper")) {
        pthread_create(&thread, NULL, tamper, NULL);
        say("done", -1);
    } else if (!strcmp(word, "name")) {
        mprotect((void *)sentinel, page_bytes, PROT_READ);
        say_number(*sentinel);
    } else if (!strcmp(word, "map")) {
        map(fd);
    } else if (!strcmp(word, "open")) {
        mprotect(area, area_bytes, PROT_READ | PROT_WRITE);
        say("done", -1);
    } else if (!strcmp(word, "load") || !strcmp(word, "store")) {
        uint64_t value = two;
        access_word(area + one, *word == 's' ? &value : NULL, answer, sizeof answer);
        say(answer, -1);
    } else if (!strcmp(word, "read")) {
        read_word(one);
    } else if (!strcmp(word, "touch")) {
        pthread_create(&toucher, NULL, touch, area + one);
        say("done", -1);
    } else if (!strcmp(word, "touched")) {
        pthread_join(toucher, NULL);
        say(touched, -1);
    } else if (!strcmp(word, "spin")) {
        start_spinner(spin, one);
    } else if (!strcmp(word, "storm")) {
        start_spinner(storm, 0);
    } else if (!strcmp(word, "still")) {
        stop_spinners();
    } else if (!strcmp(word, "fork")) {
        fork_child(fd);
    } else if (!strcmp(word, "populate")) {
        for (size_t at = 0; at < area_bytes; at += page_bytes)
            *(volatile uint64_t *)(area + at) = 1;
        say("done", -1);
    } else if (!strcmp(word, "births")) {
        bear(one);
    } else if (!strcmp(word, "unmap")) {
        munmap(area + one, two);
        say("done", -1);
    } else if (!strcmp(word, "move")) {
        move(one, two);
    } else if (!strcmp(word, "unregister")) {
        unregister(one, two);
    } else if (!strcmp(word, "exec")) {
        say("done", -1);
        execl("/bin/sleep", "sleep", "1000", NULL);
        _exit(1);
    } else {
        say_failure("what?");
    }
}

int main(void)
{
    char text[256], word[32];
    struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    fcntl(listening, F_SETFD, FD_CLOEXEC);
    page_bytes = sysconf(_SC_PAGESIZE);
    for (;;) {
        unsigned long long one = 0, two = 0;
        int fd = hear(text, sizeof text);
        if (sscanf(text, "%31s %llu %llu", word, &one, &two) >= 1)
            obey(word, one, two, fd);
    }
}
