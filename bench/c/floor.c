/*
 * floor: what a page fault on another node costs at least. The same wake-ups, system calls and
 * bytes as a fault of dipcd's, and nothing else: no frames, no records, no locks, no cipher.
 *
 *   floor CPU home    ADDRESS PORT PAGES      TCP server: has the pages, and reads them itself
 *   floor CPU read    ADDRESS PORT PAGES      ns to read a page that home has
 *   floor CPU upgrade ADDRESS PORT PAGES      ns to write a page that was read before
 *
 * A measuring mode prints its median. CPU is where it runs.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "measure.h"

enum { PAGE = 4096, APART = 1237 };
enum { READ = 1, WRITE = 2, ACK = 3 };

/* linux/userfaultfd.h of older systems has no names for these. */
enum { FEATURES = 1 << 0 | 1 << 5 | 1 << 12, CONTINUE_PROTECTED = 1 << 1 };

struct message { long what, page; char padding[48]; };
struct reply { struct message about; char content[PAGE]; };

static char *area;
static int file, aside, trap, peer;
static long pages;

static int new_file(void)
{
    int fd = memfd_create("floor", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, pages * PAGE) < 0)
        die("memfd");
    return fd;
}

/* The pages, mapped; accesses to what is not there and stores to what is protected are reported. */
static void map(void)
{
    struct uffdio_api api = { .api = UFFD_API, .features = FEATURES };
    file = new_file();
    area = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    trap = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (area == MAP_FAILED || trap < 0 || ioctl(trap, UFFDIO_API, &api) < 0)
        die("userfaultfd");
}

static void report_faults(void)
{
    struct uffdio_register all = {
        .range = { (uintptr_t)area, (size_t)pages * PAGE },
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
    };
    if (ioctl(trap, UFFDIO_REGISTER, &all) < 0)
        die("UFFDIO_REGISTER");
}

static struct uffdio_range range_of(long page)
{
    return (struct uffdio_range){ (uintptr_t)area + (size_t)page * PAGE, PAGE };
}

static void set_protection(long page, int is_on)
{
    struct uffdio_writeprotect order = {
        .range = range_of(page),
        .mode = is_on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
    };
    if (ioctl(trap, UFFDIO_WRITEPROTECT, &order) < 0)
        die("UFFDIO_WRITEPROTECT");
}

static void say(const void *bytes, size_t length)
{
    if (send(peer, bytes, length, MSG_NOSIGNAL) != (ssize_t)length)
        die("send");
}

static int hear(void *bytes, size_t length)
{
    return recv(peer, bytes, length, MSG_WAITALL) == (ssize_t)length;
}

static void give(long page)
{
    struct reply reply = { .about = { READ, page, "" } };
    set_protection(page, 1);
    if (pread(file, reply.content, PAGE, page * PAGE) != PAGE)
        die("pread");
    say(&reply, sizeof reply);
}

static void give_up(long page)
{
    static char content[PAGE];
    struct message message = { WRITE, page, "" };
    if (pread(file, content, PAGE, page * PAGE) != PAGE ||
        pwrite(aside, content, PAGE, page * PAGE) != PAGE ||
        fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE) < 0)
        die("giving up a page");
    say(&message, sizeof message);
}

static void forget(long page)
{
    if (fallocate(aside, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE) < 0)
        die("fallocate");
}

static void home(struct sockaddr_in *name)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct message message;
    map();
    aside = new_file();
    memset(area, 1, (size_t)pages * PAGE);
    report_faults();
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)name, sizeof *name) < 0 || listen(listener, 1) < 0)
        die("listen");
    puts("ready");
    fflush(stdout);
    peer = accept(listener, NULL, NULL);
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (hear(&message, sizeof message)) {
        if (message.what == READ)
            give(message.page);
        else if (message.what == WRITE)
            give_up(message.page);
        else
            forget(message.page);
    }
}

/* Reads faults and asks home. */
static void *ask(void *unused)
{
    struct uffd_msg fault;
    while (read(trap, &fault, sizeof fault) == sizeof fault) {
        int is_write = !!(fault.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP);
        long page = (long)((fault.arg.pagefault.address - (uintptr_t)area) / PAGE);
        struct message message = { is_write ? WRITE : READ, page, "" };
        say(&message, sizeof message);
    }
    return unused;
}

static void install(const struct reply *reply)
{
    long page = reply->about.page;
    struct uffdio_continue show = { .range = range_of(page), .mode = CONTINUE_PROTECTED };
    set_protection(page, 1);
    if (pwrite(file, reply->content, PAGE, page * PAGE) != PAGE)
        die("pwrite");
    if (ioctl(trap, UFFDIO_CONTINUE, &show) < 0)
        die("UFFDIO_CONTINUE");
}

/* Hears home and puts the pages in place. */
static void *hear_home(void *unused)
{
    static struct reply reply;
    memset(&reply, 0, sizeof reply);
    while (hear(&reply.about, sizeof reply.about)) {
        if (reply.about.what == READ) {
            if (!hear(reply.content, PAGE))
                break;
            install(&reply);
        } else {
            struct message ack = { ACK, reply.about.page, "" };
            set_protection(reply.about.page, 0);
            say(&ack, sizeof ack);
        }
    }
    return unused;
}

static long touch(long i, int write, double *took)
{
    volatile long *word = (volatile long *)(area + i * APART % pages * PAGE);
    double start = now_ns();
    long found = write ? (*word = i) : *word;
    *took = now_ns() - start;
    return found;
}

static void measure(struct sockaddr_in *name, int write)
{
    double *samples = malloc((size_t)pages * sizeof *samples);
    pthread_t asks, hears;
    int one = 1;
    map();
    report_faults();
    peer = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(peer, (void *)name, sizeof *name) < 0)
        die("connect");
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (pthread_create(&asks, NULL, ask, NULL) || pthread_create(&hears, NULL, hear_home, NULL))
        die("pthread_create");
    for (int pass = 0; pass <= write; pass++)
        for (long i = 0; i < pages; i++)
            touch(i, pass, &samples[i]);
    print_median(samples, pages);
}

int main(int argc, char **argv)
{
    cpu_set_t cpus;
    if (argc != 6) {
        fprintf(stderr, "usage: floor CPU home|read|upgrade ADDRESS PORT PAGES\n");
        return 2;
    }
    struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[4])) };
    inet_aton(argv[3], &name.sin_addr);
    pages = atol(argv[5]);
    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[1]), &cpus);
    if (sched_setaffinity(0, sizeof cpus, &cpus) < 0)
        die("sched_setaffinity");
    if (!strcmp(argv[2], "home"))
        home(&name);
    else
        measure(&name, !strcmp(argv[2], "upgrade"));
    return 0;
}
