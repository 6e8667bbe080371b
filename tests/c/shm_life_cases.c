/*
 * Attachments over fork(2), execve(2) and the ends of processes and threads: what shm_nattch says,
 * what a child sees, and when a removed segment is deleted (shmop(2), shmctl(2), fork(2)).
 */
#define _GNU_SOURCE
#include "cases.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS = 8, ADDS = 500 };

extern char **environ;

static int segment;
static char *area;
static int go[2];

static void remove_segment(int id) { TRY("rmid", shmctl(id, IPC_RMID, NULL)); }

static void say_nattch(int id)
{
    struct shmid_ds ds;
    if (shmctl(id, IPC_STAT, &ds) < 0)
        say(" nattch %s", errno_name(errno));
    else
        say(" nattch=%lu", (unsigned long)ds.shm_nattch);
}

/* The row's segment, of four pages, attached. */
static void begin(void)
{
    segment = make_segment(row_key(0), 4 * PAGE, 0600);
    errno = 0;
    area = shmat(segment, NULL, 0);
    report("attach", area == (char *)-1 ? -1 : 0);
    if (pipe2(go, O_CLOEXEC) < 0)
        say(" no pipe");
}

/* Waits until the other side has said go, or has ended or become another program. */
static void until_told(void)
{
    char byte;
    while (read(go[0], &byte, 1) < 0 && errno == EINTR)
        continue;
}

static void tell(void)
{
    if (write(go[1], "x", 1) != 1)
        say(" not told");
}

static void end(pid_t pid)
{
    int status;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}

/* A child that has said go and sleeps. */
static pid_t sleeping_child(void (*first)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        first();
        tell();
        for (;;)
            pause();
    }
    until_told();
    return pid;
}

static void nothing(void) {}

static void change_first(void) { strcpy(area, "changed by the child"); }

static void detach_it(void) { shmdt(area); }

static void attach_once_more(void) { shmat(segment, NULL, SHM_RDONLY); }

static void detach_a_page(void) { munmap(area + PAGE, PAGE); }

static void fork_inherits(void)
{
    begin();
    strcpy(area, "from the parent");
    pid_t pid = sleeping_child(change_first);
    say(" %s", area);
    say_nattch(segment);
    end(pid);
    say_nattch(segment);
    pid = sleeping_child(attach_once_more);
    say_nattch(segment);
    end(pid);
    say_nattch(segment);
    remove_segment(segment);
}

static void child_detaches(void)
{
    begin();
    pid_t pid = sleeping_child(detach_it);
    say_nattch(segment);
    strcpy(area, "still here");
    end(pid);
    say_nattch(segment);
    pid = sleeping_child(detach_a_page);
    say_nattch(segment);
    area[PAGE] = 1;
    end(pid);
    say_nattch(segment);
    remove_segment(segment);
}

static void child_reads(void)
{
    say(" %s", area + PAGE);
    strcpy(area + 2 * PAGE, "answer");
    TRY("detach", shmdt(area));
    TRY("again", shmdt(area));
    area = shmat(segment, NULL, 0);
    say(" %s", area + 2 * PAGE);
}

static void parent_detaches(void)
{
    begin();
    strcpy(area + PAGE, "question");
    pid_t pid = start_child(child_reads);
    TRY("detach", shmdt(area));
    finish_child("child", pid);
    say_nattch(segment);
    area = shmat(segment, NULL, 0);
    say(" %s", area + 2 * PAGE);
    remove_segment(segment);
}

static void child_attaches(void)
{
    area = shmat(segment, NULL, 0);
    strcpy(area, "by the child");
}

static void fork_before_attach(void)
{
    segment = make_segment(row_key(0), 4 * PAGE, 0600);
    if (pipe2(go, O_CLOEXEC) < 0)
        return;
    pid_t pid = sleeping_child(child_attaches);
    say_nattch(segment);
    area = shmat(segment, NULL, 0);
    say(" %s", area);
    say_nattch(segment);
    end(pid);
    say(" %s", area);
    say_nattch(segment);
    remove_segment(segment);
}

