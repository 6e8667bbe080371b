/*
 * A puppet (see puppet.c) for segments: does one thing for each line of its standard input, and
 * prints one line for it, "= RESULT" or "! ERRNO"; a touch that gave a signal is "! SIGBUS" or
 * "! SIGSEGV". Offsets and sizes are bytes, words have eight.
 *
 *   shmget KEY BYTES FLAGS   FLAGS octal; the segment that the following lines mean; segment ID
 *   attach FLAGS, detach     FLAGS octal of shmat; the last attached area is the one meant
 *   peek AT, poke AT VALUE   one word; add AT VALUE (atomically, the sum), await AT VALUE
 *   fill AT BYTES SEED       words that follow from SEED and their place
 *   check AT BYTES SEED      how many words are others; zeros AT BYTES: how many are not 0
 *   stride AT BYTES STEP VALUE   pokes a word at each STEP; sum AT BYTES STEP
 *   nattch, mode, bytes, owner, creator, last, atime, dtime (1: within ten seconds), locked
 *   rmid, lock, unlock, chmod MODE, become UID, pid
 *   wait AT VALUE, wake AT N     futex
 *   load PATH AT BYTES, store PATH AT BYTES     read(2) into, write(2) from the area
 *   unmap AT BYTES, protect AT BYTES (to read), open AT BYTES (to write), remove AT BYTES
 *   fork, end PID            a child that holds what we hold and sleeps; kills it
 *   exec                     runs this program anew, with the segment but nothing attached
 *   readers, writers         DIPC_SIG_READER and DIPC_SIG_WRITER seen; where: offset of the last
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/dipc.h>
#include <linux/futex.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { AREAS = 64 };

static int segment = -1, areas_count;
static char *areas[AREAS], *area;
static sigjmp_buf escape;
static volatile sig_atomic_t signalled, readers, writers;
static char *volatile signalled_at;

/* What a line says behind its first word. */
struct arguments {
    const char *word, *text;
    long one, two, three, four;
};

static void on_trap(int number)
{
    signalled = number;
    siglongjmp(escape, 1);
}

static void on_change(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (number == DIPC_SIG_READER)
        readers++;
    else
        writers++;
    signalled_at = info->si_addr;
}

static long get(const struct arguments *a)
{
    unsigned flags = 0;
    int key = 0;
    size_t bytes = 0;
    sscanf(a->text, "%i %zu %o", &key, &bytes, &flags);
    return segment = shmget(key, bytes, (int)flags);
}

static long take(const struct arguments *a) { return segment = (int)a->one; }

static long attach(const struct arguments *a)
{
    char *at = shmat(segment, NULL, (int)strtol(a->text, NULL, 8));
    if (at == (char *)-1 || areas_count == AREAS)
        return -1;
    area = areas[areas_count++] = at;
    return 0;
}

static long detach(const struct arguments *a)
{
    (void)a;
    if (shmdt(area) < 0)
        return -1;
    areas_count--;
    area = areas_count > 0 ? areas[areas_count - 1] : NULL;
    return 0;
}

static _Atomic long *word(long at) { return (_Atomic long *)(area + at); }

static long peek(const struct arguments *a) { return *word(a->one); }

static long poke(const struct arguments *a)
{
    *word(a->one) = a->two;
    return 0;
}

static long add(const struct arguments *a)
{
    return atomic_fetch_add(word(a->one), a->two) + a->two;
}

static long await(const struct arguments *a)
{
    while (*word(a->one) != a->two)
        usleep(500);
    return 0;
}

static long mixed(long at, long seed)
{
    return (long)((uint64_t)(at + seed + 1) * 0x9e3779b97f4a7c15u);
}

static long fill(const struct arguments *a)
{
    for (long at = a->one; at < a->one + a->two; at += 8)
        *word(at) = mixed(at, a->three);
    return 0;
}

static long check(const struct arguments *a)
{
    long wrong = 0;
    for (long at = a->one; at < a->one + a->two; at += 8)
        wrong += *word(at) != mixed(at, a->three);
    return wrong;
}

static long zeros(const struct arguments *a)
{
    long wrong = 0;
    for (long at = a->one; at < a->one + a->two; at += 8)
        wrong += *word(at) != 0;
    return wrong;
}

static long stride(const struct arguments *a)
{
    for (long at = a->one; at < a->one + a->two; at += a->three)
        *word(at) = a->four;
    return 0;
}

static long sum(const struct arguments *a)
{
    long total = 0;
    for (long at = a->one; at < a->one + a->two; at += a->three)
        total += *word(at);
    return total;
}

static struct shmid_ds state;

static long is_recent(time_t when) { return when >= time(NULL) - 10; }

/* One field of the segment's state, by the word of the line. */
static long look(const struct arguments *a)
{
    if (shmctl(segment, IPC_STAT, &state) < 0)
        return -1;
    struct { const char *word; long value; } fields[] = {
        { "nattch", (long)state.shm_nattch },
        { "mode", state.shm_perm.mode & 0777 },
        { "locked", (state.shm_perm.mode & SHM_LOCKED) != 0 },
        { "bytes", (long)state.shm_segsz },
        { "owner", (long)state.shm_perm.uid },
        { "creator", state.shm_cpid },
        { "last", state.shm_lpid },
        { "atime", is_recent(state.shm_atime) },
        { "dtime", is_recent(state.shm_dtime) },
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (strcmp(a->word, fields[i].word) == 0)
            return fields[i].value;
    return -1;
}

static long rmid(const struct arguments *a)
{
    (void)a;
    return shmctl(segment, IPC_RMID, NULL);
}

static long lock(const struct arguments *a)
{
    (void)a;
    return shmctl(segment, SHM_LOCK, NULL);
}

static long unlock(const struct arguments *a)
{
    (void)a;
    return shmctl(segment, SHM_UNLOCK, NULL);
}

static long change_mode(const struct arguments *a)
{
    if (shmctl(segment, IPC_STAT, &state) < 0)
        return -1;
    state.shm_perm.mode = (unsigned short)strtol(a->text, NULL, 8);
    return shmctl(segment, IPC_SET, &state);
}

static long become(const struct arguments *a)
{
    uid_t uid = (uid_t)a->one;
    if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0)
        return -1;
    return setresuid(uid, uid, uid);
}

