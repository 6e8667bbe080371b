/*
 * A program that pulls its attachment from under one of its own threads that waits for a page.
 *
 *   rude WAY KEY OFFSET
 *
 * It attaches and says "attached". When it is told anything, a thread reads a byte at OFFSET, which
 * is not here; once that thread waits, the program does WAY by a bare system call, which no library
 * sees, and says "done". The thread must then end: with a byte, or with SIGSEGV or SIGBUS.
 *
 * WAY: unmap, map (something else over it), move, protect, dontneed, fork, shmdt (by the library),
 * and kill, exit, exec, which end the process. "descriptors" closes all of them and then reads.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/dipc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 8, PAGE = 4096, BYTES = PAGES * PAGE };

static char *area;
static long offset;
static volatile pid_t reader;
static sigjmp_buf escape;
static const char *volatile outcome = "read it";

static void die(const char *what)
{
    fprintf(stderr, "rude: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void on_trap(int number)
{
    outcome = number == SIGBUS ? "SIGBUS" : "SIGSEGV";
    siglongjmp(escape, 1);
}

static void *read_byte(void *argument)
{
    reader = gettid();
    if (sigsetjmp(escape, 1) == 0)
        (void)*(volatile char *)(area + offset);
    return argument;
}

/* Whether the reader sleeps, many times in a row. */
static void until_it_waits(void)
{
    for (int asleep = 0; asleep < 20; usleep(2000)) {
        char path[64], state = 0;
        snprintf(path, sizeof path, "/proc/self/task/%d/stat", reader);
        FILE *file = reader ? fopen(path, "re") : NULL;
        if (!file)
            continue;
        if (fscanf(file, "%*d (%*[^)]) %c", &state) == 1)
            asleep = state == 'S' || state == 'D' ? asleep + 1 : 0;
        fclose(file);
    }
}

static long move(void)
{
    char *to = mmap(NULL, BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    return syscall(SYS_mremap, area, BYTES, BYTES, flags, to) == (long)to ? 0 : -1;
}

static long call(const char *way)
{
    static char *const none[] = { "true", NULL };
    if (strcmp(way, "unmap") == 0)
        return syscall(SYS_munmap, area, BYTES);
    if (strcmp(way, "map") == 0)
        return syscall(SYS_mmap, area, BYTES, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (long)area ? 0 : -1;
    if (strcmp(way, "move") == 0)
        return move();
    if (strcmp(way, "protect") == 0)
        return syscall(SYS_mprotect, area, BYTES, PROT_NONE);
    if (strcmp(way, "dontneed") == 0)
        return syscall(SYS_madvise, area, BYTES, MADV_DONTNEED);
    if (strcmp(way, "shmdt") == 0)
        return shmdt(area);
    if (strcmp(way, "kill") == 0)
        return kill(getpid(), SIGKILL);
    if (strcmp(way, "exit") == 0)
        _exit(0);
    if (strcmp(way, "exec") == 0)
        return execvp("true", none);
    pid_t pid = strcmp(way, "fork") == 0 ? fork() : -1;
    if (pid == 0)
        _exit(0);
    return pid < 0 ? -1 : waitpid(pid, NULL, 0) == pid ? 0 : -1;
}

static void say(const char *words)
{
    puts(words);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    char line[64];
    pthread_t thread;
    if (argc != 4)
        return 2;
    signal(SIGSEGV, on_trap);
    signal(SIGBUS, on_trap);
    offset = atol(argv[3]);
    int segment = shmget((int)strtol(argv[2], NULL, 0), BYTES, IPC_DIPC | 0600);
    if (segment < 0)
        die("shmget");
    area = shmat(segment, NULL, 0);
    if (area == (void *)-1)
        die("shmat");
    say("attached");
    if (!fgets(line, sizeof line, stdin))
        return 2;
    if (strcmp(argv[1], "descriptors") == 0) {
        for (int fd = 3; fd < 1024; fd++)
            close(fd);
        read_byte(NULL);
        say(outcome);
        return strcmp(outcome, "read it") != 0;
    }
    if (pthread_create(&thread, NULL, read_byte, NULL) != 0)
        die("pthread_create");
    until_it_waits();
    say("waits");
    if (call(argv[1]) < 0)
        die(argv[1]);
    say("done");
    pthread_join(thread, NULL);
    say(outcome);
    return 0;
}
