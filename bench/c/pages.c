/*
 * pages: one end of a measurement of shared memory. Knows nothing of DIPC: the get flag is an
 * argument, and the same program is run by the kernel alone and under libdipc.
 *
 *   pages CPU hold    KEY FLAG PAGES          makes the segment and writes every page; "write" on
 *                                             its input: once more; at the end: removes it
 *   pages CPU look    KEY FLAG PAGES          reads every page, and stays attached
 *   pages CPU read    KEY FLAG PAGES          ns to read a page, pages out of order
 *   pages CPU upgrade KEY FLAG PAGES          reads every page; when told: ns to write one
 *   pages CPU scan    KEY FLAG PAGES          MiB a second, all words from first to last
 *   pages CPU pong    KEY FLAG ROUNDS ME      two of them (0, 1) add to one word in turn: ns a turn
 *   pages CPU sleep   KEY FLAG ROUNDS         sleeps on a word (futex); ns from store to return,
 *                                             median and greatest
 *   pages CPU wake    KEY FLAG ROUNDS         changes that word and wakes
 *   pages CPU touch   KEY FLAG MIB            a segment of its own: MiB a second, first touch
 *   pages CPU stream  KEY FLAG MIB            MiB a second, written and read over and over
 *   pages CPU fork    KEY FLAG MIB            ns of a fork with that much touched
 *   pages CPU sink    ADDRESS PORT            TCP server: takes what comes
 *   pages CPU pour    ADDRESS PORT MIB        TCP client: MiB a second, until all is taken
 *
 * A measuring mode prints its median. CPU is where it runs.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "measure.h"

enum { PAGE = 4096, WORDS = PAGE / 8, MIB = 1 << 20, APART = 1237, PASSES = 6, FORKS = 200 };

static long *area;
static int segment;
static volatile long sink_of_words;

static void attach(int key, int flags, size_t bytes)
{
    segment = shmget(key, bytes, flags | 0600);
    if (segment < 0)
        die("shmget");
    area = shmat(segment, NULL, 0);
    if (area == (void *)-1)
        die("shmat");
}

static void ready(void)
{
    puts("ready");
    fflush(stdout);
}

static int told(void)
{
    char line[16];
    return fgets(line, sizeof line, stdin) != NULL;
}

/* Far from its neighbours, so that nothing is read ahead. */
static long mixed(long i, long pages) { return i * APART % pages; }

static void write_all(long pages)
{
    for (long i = 0; i < pages; i++)
        area[i * WORDS]++;
}

static void read_all(long pages)
{
    for (long i = 0; i < pages; i++)
        sink_of_words += area[mixed(i, pages) * WORDS];
}

static void hold(int key, int flag, long pages)
{
    attach(key, flag | IPC_CREAT, (size_t)pages * PAGE);
    write_all(pages);
    ready();
    while (told()) {
        write_all(pages);
        ready();
    }
    shmctl(segment, IPC_RMID, NULL);
}

static void look(int key, int flag, long pages)
{
    attach(key, flag, 0);
    read_all(pages);
    ready();
    told();
}

static void touch_each(long pages, int write)
{
    double *samples = malloc((size_t)pages * sizeof *samples);
    for (long i = 0; i < pages; i++) {
        volatile long *word = &area[mixed(i, pages) * WORDS + 1];
        double start = now_ns();
        if (write)
            *word = i;
        else
            sink_of_words += *word;
        samples[i] = now_ns() - start;
    }
    print_median(samples, pages);
}

static void scan(int key, int flag, long pages)
{
    attach(key, flag, 0);
    long sum = 0;
    double start = now_ns();
    for (long i = 0; i < pages * WORDS; i++)
        sum += area[i];
    sink_of_words = sum;
    printf("%.1f\n", pages * (double)PAGE / MIB / (now_ns() - start) * 1e9);
}

static void pong(int key, int flag, long rounds, int me)
{
    attach(key, flag, 0);
    _Atomic long *word = (void *)&area[8];
    double start = 0;
    for (long i = me; i < 2 * rounds; i += 2) {
        for (long looks = 0; *word != i; looks++)
            if (looks % 100 == 99)
                sched_yield();
        if (i == 20 + me)
            start = now_ns();
        *word = i + 1;
    }
    printf("%.1f\n", (now_ns() - start) / (2 * rounds - 20));
}

