/*
 * shmat(2) and shmdt(2): addresses, flags and errnos, and what becomes of an attachment by
 * munmap(2), mmap(2), mremap(2), mprotect(2) and madvise(2). The life of attachments over fork and
 * the ends of processes stands in shm_life_cases.c, system calls on them in shm_kernel_cases.c.
 *
 * By design not here: mremap with old size 0 and remap_file_pages (EINVAL under libdipc), and
 * merging after mprotect, which a kernel's segments do not do.
 */
#define _GNU_SOURCE
#include "cases.h"

#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { PAGE = 4096 };

static sigjmp_buf escape;
static volatile siginfo_t trap;

static void on_trap(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    trap.si_signo = info->si_signo;
    trap.si_code = info->si_code;
    trap.si_addr = info->si_addr;
    siglongjmp(escape, 1);
}

/* Touches a byte: says what it was, or which signal that gave. */
static void touch(const char *what, volatile char *at, int write)
{
    struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO }, segv, bus;
    sigaction(SIGSEGV, &action, &segv);
    sigaction(SIGBUS, &action, &bus);
    if (sigsetjmp(escape, 1) == 0) {
        char before = *at;
        if (write)
            *at = (char)(before + 1);
        say(" %s ok %d", what, before);
    } else {
        say(" %s %s code %d %s", what, trap.si_signo == SIGBUS ? "SIGBUS" : "SIGSEGV", trap.si_code,
            trap.si_addr == at ? "there" : "elsewhere");
    }
    sigaction(SIGSEGV, &segv, NULL);
    sigaction(SIGBUS, &bus, NULL);
}

static void remove_segment(int id) { TRY("rmid", shmctl(id, IPC_RMID, NULL)); }

static void say_nattch(int id)
{
    struct shmid_ds ds;
    if (shmctl(id, IPC_STAT, &ds) < 0)
        say(" nattch %s", errno_name(errno));
    else
        say(" nattch=%lu", (unsigned long)ds.shm_nattch);
}

static char *attach_at(const char *what, int id, void *address, int flags)
{
    errno = 0;
    char *at = shmat(id, address, flags);
    report(what, at == (char *)-1 ? -1 : 0);
    if (at != (char *)-1 && address)
        say(" %s", at == address ? "there" : "elsewhere");
    return at;
}

static char *attach(const char *what, int id, int flags)
{
    return attach_at(what, id, NULL, flags);
}

/* An address where that many pages are free. */
static char *free_pages(int pages)
{
    size_t bytes = (size_t)pages * PAGE;
    char *at = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(at, bytes);
    return at;
}

static void attach_and_detach(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600), nonzero = 0;
    char *at = attach("attach", id, 0);
    for (int i = 0; i < 3 * PAGE; i++)
        nonzero += at[i] != 0;
    say(" nonzero=%d", nonzero);
    strcpy(at + 2 * PAGE - 3, "over a boundary");
    TRY("detach", shmdt(at));
    touch("after", at, 0);
    TRY("detach", shmdt(at));
    at = attach("attach", id, 0);
    say(" %s", at + 2 * PAGE - 3);
    say_nattch(id);
    remove_segment(id);
}

static void attach_twice(void)
{
    int id = make_segment(row_key(0), 2 * PAGE, 0600);
    char *one = attach("one", id, 0), *two = attach("two", id, 0);
    say(" %s", one == two ? "same" : "different");
    strcpy(one, "first");
    strcpy(two + PAGE, "second");
    say(" %s %s", two, one + PAGE);
    say_nattch(id);
    TRY("detach", shmdt(one));
    say_nattch(id);
    strcpy(two, "third");
    touch("one", one, 0);
    one = attach("again", id, 0);
    say(" %s", one);
    TRY("detach", shmdt(one));
    TRY("detach", shmdt(two));
    say_nattch(id);
    remove_segment(id);
}

/* The last page of a segment is there as a whole; behind it is nothing. */
static void tail(void)
{
    int id = make_segment(row_key(0), PAGE + 1, 0600);
    char *room = free_pages(4), *at = attach_at("attach", id, room, 0);
    touch("last byte", at + PAGE, 1);
    touch("rest of the page", at + 2 * PAGE - 1, 1);
    touch("behind", at + 2 * PAGE, 0);
    TRY("detach", shmdt(at));
    at = attach("again", id, 0);
    say(" %d %d", at[PAGE], at[2 * PAGE - 1]);
    remove_segment(id);
}