static long own_pid(const struct arguments *a)
{
    (void)a;
    return getpid();
}

static long futex(long at, int operation, long value)
{
    return syscall(SYS_futex, area + at, operation, value, NULL, NULL, 0);
}

static long futex_wait(const struct arguments *a) { return futex(a->one, FUTEX_WAIT, a->two); }

static long inherit(const struct arguments *a) { return futex(a->one, FUTEX_LOCK_PI, 0); }

/* Runs, and makes no call, for as long as it is left alone. */
static long spin(const struct arguments *a)
{
    (void)a;
    for (volatile long i = 0;; i++)
        ;
}

static long futex_wake(const struct arguments *a) { return futex(a->one, FUTEX_WAKE, a->two); }

static long move_bytes(const struct arguments *a, int flags)
{
    char path[256];
    long at = 0, size = 0;
    if (sscanf(a->text, "%255s %ld %ld", path, &at, &size) != 3)
        return -1;
    int file = open(path, flags | O_CLOEXEC, 0600);
    if (file < 0)
        return -1;
    long moved = flags & O_CREAT ? write(file, area + at, (size_t)size)
                                 : read(file, area + at, (size_t)size);
    int why = errno;
    close(file);
    errno = why;
    return moved;
}

static long load(const struct arguments *a) { return move_bytes(a, O_RDONLY); }

static long store(const struct arguments *a) { return move_bytes(a, O_WRONLY | O_CREAT | O_TRUNC); }

static long unmap(const struct arguments *a) { return munmap(area + a->one, (size_t)a->two); }

static long protect(const struct arguments *a)
{
    return mprotect(area + a->one, (size_t)a->two, PROT_READ);
}

static long open_again(const struct arguments *a)
{
    return mprotect(area + a->one, (size_t)a->two, PROT_READ | PROT_WRITE);
}

static long remove_range(const struct arguments *a)
{
    return madvise(area + a->one, (size_t)a->two, MADV_REMOVE);
}

static long fork_child(const struct arguments *a)
{
    (void)a;
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    return pid;
}

static long end_child(const struct arguments *a)
{
    if (kill((pid_t)a->one, SIGKILL) < 0)
        return -1;
    return waitpid((pid_t)a->one, NULL, 0) < 0 ? -1 : 0;
}

static long run_anew(const struct arguments *a)
{
    char number[16];
    (void)a;
    snprintf(number, sizeof number, "%d", segment);
    return execl("/proc/self/exe", "page_puppet", number, NULL);
}

static long say_readers(const struct arguments *a)
{
    (void)a;
    return readers;
}

static long say_writers(const struct arguments *a)
{
    (void)a;
    return writers;
}

static long where(const struct arguments *a)
{
    (void)a;
    return signalled_at - area;
}

static const struct {
    const char *word;
    long (*call)(const struct arguments *);
} CALLS[] = {
    { "shmget", get },          { "segment", take },        { "attach", attach },
    { "detach", detach },       { "peek", peek },           { "poke", poke },
    { "add", add },             { "await", await },         { "fill", fill },
    { "check", check },         { "zeros", zeros },         { "stride", stride },
    { "sum", sum },             { "rmid", rmid },           { "lock", lock },
    { "unlock", unlock },       { "chmod", change_mode },   { "become", become },
    { "pid", own_pid },         { "wait", futex_wait },     { "wake", futex_wake },
    { "inherit", inherit },     { "spin", spin },
    { "load", load },           { "store", store },         { "unmap", unmap },
    { "protect", protect },     { "open", open_again },     { "remove", remove_range },
    { "fork", fork_child },     { "end", end_child },       { "exec", run_anew },
    { "readers", say_readers }, { "writers", say_writers }, { "where", where },
};

static long call(const struct arguments *a)
{
    for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++)
        if (strcmp(a->word, CALLS[i].word) == 0)
            return CALLS[i].call(a);
    return look(a);
}

static void obey(const char *line)
{
    char word[16];
    int used = 0;
    if (sscanf(line, "%15s %n", word, &used) != 1)
        return;
    struct arguments a = { .word = word, .text = line + used };
    sscanf(a.text, "%ld %ld %ld %ld", &a.one, &a.two, &a.three, &a.four);
    if (sigsetjmp(escape, 1) != 0) {
        printf("! %s\n", signalled == SIGBUS ? "SIGBUS" : "SIGSEGV");
        return;
    }
    errno = EPROTO;
    long result = call(&a);
    if (result == -1)
        printf("! %s\n", strerrorname_np(errno));
    else
        printf("= %ld\n", result);
}

int main(int argc, char **argv)
{
    char line[512];
    struct sigaction trap = { .sa_handler = on_trap };
    struct sigaction change = { .sa_sigaction = on_change, .sa_flags = SA_SIGINFO | SA_RESTART };
    sigaction(SIGBUS, &trap, NULL);
    sigaction(SIGSEGV, &trap, NULL);
    sigaction(DIPC_SIG_READER, &change, NULL);
    sigaction(DIPC_SIG_WRITER, &change, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 2) {
        segment = atoi(argv[1]);
        printf("= %d\n", segment);
    }
    while (fgets(line, sizeof line, stdin))
        obey(line);
    return 0;
}
