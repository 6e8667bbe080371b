/*
 * Segments as other people's test suites use them: many children that attach or inherit and are
 * waited for, killed or run another program, and what shmctl(2) says right after; addresses and
 * ids that are nothing; threads that attach and detach at once. shm_cases.c and its sisters have a
 * row for each flag and errno; here are the sequences.
 */
#define _GNU_SOURCE
#include "cases.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, CHILDREN = 12, THREADS = 4, ROUNDS = 10 };

static char *const NOTHING = (char *)-1;

static void say_use(const char *what, int id, pid_t child)
{
    struct shmid_ds ds = { 0 };
    TRY(what, shmctl(id, IPC_STAT, &ds));
    say(" nattch=%lu", (unsigned long)ds.shm_nattch);
    say_time("atime", ds.shm_atime);
    say_time("dtime", ds.shm_dtime);
    say_pid("lpid", ds.shm_lpid, child);
}

static void remove_segment(int id) { TRY("rmid", shmctl(id, IPC_RMID, NULL)); }

static char *attach(const char *what, int id, const void *address, int flags)
{
    errno = 0;
    char *at = shmat(id, address, flags);
    report(what, at == NOTHING ? -1 : 0);
    return at;
}

/* Children that live until the pipe is closed. */
struct crowd {
    pid_t pids[CHILDREN];
    int go[2], ready[2];
};

static void start(struct crowd *crowd, void (*begin)(int), int id)
{
    char byte = 0;
    if (pipe(crowd->go) < 0 || pipe(crowd->ready) < 0)
        _exit(99);
    for (int i = 0; i < CHILDREN; i++) {
        crowd->pids[i] = fork();
        if (crowd->pids[i] == 0) {
            close(crowd->go[1]);
            begin(id);
            if (write(crowd->ready[1], &byte, 1) == 1 && read(crowd->go[0], &byte, 1) >= 0)
                _exit(0);
            _exit(1);
        }
    }
    for (int i = 0; i < CHILDREN; i++)
        if (read(crowd->ready[0], &byte, 1) != 1)
            _exit(98);
}

static void wait_for(struct crowd *crowd)
{
    int bad = 0, status;
    for (int i = 0; i < CHILDREN; i++) {
        waitpid(crowd->pids[i], &status, 0);
        bad += status != 0;
    }
    say(" bad=%d", bad);
}

static void end(struct crowd *crowd)
{
    close(crowd->go[1]);
    wait_for(crowd);
    close(crowd->go[0]);
    close(crowd->ready[0]);
    close(crowd->ready[1]);
}

static void attach_own(int id)
{
    char *at = shmat(id, NULL, 0);
    if (at == NOTHING)
        _exit(97);
    __atomic_fetch_add((int *)at, 1, __ATOMIC_SEQ_CST);
}

static void use_inherited(int id) { (void)id; }

static void children_attach(void)
{
    struct crowd crowd;
    int id = make_segment(row_key(0), 2 * PAGE, 0600);
    start(&crowd, attach_own, id);
    struct shmid_ds ds = { 0 };
    TRY("with all", shmctl(id, IPC_STAT, &ds));
    say(" nattch=%lu", (unsigned long)ds.shm_nattch);
    end(&crowd);
    TRY("without", shmctl(id, IPC_STAT, &ds));
    say(" nattch=%lu", (unsigned long)ds.shm_nattch);
    say_time("dtime", ds.shm_dtime);
    char *at = attach("attach", id, NULL, 0);
    if (at != NOTHING)
        say(" counted %d", *(int *)at);
    remove_segment(id);
}

static void children_inherit(void)
{
    struct crowd crowd;
    int id = make_segment(row_key(0), PAGE, 0600);
    char *at = attach("attach", id, NULL, 0);
    start(&crowd, use_inherited, id);
    say_use("with all", id, 0);
    end(&crowd);
    struct shmid_ds ds = { 0 };
    TRY("without", shmctl(id, IPC_STAT, &ds));
    say(" nattch=%lu", (unsigned long)ds.shm_nattch);
    say_time("dtime", ds.shm_dtime);
    TRY("detach", shmdt(at));
    say_use("detached", id, 0);
    remove_segment(id);
}