static void generations(void)
{
    begin();
    pid_t pid = fork();
    if (pid == 0) {
        pid_t second = fork();
        if (second == 0) {
            strcpy(area + 3 * PAGE, "grandchild");
            tell();
            for (;;)
                pause();
        }
        memcpy(area + PAGE, &second, sizeof second);
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    until_told();
    say(" %s", area + 3 * PAGE);
    say_nattch(segment);
    TRY("detach", shmdt(area));
    say_nattch(segment);
    area = shmat(segment, NULL, 0);
    memcpy(&pid, area + PAGE, sizeof pid);
    remove_segment(segment);
    kill(pid, SIGKILL);
}

/* By a system call that no library sees. */
static void raw_fork(void)
{
    begin();
    strcpy(area, "before");
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        strcpy(area + PAGE, area);
        area[PAGE] = 'B';
        tell();
        for (;;)
            pause();
    }
    until_told();
    say(" %s", area + PAGE);
    say_nattch(segment);
    end(pid);
    say_nattch(segment);
    remove_segment(segment);
}

static void dontfork(void)
{
    begin();
    TRY("dontfork", madvise(area, 4 * PAGE, MADV_DONTFORK));
    pid_t pid = sleeping_child(nothing);
    say_nattch(segment);
    end(pid);
    TRY("dofork", madvise(area, 4 * PAGE, MADV_DOFORK));
    pid = sleeping_child(nothing);
    say_nattch(segment);
    end(pid);
    remove_segment(segment);
}

/* The pipe's end in the child closes when it becomes another program. */
static void exec_detaches(void)
{
    int input[2];
    begin();
    if (pipe2(input, O_CLOEXEC) < 0)
        return;
    area[0] = 'e';
    pid_t pid = fork();
    if (pid == 0) {
        dup2(input[0], 0);
        execlp("cat", "cat", NULL);
        _exit(1);
    }
    close(go[1]);
    until_told();
    say_nattch(segment);
    close(input[1]);
    waitpid(pid, NULL, 0);
    say_nattch(segment);
    say(" %c", area[0]);
    remove_segment(segment);
}

static void spawned_have_none(void)
{
    char *arguments[] = { "true", NULL };
    pid_t pid;
    int status = -1;
    begin();
    area[0] = 's';
    say(" spawn %d", posix_spawnp(&pid, "true", NULL, NULL, arguments, environ));
    waitpid(pid, &status, 0);
    say(" status %d system %d", status, system("exit 3"));
    pid = vfork();
    if (pid == 0) {
        execlp("true", "true", NULL);
        _exit(1);
    }
    waitpid(pid, &status, 0);
    say(" status %d", status);
    say_nattch(segment);
    say(" %c", area[0]);
    remove_segment(segment);
}

static void end_by(void (*way)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        area = shmat(segment, NULL, 0);
        way();
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    say_nattch(segment);
}

static void kill_self(void) { kill(getpid(), SIGKILL); }

static void abort_self(void) { abort(); }

static void become_true(void) { execlp("true", "true", NULL); }

static void exit_group(void) { exit(0); }

static void ends_detach(void)
{
    begin();
    end_by(nothing);
    end_by(exit_group);
    end_by(kill_self);
    end_by(abort_self);
    end_by(become_true);
    remove_segment(segment);
}

/* Deletion at the last detach, however that comes about. */
static void delete_by(const char *what, void (*way)(void))
{
    segment = make_segment(row_key(0), 4 * PAGE, 0600);
    pid_t pid = fork();
    if (pid == 0) {
        area = shmat(segment, NULL, 0);
        strcpy(area, "to be deleted");
        shmctl(segment, IPC_RMID, NULL);
        way();
        tell();
        for (;;)
            pause();
    }
    until_told();
    say(" %s", what);
    say_nattch(segment);
    end(pid);
    say_nattch(segment);
    TRY_ID("get", shmget(row_key(0), 0, get_flag()));
}

static void unmap_all(void) { munmap(area, 4 * PAGE); }