static void rdonly(void)
{
    int id = make_segment(row_key(0), 2 * PAGE, 0600);
    char *at = attach("attach", id, 0), *reader = attach("reader", id, SHM_RDONLY);
    strcpy(at, "seen");
    say(" %s", reader);
    touch("write", reader, 1);
    touch("write absent", reader + PAGE, 1);
    touch("read absent", reader + PAGE, 0);
    say_nattch(id);
    TRY("detach writer", shmdt(at));
    touch("write", reader, 1);
    say(" %s", reader);
    remove_segment(id);
}

static void rdonly_mprotect(void)
{
    int id = make_segment(row_key(0), 2 * PAGE, 0600);
    char *reader = attach("reader", id, SHM_RDONLY);
    TRY("to write", mprotect(reader, PAGE, PROT_READ | PROT_WRITE));
    TRY("all to write", mprotect(reader, 2 * PAGE, PROT_WRITE));
    TRY("to none", mprotect(reader, 2 * PAGE, PROT_NONE));
    touch("read", reader, 0);
    TRY("to read", mprotect(reader, 2 * PAGE, PROT_READ));
    touch("read", reader, 0);
    TRY("remove", madvise(reader, PAGE, MADV_REMOVE));
    remove_segment(id);
}

static void attach_eacces(void)
{
    int none = make_segment(row_key(0), PAGE, 0600), reads = make_segment(row_key(1), PAGE, 0604);
    int writes = make_segment(row_key(2), PAGE, 0602), both = make_segment(row_key(3), PAGE, 0606);
    if (!become(NOBODY))
        return;
    attach("none", none, 0);
    attach("none rdonly", none, SHM_RDONLY);
    attach("reads", reads, 0);
    char *reader = attach("reads rdonly", reads, SHM_RDONLY);
    if (reader != (char *)-1) {
        touch("read", reader, 0);
        touch("write", reader, 1);
        TRY("to write", mprotect(reader, PAGE, PROT_READ | PROT_WRITE));
    }
    attach("writes", writes, 0);
    attach("writes rdonly", writes, SHM_RDONLY);
    touch("both", attach("both", both, 0), 1);
    attach_at("none, odd address", none, (void *)1, 0);
    attach_at("none, taken address", none, &escape, SHM_RND);
}

/* The one who could write may only read from now on: his attachment stays as it was. */
static void attach_before_ipc_set(void)
{
    struct shmid_ds ds;
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int id = make_segment_as(NOBODY, row_key(0), PAGE, 0600);
    if (!become(NOBODY))
        return;
    char *at = attach("attach", id, 0);
    shmctl(id, IPC_STAT, &ds);
    ds.shm_perm.mode = 0400;
    TRY("set", shmctl(id, IPC_SET, &ds));
    touch("write", at, 1);
    attach("attach", id, 0);
    touch("read", attach("rdonly", id, SHM_RDONLY), 0);
    touch("write", at, 1);
    remove_segment(id);
}

static void attach_exec(void)
{
    int id = make_segment(row_key(0), PAGE, 0700);
    int not = make_segment(row_key(1), PAGE, 0606), may = make_segment(row_key(2), PAGE, 0707);
    char *at = attach("exec", id, SHM_EXEC);
#ifdef __x86_64__
    at[0] = (char)0xc3; /* ret */
    ((void (*)(void))(uintptr_t)at)();
    char *reader = attach("rdonly exec", id, SHM_RDONLY | SHM_EXEC);
    ((void (*)(void))(uintptr_t)reader)();
    touch("write", reader, 1);
#endif
    say(" ran");
    if (!become(NOBODY))
        return;
    attach("not", not, SHM_EXEC);
    attach("not rdonly", not, SHM_EXEC | SHM_RDONLY);
    attach("may", may, SHM_EXEC);
}

static void attach_einval(void)
{
    int id = make_segment(row_key(0), PAGE, 0600);
    attach("id -1", -1, 0);
    attach("unknown id", INT_MAX, 0);
    attach_at("odd", id, free_pages(2) + 1, 0);
    attach_at("odd id -1", -1, free_pages(2) + 1, 0);
    attach_at("null remap", id, NULL, SHM_REMAP);
    attach_at("null rnd remap", id, (void *)77, SHM_REMAP | SHM_RND);
    attach_at("kernel", id, (void *)-(intptr_t)PAGE, 0);
    attach_at("kernel remap", id, (void *)-(intptr_t)PAGE, SHM_REMAP);
    say_nattch(id);
    remove_segment(id);
    attach("removed", id, 0);
}