/* All are killed at once; nobody has said goodbye. */
static void children_are_killed(void)
{
    struct crowd crowd;
    struct shmid_ds ds = { 0 };
    int id = make_segment(row_key(0), PAGE, 0600);
    start(&crowd, attach_own, id);
    for (int i = 0; i < CHILDREN; i++)
        kill(crowd.pids[i], SIGKILL);
    end(&crowd);
    TRY("stat", shmctl(id, IPC_STAT, &ds));
    say(" nattch=%lu", (unsigned long)ds.shm_nattch);
    say_time("dtime", ds.shm_dtime);
    remove_segment(id);
    TRY("gone", shmctl(id, IPC_STAT, &ds));
}

/* The last one's end deletes what was removed meanwhile. */
static void removed_while_children_live(void)
{
    struct crowd crowd;
    int id = make_segment(row_key(0), PAGE, 0600);
    start(&crowd, attach_own, id);
    remove_segment(id);
    struct shmid_ds ds = { 0 };
    TRY("stat", shmctl(id, IPC_STAT, &ds));
    say(" nattch=%lu mode=%o", (unsigned long)ds.shm_nattch, ds.shm_perm.mode);
    int other = TRY_ID("its key again", make_segment(row_key(0), 3 * PAGE, IPC_EXCL | 0600));
    end(&crowd);
    attach("attach", id, NULL, 0);
    TRY("stat", shmctl(id, IPC_STAT, &ds));
    TRY("rmid", shmctl(id, IPC_RMID, NULL));
    remove_segment(other);
}

static void end_of_an_heir(void)
{
    int go[2], status;
    char byte;
    int id = make_segment(row_key(0), PAGE, 0600);
    char *at = attach("attach", id, NULL, 0);
    if (pipe(go) < 0)
        return;
    pid_t child = fork();
    if (child == 0) {
        close(go[1]);
        _exit(read(go[0], &byte, 1) != 0);
    }
    say_use("both", id, child);
    close(go[0]);
    close(go[1]);
    waitpid(child, &status, 0);
    say(" status=%d", status);
    say_use("alone", id, child);
    TRY("detach", shmdt(at));
    remove_segment(id);
}

/* exec(2) detaches before the new program runs: the pipe is closed by it. */
static void exec_detaches_at_once(void)
{
    int ends[2], status;
    char byte;
    int id = make_segment(row_key(0), PAGE, 0600);
    if (pipe2(ends, O_CLOEXEC) < 0)
        return;
    pid_t child = fork();
    if (child == 0) {
        attach_own(id);
        execl("/bin/sleep", "sleep", "1000", (char *)NULL);
        _exit(99);
    }
    close(ends[1]);
    say(" closed %zd", read(ends[0], &byte, 1));
    struct shmid_ds ds = { 0 };
    TRY("stat", shmctl(id, IPC_STAT, &ds));
    say(" nattch=%lu", (unsigned long)ds.shm_nattch);
    say_time("dtime", ds.shm_dtime);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    close(ends[0]);
    remove_segment(id);
}

static void vfork_shares(void)
{
    int status, id = make_segment(row_key(0), PAGE, 0600);
    char *at = attach("attach", id, NULL, 0);
    pid_t child = vfork();
    if (child == 0) {
        at[0] = 'v';
        _exit(3);
    }
    waitpid(child, &status, 0);
    say(" status=%d %c", WEXITSTATUS(status), at[0]);
    child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(99);
    }
    waitpid(child, &status, 0);
    say(" status=%d", WEXITSTATUS(status));
    at[1] = 'w';
    struct shmid_ds ds = { 0 };
    TRY("stat", shmctl(id, IPC_STAT, &ds));
    say(" nattch=%lu %c%c", (unsigned long)ds.shm_nattch, at[0], at[1]);
    TRY("detach", shmdt(at));
    remove_segment(id);
}