static long futex(void *word, int operation, int value)
{
    return syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

/*
 * The word that is slept on, beside it when it was changed, and in another page who is ready; each
 * behind the word that its page was written with.
 */
struct bed {
    char head[64];
    _Atomic int word;
    double changed_ns;
    char pad[PAGE - 16];
    _Atomic int in_bed;
};

static void sleep_on(int key, int flag, long rounds)
{
    attach(key, flag, 0);
    struct bed *bed = (void *)area;
    double *samples = malloc((size_t)rounds * sizeof *samples);
    for (int i = 0; i < rounds; i++) {
        bed->in_bed = i + 1;
        while (bed->word == i)
            futex(&bed->word, FUTEX_WAIT, i);
        samples[i] = now_ns() - bed->changed_ns;
    }
    double middle = median(samples, rounds);
    printf("%.1f %.1f\n", middle, samples[rounds - 1]);
}

static void wake(int key, int flag, long rounds)
{
    attach(key, flag, 0);
    struct bed *bed = (void *)area;
    for (int i = 0; i < rounds; i++) {
        while (bed->in_bed != i + 1)
            usleep(500);
        /* It is about to sleep, or sleeps, for a while that differs. */
        usleep(1000 + (unsigned)i * 7919 % 9000);
        bed->changed_ns = now_ns();
        bed->word = i + 1;
        futex(&bed->word, FUTEX_WAKE, 1);
    }
}

static void touch(int key, int flag, long mib)
{
    attach(key, flag | IPC_CREAT, (size_t)mib * MIB);
    double start = now_ns();
    write_all(mib * (MIB / PAGE));
    printf("%.1f\n", mib / (now_ns() - start) * 1e9);
    shmctl(segment, IPC_RMID, NULL);
}

static void stream(int key, int flag, long mib)
{
    double samples[PASSES];
    attach(key, flag | IPC_CREAT, (size_t)mib * MIB);
    write_all(mib * (MIB / PAGE));
    for (int pass = 0; pass < PASSES; pass++) {
        double start = now_ns();
        memset(area, pass, (size_t)mib * MIB);
        for (long i = 0; i < mib * (MIB / 8); i++)
            sink_of_words += area[i];
        samples[pass] = mib / (now_ns() - start) * 1e9;
    }
    print_median(samples, PASSES);
    shmctl(segment, IPC_RMID, NULL);
}

static void fork_much(int key, int flag, long mib)
{
    double samples[FORKS];
    attach(key, flag | IPC_CREAT, (size_t)mib * MIB);
    write_all(mib * (MIB / PAGE));
    for (int i = 0; i < FORKS; i++) {
        double start = now_ns();
        pid_t pid = fork();
        samples[i] = now_ns() - start;
        if (pid == 0)
            _exit(0);
        if (pid < 0 || waitpid(pid, NULL, 0) != pid)
            die("fork");
    }
    print_median(samples, FORKS);
    shmctl(segment, IPC_RMID, NULL);
}

static struct sockaddr_in name_of(const char *address, const char *port)
{
    struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };
    inet_aton(address, &name.sin_addr);
    return name;
}

static void sink(const char *address, const char *port)
{
    static char bytes[MIB];
    struct sockaddr_in name = name_of(address, port);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&name, sizeof name) < 0 || listen(listener, 1) < 0)
        die("listen");
    ready();
    int fd = accept(listener, NULL, NULL);
    while (read(fd, bytes, sizeof bytes) > 0)
        ;
    if (write(fd, "x", 1) != 1)
        die("write");
}

static void pour(const char *address, const char *port, long mib)
{
    static char bytes[MIB];
    struct sockaddr_in name = name_of(address, port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&name, sizeof name) < 0)
        die("connect");
    double start = now_ns();
    for (long i = 0; i < mib; i++)
        for (ssize_t done = 0, n; done < MIB; done += n)
            if ((n = write(fd, bytes + done, (size_t)(MIB - done))) <= 0)
                die("write");
    shutdown(fd, SHUT_WR);
    if (read(fd, bytes, 1) != 1)
        die("read");
    printf("%.1f\n", mib / (now_ns() - start) * 1e9);
}

static int measure(const char *mode, int key, int flag, long number, int me)
{
    if (!strcmp(mode, "hold"))
        hold(key, flag, number);
    else if (!strcmp(mode, "look"))
        look(key, flag, number);
    else if (!strcmp(mode, "scan"))
        scan(key, flag, number);
    else if (!strcmp(mode, "pong"))
        pong(key, flag, number, me);
    else if (!strcmp(mode, "sleep"))
        sleep_on(key, flag, number);
    else if (!strcmp(mode, "wake"))
        wake(key, flag, number);
    else if (!strcmp(mode, "touch"))
        touch(key, flag, number);
    else if (!strcmp(mode, "stream"))
        stream(key, flag, number);
    else if (!strcmp(mode, "fork"))
        fork_much(key, flag, number);
    else if (!strcmp(mode, "read") || !strcmp(mode, "upgrade")) {
        attach(key, flag, 0);
        if (mode[0] == 'u') {
            read_all(number);
            ready();
            told();
        }
        touch_each(number, mode[0] == 'u');
    } else
        return 2;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: see the head of pages.c\n");
        return 2;
    }
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[1]), &cpus);
    if (sched_setaffinity(0, sizeof cpus, &cpus) < 0)
        die("sched_setaffinity");
    if (!strcmp(argv[2], "sink")) {
        sink(argv[3], argv[4]);
        return 0;
    }
    long number = argc > 5 ? atol(argv[5]) : 0;
    if (!strcmp(argv[2], "pour")) {
        pour(argv[3], argv[4], number);
        return 0;
    }
    int key = (int)strtol(argv[3], NULL, 0), flag = (int)strtol(argv[4], NULL, 0);
    return measure(argv[2], key, flag, number, argc > 6 ? atoi(argv[6]) : 0);
}