static void map_over(void)
{
    mmap(area, 4 * PAGE, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void deletion(void)
{
    if (pipe2(go, O_CLOEXEC) < 0)
        return;
    delete_by("kill", nothing);
    delete_by("shmdt", detach_it);
    delete_by("munmap", unmap_all);
    delete_by("mmap", map_over);
    delete_by("a page", detach_a_page);
}

static void attach_removed(void)
{
    segment = make_segment(row_key(0), PAGE, 0600);
    if (pipe2(go, O_CLOEXEC) < 0)
        return;
    pid_t pid = sleeping_child(child_attaches);
    remove_segment(segment);
    area = shmat(segment, NULL, 0);
    say(" %s", area == (char *)-1 ? errno_name(errno) : area);
    end(pid);
    say_nattch(segment);
    TRY("detach", shmdt(area));
    say_nattch(segment);
    errno = 0;
    area = shmat(segment, NULL, 0);
    say(" %s", area == (char *)-1 ? errno_name(errno) : area);
}

static void *attach_in_thread(void *argument)
{
    (void)argument;
    char *at = shmat(segment, NULL, 0);
    strcpy(at, "by a thread");
    return at;
}

static void *detach_in_thread(void *at) { return shmdt(at) == 0 ? at : NULL; }

static void threads_share(void)
{
    pthread_t thread;
    void *at, *done;
    begin();
    pthread_create(&thread, NULL, attach_in_thread, NULL);
    pthread_join(thread, &at);
    say(" %s", (char *)at);
    say_nattch(segment);
    pthread_create(&thread, NULL, detach_in_thread, at);
    pthread_join(thread, &done);
    say(" %s", done ? "detached" : "not detached");
    say_nattch(segment);
    remove_segment(segment);
}

static void *add_in_thread(void *argument)
{
    (void)argument;
    atomic_int *numbers = (void *)area;
    for (int i = 0; i < ADDS; i++)
        for (int page = 0; page < 4; page++)
            atomic_fetch_add(&numbers[page * PAGE / (int)sizeof *numbers], 1);
    return NULL;
}

static void say_numbers(void)
{
    for (int page = 0; page < 4; page++)
        say(" %d", *(int *)(area + page * PAGE));
}

static void threads_add(void)
{
    pthread_t threads[THREADS];
    begin();
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, add_in_thread, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    say_numbers();
    remove_segment(segment);
}

static void processes_add(void)
{
    pid_t pids[THREADS];
    begin();
    for (int i = 0; i < THREADS; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            /* Half of them by an attachment of their own. */
            if (i % 2)
                area = shmat(segment, NULL, 0);
            add_in_thread(NULL);
            _exit(0);
        }
    }
    for (int i = 0; i < THREADS; i++)
        waitpid(pids[i], NULL, 0);
    say_numbers();
    say_nattch(segment);
    remove_segment(segment);
}

static atomic_int stop;

static void *write_all_the_time(void *argument)
{
    (void)argument;
    long written = 0;
    for (; !stop || written < 1000; written++)
        *(volatile long *)(area + (written % 4) * PAGE + 64) = written;
    return NULL;
}

/* Forks while another thread writes; each child adds one. */
static void fork_storm(void)
{
    pthread_t thread;
    begin();
    pthread_create(&thread, NULL, write_all_the_time, NULL);
    for (int i = 0; i < 40; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            atomic_fetch_add((atomic_int *)area, 1);
            atomic_fetch_add((atomic_int *)(area + 3 * PAGE), 1);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    stop = 1;
    pthread_join(thread, NULL);
    say_numbers();
    say_nattch(segment);
    remove_segment(segment);
}

static const struct row ROWS[] = {
    { "fork_inherits", "shmat fork nattch", fork_inherits },
    { "child_detaches", "shmdt fork nattch", child_detaches },
    { "parent_detaches", "shmdt fork nattch", parent_detaches },
    { "fork_before_attach", "shmat fork", fork_before_attach },
    { "generations", "shmat fork nattch", generations },
    { "raw_fork", "shmat fork nattch", raw_fork },
    { "dontfork", "shmat madvise nattch", dontfork },
    { "exec_detaches", "shmdt exec nattch", exec_detaches },
    { "spawned_have_none", "shmdt exec nattch", spawned_have_none },
    { "ends_detach", "shmdt exit nattch", ends_detach },
    { "deletion", "shmdt shmctl IPC_RMID deletion", deletion },
    { "attach_removed", "shmat shmctl IPC_RMID EINVAL", attach_removed },
    { "threads_share", "shmat shmdt threads", threads_share },
    { "threads_add", "shmat threads", threads_add },
    { "processes_add", "shmat fork", processes_add },
    { "fork_storm", "shmat fork", fork_storm },
};

int main(int argc, char **argv)
{
    return run_rows(ROWS, sizeof ROWS / sizeof *ROWS, argc, argv);
}