/* Runs something in a child that a signal may end, and says which. */
static void say_end(const char *what, void (*run)(char *), char *at)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        run(at);
        _exit(0);
    }
    waitpid(child, &status, 0);
    say(" %s:%s %d", what, WIFSIGNALED(status) ? "signal" : "exit",
        WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

static void store(char *at) { *(volatile char *)at = 1; }
static void load(char *at) { (void)*(volatile char *)at; }

static void store_after_detach(char *at)
{
    if (shmdt(at) == 0)
        store(at);
}

static void touching(void)
{
    int id = make_segment(row_key(0), PAGE, 0600);
    char *at = attach("attach", id, NULL, 0);
    char *reader = attach("attach to read", id, NULL, SHM_RDONLY);
    say_end("store", store, at);
    say_end("load", load, reader);
    say_end("store read-only", store, reader);
    say_end("store after detach", store_after_detach, at);
    say(" %d %d", at[0], reader[0]);
    TRY("detach", shmdt(at));
    say_end("load after detach", load, at);
    TRY("detach", shmdt(reader));
    remove_segment(id);
}

static void detach_of_nothing(void)
{
    static char page[2 * PAGE];
    int id = make_segment(row_key(0), 3 * PAGE, 0600);
    char *at = attach("attach", id, NULL, 0);
    TRY("null", shmdt(NULL));
    TRY("-1", shmdt(NOTHING));
    TRY("1", shmdt((void *)1));
    TRY("data", shmdt((void *)(((uintptr_t)page + PAGE - 1) / PAGE * PAGE)));
    TRY("inside", shmdt(at + PAGE));
    TRY("odd", shmdt(at + 1));
    TRY("behind", shmdt(at + 3 * PAGE));
    TRY("it", shmdt(at));
    TRY("again", shmdt(at));
    remove_segment(id);
}

static void attach_of_nothing(void)
{
    int id = make_segment(row_key(0), PAGE, 0600);
    attach("-1", -1, NULL, 0);
    attach("most", INT_MAX, NULL, 0);
    attach("odd", id, (void *)((3ul << 32) + 1), 0);
    attach("the kernel's", id, (void *)0xffffffff80000000ul, 0);
    attach("the last page", id, (void *)-4096ul, 0);
    attach("remap nowhere", id, NULL, SHM_REMAP);
    if (become(NOBODY)) {
        attach("may not", id, NULL, 0);
        attach("may not read", id, NULL, SHM_RDONLY);
        attach("the first page", id, (void *)1, SHM_RND);
    }
}

static void *attach_and_detach(void *argument)
{
    long bad = 0;
    int *id = argument;
    for (int round = 0; round < ROUNDS; round++) {
        char *at = shmat(*id, NULL, 0), *reader = shmat(*id, NULL, SHM_RDONLY);
        if (at == NOTHING || reader == NOTHING) {
            bad++;
            continue;
        }
        memset(at, round, PAGE);
        bad += reader[PAGE - 1] != round;
        bad += shmdt(at) != 0;
        bad += reader[0] != round;
        bad += shmdt(reader) != 0;
    }
    return (void *)bad;
}

static void threads_of_their_own(void)
{
    pthread_t threads[THREADS];
    int ids[THREADS];
    long bad = 0;
    for (int i = 0; i < THREADS; i++)
        ids[i] = make_segment(row_key(i), PAGE, 0600);
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, attach_and_detach, &ids[i]);
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        bad += (long)result;
        say_use("stat", ids[i], 0);
        remove_segment(ids[i]);
    }
    say(" bad=%ld", bad);
}

static void walk_counts(void)
{
    struct shmid_ds ds;
    struct shm_info info;
    int id = make_segment(row_key(0), PAGE, 0600);
    char *one = attach("one", id, NULL, 0), *two = attach("two", id, NULL, SHM_RDONLY);
    int highest = shmctl(0, SHM_INFO, (void *)&info);
    for (int index = 0; index <= highest; index++)
        if (shmctl(index, SHM_STAT, &ds) == id)
            say(" nattch=%lu", (unsigned long)ds.shm_nattch);
    TRY("detach", shmdt(one));
    TRY("detach", shmdt(two));
    remove_segment(id);
}

static const struct row ROWS[] = {
    { "children_attach", "shmat nattch", children_attach },
    { "children_inherit", "shmat fork nattch", children_inherit },
    { "children_are_killed", "shmdt exit nattch", children_are_killed },
    { "removed_while_children_live", "shmctl IPC_RMID deletion", removed_while_children_live },
    { "end_of_an_heir", "shmctl IPC_STAT", end_of_an_heir },
    { "exec_detaches_at_once", "shmdt exec nattch", exec_detaches_at_once },
    { "vfork_shares", "shmat fork nattch", vfork_shares },
    { "touching", "shmat SHM_RDONLY", touching },
    { "detach_of_nothing", "shmdt EINVAL", detach_of_nothing },
    { "attach_of_nothing", "shmat EINVAL EACCES", attach_of_nothing },
    { "threads_of_their_own", "shmat threads", threads_of_their_own },
    { "walk_counts", "shmctl SHM_STAT nattch", walk_counts },
};

int main(int argc, char **argv)
{
    return run_rows(ROWS, sizeof ROWS / sizeof *ROWS, argc, argv);
}
