/*
 * Attachments over fork, in all its forms: parent, children and grandchildren share the memory,
 * nattch counts them, and what a child detaches is detached in the child alone.
 */
#include "trap.h"
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, PAGES = 8, ROUNDS = 10 };

static int segment;
static _Atomic long *counter;

static void add_all(long count)
{
    for (long page = 0; page < PAGES; page++)
        for (long i = 0; i < count; i++)
            atomic_fetch_add(counter + page * PAGE / (long)sizeof *counter, 1);
}

static void expect(const char *when, long sum)
{
    for (long page = 0; page < PAGES; page++) {
        long found = counter[page * PAGE / (long)sizeof *counter];
        CHECK(found == sum, "page %ld is %ld, not %ld, %s", page, found, sum, when);
    }
}

static void ended(pid_t child, const char *what)
{
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "%s: %x", what, status);
}

static void generations(void)
{
    long before = *counter;
    pid_t child = fork();
    if (child == 0) {
        add_all(100);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            add_all(100);
            _exit(trap_failures);
        }
        add_all(100);
        ended(grandchild, "the grandchild");
        _exit(trap_failures);
    }
    add_all(100);
    ended(child, "the child");
    expect("after three generations", before + 400);
}

static void counts(void)
{
    int go[2];
    CHECK(pipe(go) == 0, "pipe");
    pid_t children[4];
    for (int i = 0; i < 4; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            char byte;
            close(go[1]);
            _exit(read(go[0], &byte, 1) != 0);
        }
    }
    CHECK(trap_attached(segment) == 5, "nattch %ld with four children", trap_attached(segment));
    close(go[0]);
    close(go[1]);
    for (int i = 0; i < 4; i++)
        ended(children[i], "a child");
    UNTIL(trap_attached(segment) == 1);
}

static void detached(void)
{
    pid_t child = fork();
    if (child == 0) {
        CHECK(shmdt(counter) == 0, "shmdt in the child");
        CHECK(shmdt(counter) == -1 && errno == EINVAL, "shmdt twice");
        CHECK(trap_attached(segment) == 1, "nattch %ld", trap_attached(segment));
        char *again = trap_attach(segment);
        CHECK(*(long *)again == *(long *)again, "attached again");
        _exit(trap_failures);
    }
    ended(child, "a child that detaches");
    add_all(1);
    UNTIL(trap_attached(segment) == 1);
}

static void without(void)
{
    CHECK(madvise((void *)counter, PAGE * PAGES, MADV_DONTFORK) == 0, "MADV_DONTFORK");
    pid_t child = fork();
    if (child == 0) {
        CHECK(shmdt(counter) == -1 && errno == EINVAL, "it was not inherited");
        CHECK(trap_attached(segment) == 1, "nattch %ld", trap_attached(segment));
        _exit(trap_failures);
    }
    ended(child, "a child without it");
    CHECK(madvise((void *)counter, PAGE * PAGES, MADV_DOFORK) == 0, "MADV_DOFORK");
}

static void others(void)
{
    long before = *counter;
    pid_t child = vfork();
    if (child == 0) {
        atomic_fetch_add(counter, 1);
        _exit(0);
    }
    ended(child, "vfork");
    CHECK(*counter == before + 1, "a child of vfork has added");
    child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
        atomic_fetch_add(counter, 1);
        syscall(SYS_exit_group, 0);
    }
    ended(child, "clone");
    CHECK(*counter == before + 2, "a child of clone has added");
    child = _Fork();
    if (child == 0) {
        atomic_fetch_add(counter, 1);
        _exit(0);
    }
    ended(child, "_Fork");
    CHECK(*counter == before + 3, "a child of _Fork has added");
    CHECK(system("exit 0") == 0, "system");
}

int main(void)
{
    alarm(2 * SECONDS_MAX);
    segment = trap_segment(PAGES * PAGE);
    counter = (_Atomic long *)trap_attach(segment);
    for (int round = 0; round < ROUNDS; round++)
        generations();
    counts();
    detached();
    without();
    others();
    CHECK(shmdt((void *)counter) == 0, "shmdt");
    return trap_end();
}