static void attach_rnd(void)
{
    int id = make_segment(row_key(0), 2 * PAGE, 0600);
    char *room = free_pages(2), *at = shmat(id, room + 77, SHM_RND);
    say(" rounded %s", at == room ? "down" : "otherwise");
    touch("write", room + PAGE, 1);
    TRY("detach odd", shmdt(room + 77));
    TRY("detach", shmdt(room));
    errno = 0;
    at = shmat(id, (void *)77, SHM_RND);
    say(" page 0: %s", at == (char *)-1 ? errno_name(errno) : "elsewhere");
    at = attach_at("even", id, room, SHM_RND);
    remove_segment(id);
}

static void attach_at_taken(void)
{
    int id = make_segment(row_key(0), 2 * PAGE, 0600);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *taken = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    memset(taken, 'x', 4 * PAGE);
    attach_at("taken", id, taken, 0);
    attach_at("half taken", id, taken - PAGE, 0);
    char *at = attach_at("remap", id, taken + PAGE, SHM_REMAP);
    say(" %c%d%d%c", taken[0], at[0], at[2 * PAGE - 1], taken[3 * PAGE]);
    strcpy(at, "mine");
    TRY("detach", shmdt(at));
    touch("hole", at, 0);
    touch("before", taken, 0);
    touch("behind", taken + 3 * PAGE, 0);
    at = attach_at("again", id, taken + PAGE, 0);
    say(" %s", at);
    remove_segment(id);
}

/* SHM_REMAP over the middle of another attachment makes two of that. */
static void remap_over_another(void)
{
    int below = make_segment(row_key(0), 4 * PAGE, 0600);
    int above = make_segment(row_key(1), 2 * PAGE, 0600);
    char *at = attach("below", below, 0);
    memset(at, 'b', 4 * PAGE);
    attach_at("above", above, at + PAGE, 0);
    char *over = attach_at("above remap", above, at + PAGE, SHM_REMAP);
    say(" %c%d%d%c", at[0], over[0], over[PAGE], at[3 * PAGE]);
    say_nattch(below);
    say_nattch(above);
    strcpy(over + PAGE, "above");
    TRY("detach above", shmdt(over));
    touch("hole", over, 0);
    say_nattch(below);
    TRY("detach below", shmdt(at));
    touch("rest", at + 3 * PAGE, 0);
    say_nattch(below);
    at = attach("below", below, 0);
    over = attach("above", above, 0);
    say(" %c%c %s", at[PAGE], at[2 * PAGE], over + PAGE);
    remove_segment(below);
    remove_segment(above);
}

/* Over itself, at another offset. */
static void remap_over_itself(void)
{
    int id = make_segment(row_key(0), 2 * PAGE, 0600);
    char *room = free_pages(4), *at = attach_at("attach", id, room, 0);
    strcpy(at, "one");
    strcpy(at + PAGE, "two");
    char *over = attach_at("over", id, room + PAGE, SHM_REMAP);
    say(" %s %s %s", at, over, over + PAGE);
    say_nattch(id);
    strcpy(over, "three");
    say(" %s", at);
    TRY("detach", shmdt(at));
    say_nattch(id);
    TRY("detach over", shmdt(over));
    say_nattch(id);
    remove_segment(id);
}

static void detach_einval(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    char *at = attach("attach", id, 0);
    TRY("null", shmdt(NULL));
    TRY("odd", shmdt(at + 1));
    TRY("middle", shmdt(at + PAGE));
    TRY("stack", shmdt((void *)((uintptr_t)&id & -(uintptr_t)PAGE)));
    TRY("free", shmdt(free_pages(1)));
    TRY("kernel", shmdt((void *)-(intptr_t)PAGE));
    say_nattch(id);
    TRY("detach", shmdt(at));
    TRY("again", shmdt(at));
    remove_segment(id);
}

static void detach_removed(void)
{
    int id = make_segment(row_key(0), PAGE, 0600);
    char *at = attach("attach", id, 0), *other = attach("other", id, 0);
    remove_segment(id);
    touch("write", at, 1);
    touch("read", other, 0);
    TRY("detach", shmdt(at));
    say_nattch(id);
    touch("still", other, 1);
    TRY("detach", shmdt(other));
    say_nattch(id);
}

static void munmap_middle(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    char *at = attach("attach", id, 0);
    memset(at, 'm', 3 * PAGE);
    TRY("munmap", munmap(at + PAGE, PAGE));
    touch("hole", at + PAGE, 0);
    touch("before", at, 1);
    touch("behind", at + 2 * PAGE, 1);
    say_nattch(id);
    TRY("detach behind", shmdt(at + 2 * PAGE));
    TRY("detach", shmdt(at));
    touch("behind", at + 2 * PAGE, 0);
    say_nattch(id);
    at = attach("attach", id, 0);
    touch("kept", at + PAGE, 0);
    remove_segment(id);
}

static void munmap_ends(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    char *at = attach("attach", id, 0);
    at[PAGE] = 'e';
    TRY("first", munmap(at, PAGE));
    TRY("last", munmap(at + 2 * PAGE, PAGE));
    say_nattch(id);
    touch("middle", at + PAGE, 1);
    TRY("detach middle", shmdt(at + PAGE));
    TRY("detach", shmdt(at));
    say_nattch(id);
    at = attach("attach", id, 0);
    TRY("all", munmap(at, 3 * PAGE));
    say_nattch(id);
    TRY("detach", shmdt(at));
    remove_segment(id);
}

static void munmap_with_neighbours(void)
{
    int id = make_segment(row_key(0), PAGE, 0600);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    char *room = free_pages(3), *at = attach_at("attach", id, room + PAGE, 0);
    mmap(room, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    mmap(room + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    at[0] = 'n';
    TRY("munmap", munmap(room, 3 * PAGE));
    say_nattch(id);
    touch("gone", at, 0);
    touch("kept", attach("attach", id, 0), 0);
    remove_segment(id);
}

static void mmap_over(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *at = attach("attach", id, 0);
    memset(at, 'o', 3 * PAGE);
    void *over = mmap(at + PAGE, PAGE, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0);
    say(" %s %d", over == at + PAGE ? "there" : "elsewhere", at[PAGE]);
    at[PAGE] = 'p';
    say_nattch(id);
    errno = 0;
    over = mmap(at, PAGE, PROT_READ, flags | MAP_FIXED_NOREPLACE, -1, 0);
    say(" noreplace %s", over == MAP_FAILED ? errno_name(errno) : "replaced");
    over = mmap(at, PAGE, PROT_READ, flags, -1, 0);
    say(" hint %s", over == at ? "taken" : "avoided");
    TRY("detach", shmdt(at));
    touch("mine", at + PAGE, 0);
    say_nattch(id);
    touch("kept", attach("attach", id, 0) + PAGE, 0);
    remove_segment(id);
}

static void mprotect_parts(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    char *at = attach("attach", id, 0), *other = attach("other", id, 0);
    memset(at, 'p', PAGE);
    TRY("to read", mprotect(at + PAGE, PAGE, PROT_READ));
    touch("write", at + PAGE, 1);
    touch("read", at + PAGE, 0);
    touch("before", at, 1);
    touch("other", other + PAGE, 1);
    touch("read", at + PAGE, 0);
    say_nattch(id);
    TRY("to none", mprotect(at, 3 * PAGE, PROT_NONE));
    touch("read", at, 0);
    touch("other", other, 1);
    TRY("to write", mprotect(at, 3 * PAGE, PROT_READ | PROT_WRITE));
    touch("write", at, 1);
    touch("write", at + 2 * PAGE, 1);
    TRY("to exec", mprotect(at, PAGE, PROT_READ | PROT_EXEC));
    touch("write", at, 1);
    TRY("detach", shmdt(at));
    say_nattch(id);
    remove_segment(id);
}

static void mremap_moves(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    char *at = attach("attach", id, 0), *to = free_pages(3);
    memset(at, 'v', 3 * PAGE);
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    char *now = mremap(at, 3 * PAGE, 3 * PAGE, flags, to);
    say(" %s", now == to ? "there" : "elsewhere");
    touch("old", at, 0);
    touch("new", now + 2 * PAGE, 1);
    say_nattch(id);
    TRY("detach old", shmdt(at));
    TRY("detach new", shmdt(now));
    say_nattch(id);
    touch("kept", attach("attach", id, 0) + 2 * PAGE, 0);
    remove_segment(id);
}

static void mremap_moves_a_part(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    char *at = attach("attach", id, 0), *to = free_pages(1);
    memset(at, 'v', 3 * PAGE);
    char *now = mremap(at + PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    say(" %s", now == to ? "there" : "elsewhere");
    touch("hole", at + PAGE, 0);
    touch("part", now, 1);
    say_nattch(id);
    TRY("detach", shmdt(at));
    say_nattch(id);
    touch("part", now, 1);
    TRY("detach part", shmdt(now - PAGE));
    say_nattch(id);
    touch("kept", attach("attach", id, 0) + PAGE, 0);
    remove_segment(id);
}

static void mremap_shrinks(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    char *at = attach("attach", id, 0);
    at[2 * PAGE] = 's';
    say(" %s", mremap(at, 3 * PAGE, PAGE, 0) == at ? "there" : "elsewhere");
    touch("first", at, 1);
    touch("last", at + 2 * PAGE, 0);
    say_nattch(id);
    TRY("detach", shmdt(at));
    say_nattch(id);
    touch("kept", attach("attach", id, 0) + 2 * PAGE, 0);
    remove_segment(id);
}

/* It may be longer than the segment; there is nothing behind its end. */
static void mremap_grows(void)
{
    int id = make_segment(row_key(0), 2 * PAGE, 0600);
    char *at = attach("attach", id, 0);
    at[PAGE] = 'g';
    char *now = mremap(at, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE);
    if (now == MAP_FAILED) {
        say(" %s", errno_name(errno));
        now = at;
    }
    touch("last", now + PAGE, 1);
    touch("behind", now + 2 * PAGE, 0);
    touch("write behind", now + 3 * PAGE, 1);
    say_nattch(id);
    TRY("detach", shmdt(now));
    say_nattch(id);
    touch("kept", attach("attach", id, 0) + PAGE, 0);
    remove_segment(id);
}

static void advice(void)
{
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    char *at = attach("attach", id, 0), *other = attach("other", id, 0);
    memset(at, 'a', 3 * PAGE);
    TRY("dontneed", madvise(at, 3 * PAGE, MADV_DONTNEED));
    touch("kept", at, 0);
    TRY("remove", madvise(at + PAGE, PAGE, MADV_REMOVE));
    touch("removed", at + PAGE, 0);
    touch("removed", other + PAGE, 1);
    touch("removed", at + PAGE, 0);
    touch("before", at + PAGE - 1, 0);
    touch("behind", at + 2 * PAGE, 0);
    TRY("free", madvise(at, PAGE, MADV_FREE));
    TRY("wipe", madvise(at, PAGE, MADV_WIPEONFORK));
    TRY("willneed", madvise(at, 3 * PAGE, MADV_WILLNEED));
    TRY("odd", madvise(at + 1, PAGE, MADV_DONTNEED));
    say_nattch(id);
    remove_segment(id);
}

static void sync_and_lock(void)
{
    int id = make_segment(row_key(0), 4 * PAGE, 0600);
    char *at = attach("attach", id, 0);
    at[PAGE] = 'l';
    TRY("msync", msync(at, 4 * PAGE, MS_SYNC));
    TRY("mlock", mlock(at, 4 * PAGE));
    touch("locked", at + PAGE, 1);
    TRY("munlock", munlock(at, 4 * PAGE));
    TRY("populate", madvise(at, 4 * PAGE, MADV_POPULATE_WRITE));
    touch("populated", at + 3 * PAGE, 1);
    remove_segment(id);
}

/* With everything locked from now on, an attachment is filled at once. */
static void attach_with_mlockall(void)
{
    int id = make_segment(row_key(0), 64 * PAGE, 0600);
    TRY("mlockall", mlockall(MCL_FUTURE));
    char *at = attach("attach", id, 0);
    touch("first", at, 1);
    touch("last", at + 64 * PAGE - 1, 1);
    TRY("munlockall", munlockall());
    remove_segment(id);
}

static void attach_enomem(void)
{
    struct rlimit limit, few;
    int id = make_segment(row_key(0), 64 << 20, 0600);
    getrlimit(RLIMIT_AS, &limit);
    few = (struct rlimit){ 48 << 20, limit.rlim_max };
    setrlimit(RLIMIT_AS, &few);
    attach("attach", id, 0);
    say_nattch(id);
    setrlimit(RLIMIT_AS, &limit);
    touch("last", attach("attach", id, 0) + (64 << 20) - 1, 1);
    remove_segment(id);
}

static void many_pages(void)
{
    enum { PAGES = 600 };
    int id = make_segment(row_key(0), PAGES * PAGE, 0600), wrong = 0;
    unsigned *at = (unsigned *)attach("attach", id, 0);
    for (unsigned i = 0; i < PAGES * PAGE / sizeof *at; i++)
        at[i] = i * 2654435761u;
    TRY("detach", shmdt(at));
    at = (unsigned *)attach("attach", id, SHM_RDONLY);
    for (unsigned i = PAGES * PAGE / sizeof *at; i-- > 0;)
        wrong += at[i] != i * 2654435761u;
    say(" wrong=%d", wrong);
    remove_segment(id);
}

static void many_attachments(void)
{
    enum { MANY = 100 };
    int id = make_segment(row_key(0), PAGE, 0600), done = 0, detached = 0;
    int *all[MANY];
    for (int i = 0; i < MANY; i++) {
        all[i] = shmat(id, NULL, i % 3 == 0 ? SHM_RDONLY : 0);
        done += all[i] != (int *)-1;
    }
    all[1][5] = 55;
    say(" attached=%d last=%d", done, all[MANY - 1][5]);
    say_nattch(id);
    for (int i = 0; i < MANY; i++)
        detached += shmdt(all[i]) == 0;
    say(" detached=%d", detached);
    say_nattch(id);
    remove_segment(id);
}

/* A gibibyte of which only the ends are used. */
static void sparse(void)
{
    size_t bytes = (size_t)1 << 30;
    int id = make_segment(row_key(0), bytes, 0600);
    char *at = attach("attach", id, 0);
    touch("first", at, 1);
    touch("last", at + bytes - 1, 1);
    TRY("detach", shmdt(at));
    at = attach("attach", id, SHM_RDONLY);
    say(" %d%d%d", at[0], at[bytes / 2], at[bytes - 1]);
    remove_segment(id);
}

static const struct row ROWS[] = {
    { "attach_and_detach", "shmat shmdt data EINVAL", attach_and_detach },
    { "attach_twice", "shmat several", attach_twice },
    { "tail", "shmat size", tail },
    { "rdonly", "shmat SHM_RDONLY", rdonly },
    { "rdonly_mprotect", "shmat SHM_RDONLY", rdonly_mprotect },
    { "attach_eacces", "shmat EACCES", attach_eacces },
    { "attach_before_ipc_set", "shmat shmctl IPC_SET EACCES", attach_before_ipc_set },
    { "attach_exec", "shmat SHM_EXEC EACCES", attach_exec },
    { "attach_einval", "shmat EINVAL", attach_einval },
    { "attach_rnd", "shmat SHM_RND", attach_rnd },
    { "attach_at_taken", "shmat shmaddr SHM_REMAP EINVAL", attach_at_taken },
    { "remap_over_another", "shmat SHM_REMAP nattch", remap_over_another },
    { "remap_over_itself", "shmat SHM_REMAP nattch", remap_over_itself },
    { "detach_einval", "shmdt EINVAL", detach_einval },
    { "detach_removed", "shmdt deletion", detach_removed },
    { "munmap_middle", "shmdt munmap nattch", munmap_middle },
    { "munmap_ends", "shmdt munmap nattch", munmap_ends },
    { "munmap_with_neighbours", "shmdt munmap nattch", munmap_with_neighbours },
    { "mmap_over", "shmdt mmap nattch", mmap_over },
    { "mprotect_parts", "shmat mprotect nattch", mprotect_parts },
    { "mremap_moves", "shmat mremap nattch", mremap_moves },
    { "mremap_moves_a_part", "shmat mremap nattch", mremap_moves_a_part },
    { "mremap_shrinks", "shmat mremap nattch", mremap_shrinks },
    { "mremap_grows", "shmat mremap nattch", mremap_grows },
    { "advice", "shmat madvise", advice },
    { "sync_and_lock", "shmat mlock", sync_and_lock },
    { "attach_with_mlockall", "shmat mlockall", attach_with_mlockall },
    { "attach_enomem", "shmat ENOMEM", attach_enomem },
    { "many_pages", "shmat data", many_pages },
    { "many_attachments", "shmat several", many_attachments },
    { "sparse", "shmat size", sparse },
};

int main(int argc, char **argv)
{
    return run_rows(ROWS, sizeof ROWS / sizeof *ROWS, argc, argv);
}
