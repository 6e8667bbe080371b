/*
 * semop(2) where somebody waits, and SEM_UNDO: what wakes a waiter, who waits and is counted,
 * EIDRM, EINTR, and what is undone when. The other rows are in sem_cases.c.
 */
#define _GNU_SOURCE
#include "cases.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int set;
static struct sembuf wanted = { 0, -1, 0 };
static int action_flags;

static long operate(const char *what, unsigned short number, short op, short flags)
{
    struct sembuf buf = { number, op, flags };
    return TRY(what, semop(set, &buf, 1));
}

static void set_value(int value) { semctl(set, 0, SETVAL, (union semun){ .val = value }); }

static void say_counts(void)
{
    say(" value=%d ncnt=%d zcnt=%d", semctl(set, 0, GETVAL), semctl(set, 0, GETNCNT),
        semctl(set, 0, GETZCNT));
}

/* The first call opens whatever has to be opened, so that the second one only waits. */
static void wait_for_it(void)
{
    semctl(set, 0, GETVAL);
    about_to_wait();
    TRY("semop", semop(set, &wanted, 1));
}

static void woken_by_add(void)
{
    set = make_set(row_key(0), 1, 0600);
    pid_t child = start_child(wait_for_it);
    until_waiting(child);
    say_counts();
    operate("+1", 0, 1, 0);
    finish_child("waiter", child);
    say_counts();
    say_pid("pid", semctl(set, 0, GETPID), child);
    semctl(set, 0, IPC_RMID);
}

static void woken_by_zero(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(2);
    wanted.sem_op = 0;
    pid_t child = start_child(wait_for_it);
    until_waiting(child);
    say_counts();
    operate("-1", 0, -1, 0);
    say_counts();
    operate("-1", 0, -1, 0);
    finish_child("waiter", child);
    say_counts();
    semctl(set, 0, IPC_RMID);
}

static void woken_by_setval(void)
{
    set = make_set(row_key(0), 1, 0600);
    wanted.sem_op = -3;
    pid_t child = start_child(wait_for_it);
    until_waiting(child);
    set_value(2);
    until_waiting(child);
    say_counts();
    set_value(3);
    finish_child("waiter", child);
    say_counts();
    semctl(set, 0, IPC_RMID);
}

static void woken_by_setall(void)
{
    unsigned short value[] = { 1 };
    set = make_set(row_key(0), 1, 0600);
    pid_t child = start_child(wait_for_it);
    until_waiting(child);
    TRY("setall", semctl(set, 0, SETALL, (union semun){ .array = value }));
    finish_child("waiter", child);
    say_counts();
    semctl(set, 0, IPC_RMID);
}

static void wait_for_both(void)
{
    struct sembuf both[] = { { 0, -1, 0 }, { 1, -1, 0 } };
    semctl(set, 0, GETVAL);
    about_to_wait();
    TRY("semop", semop(set, both, 2));
}

static void several_or_none(void)
{
    set = make_set(row_key(0), 2, 0600);
    pid_t child = start_child(wait_for_both);
    until_waiting(child);
    operate("first", 0, 1, 0);
    until_waiting(child);
    say_counts();
    operate("second", 1, 1, 0);
    finish_child("waiter", child);
    say_counts();
    semctl(set, 0, IPC_RMID);
}

static void in_order(void)
{
    pid_t children[3];
    set = make_set(row_key(0), 1, 0600);
    for (int i = 0; i < 3; i++) {
        children[i] = start_child(wait_for_it);
        until_waiting(children[i]);
    }
    for (int i = 0; i < 3; i++) {
        say_counts();
        operate("+1", 0, 1, 0);
        finish_child("waiter", children[i]);
    }
    semctl(set, 0, IPC_RMID);
}

static void eidrm(void)
{
    set = make_set(row_key(0), 1, 0600);
    pid_t child = start_child(wait_for_it);
    until_waiting(child);
    TRY("rmid", semctl(set, 0, IPC_RMID));
    finish_child("waiter", child);
}

static void interrupted(void)
{
    count_signals(SIGUSR1, action_flags);
    wait_for_it();
    say(" handler ran %d", signals_seen);
}

static void eintr(void)
{
    set = make_set(row_key(0), 1, 0600);
    for (int i = 0; i < 2; i++) {
        action_flags = i == 0 ? 0 : SA_RESTART;
        pid_t child = start_child(interrupted);
        until_waiting(child);
        kill(child, SIGUSR1);
        finish_child(action_flags ? "restart" : "plain", child);
        say_counts();
    }
    semctl(set, 0, IPC_RMID);
}

/* Unlike msgrcv(2), semop(2) ends when its process is stopped and continued, see signal(7). */
static void eintr_after_stop(void)
{
    set = make_set(row_key(0), 1, 0600);
    pid_t child = start_child(wait_for_it);
    until_waiting(child);
    kill(child, SIGSTOP);
    waitpid(child, NULL, WUNTRACED);
    kill(child, SIGCONT);
    finish_child("waiter", child);
    say_counts();
    semctl(set, 0, IPC_RMID);
}

static void waiter_killed(void)
{
    set = make_set(row_key(0), 1, 0600);
    pid_t child = start_child(wait_for_it);
    until_waiting(child);
    say_counts();
    kill(child, SIGKILL);
    finish_child("waiter", child);
    struct timespec look = { 0, 5000000 };
    for (int i = 0; i < 2400 && semctl(set, 0, GETNCNT) != 0; i++)
        nanosleep(&look, NULL);
    operate("+1", 0, 1, 0);
    say_counts();
    semctl(set, 0, IPC_RMID);
}

static void timed_wait(void)
{
    struct timespec long_enough = { 15, 0 };
    semctl(set, 0, GETVAL);
    about_to_wait();
    TRY("semtimedop", semtimedop(set, &wanted, 1, &long_enough));
}

static void timed_woken(void)
{
    set = make_set(row_key(0), 1, 0600);
    pid_t child = start_child(timed_wait);
    until_waiting(child);
    operate("+1", 0, 1, 0);
    finish_child("waiter", child);
    say_counts();
    semctl(set, 0, IPC_RMID);
}

static void wait_as_nobody(void)
{
    if (become(NOBODY))
        wait_for_it();
}

/* Unlike a queue's, a set's permissions do not count any more once somebody waits. */
static void permission_lost_while_waiting(void)
{
    struct semid_ds ds;
    union semun buf = { .buf = &ds };
    set = make_set(row_key(0), 1, 0666);
    pid_t child = start_child(wait_as_nobody);
    until_waiting(child);
    semctl(set, 0, IPC_STAT, buf);
    ds.sem_perm.mode = 0600;
    TRY("set", semctl(set, 0, IPC_SET, buf));
    operate("+1", 0, 1, 0);
    finish_child("waiter", child);
    semctl(set, 0, IPC_RMID);
}

/* Waits, within bounds, until the value is as expected: undo of a remote process takes a moment. */
static void until_value(int value)
{
    struct timespec look = { 0, 5000000 };
    for (int i = 0; i < 2400 && semctl(set, 0, GETVAL) != value; i++)
        nanosleep(&look, NULL);
    say(" value=%d", semctl(set, 0, GETVAL));
}

static void hold_and_exit(void) { operate("-1", 0, -1, SEM_UNDO); }

static void hold_and_pause(void)
{
    operate("-1", 0, -1, SEM_UNDO);
    about_to_wait();
    pause();
}

static void hold_and_abort(void)
{
    operate("-1", 0, -1, SEM_UNDO);
    signal(SIGABRT, SIG_DFL);
    abort();
}

static void hold_and_leave(void)
{
    operate("-1", 0, -1, SEM_UNDO);
    exit(0);
}

static void undo_at_exit(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(3);
    finish_child("holder", start_child(hold_and_exit));
    until_value(3);
    finish_child("holder", start_child(hold_and_leave));
    until_value(3);
    finish_child("holder", start_child(hold_and_abort));
    until_value(3);
    semctl(set, 0, IPC_RMID);
}

static void undo_when_killed(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(1);
    pid_t child = start_child(hold_and_pause);
    until_waiting(child);
    say_counts();
    kill(child, SIGKILL);
    finish_child("holder", child);
    until_value(1);
    semctl(set, 0, IPC_RMID);
}

static void undo_wakes_a_waiter(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(1);
    pid_t holder = start_child(hold_and_pause);
    until_waiting(holder);
    pid_t waiter = start_child(wait_for_it);
    until_waiting(waiter);
    kill(holder, SIGKILL);
    finish_child("holder", holder);
    finish_child("waiter", waiter);
    say_counts();
    semctl(set, 0, IPC_RMID);
}

static void take_and_give_back(void)
{
    operate("-1", 0, -1, SEM_UNDO);
    operate("+1", 0, 1, SEM_UNDO);
    operate("+2", 0, 2, 0);
}

static void undo_balances(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(1);
    finish_child("holder", start_child(take_and_give_back));
    until_value(3);
    semctl(set, 0, IPC_RMID);
}

static void take_and_set(void)
{
    operate("-1", 0, -1, SEM_UNDO);
    TRY("setval", semctl(set, 0, SETVAL, (union semun){ .val = 7 }));
}

static void undo_cleared_by_setval(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(1);
    finish_child("holder", start_child(take_and_set));
    until_value(7);
    semctl(set, 0, IPC_RMID);
}

static void take_and_set_all(void)
{
    unsigned short value[] = { 7 };
    operate("-1", 0, -1, SEM_UNDO);
    TRY("setall", semctl(set, 0, SETALL, (union semun){ .array = value }));
}

static void undo_cleared_by_setall(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(1);
    finish_child("holder", start_child(take_and_set_all));
    until_value(7);
    semctl(set, 0, IPC_RMID);
}

static void take_and_fork(void)
{
    operate("-1", 0, -1, SEM_UNDO);
    pid_t grandchild = start_child(hold_and_exit);
    finish_child("grandchild", grandchild);
    until_value(2);
}

/* A child begins with nothing to undo; its own end undoes only what it did itself. */
static void undo_not_inherited(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(3);
    finish_child("holder", start_child(take_and_fork));
    until_value(3);
    semctl(set, 0, IPC_RMID);
}

static char set_number[16];

static void take_and_exec(void)
{
    operate("-1", 0, -1, SEM_UNDO);
    execl("/proc/self/exe", "sem_wait_cases", "--after-exec", set_number, NULL);
    _exit(9);
}

/* The adjustment outlives exec and is applied when the new image ends. */
static void undo_kept_over_exec(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(3);
    snprintf(set_number, sizeof set_number, "%d", set);
    finish_child("image", start_child(take_and_exec));
    until_value(3);
    semctl(set, 0, IPC_RMID);
}

static int after_exec(int id)
{
    struct sembuf down = { 0, -1, SEM_UNDO };
    return semctl(id, 0, GETVAL) == 2 && semop(id, &down, 1) == 0 ? 0 : 1;
}

static void *take_in_thread(void *argument)
{
    struct sembuf down = { 0, -1, SEM_UNDO };
    return semop(set, &down, 1) == 0 ? argument : NULL;
}

static void take_in_thread_give_here(void)
{
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, take_in_thread, &set);
    pthread_join(thread, &result);
    say(" thread %s", result ? "took" : "failed");
    say_counts();
    operate("+1", 0, 1, SEM_UNDO);
    say_counts();
}

/* One list a process: a thread's end undoes nothing, and P here and V there cancel out. */
static void undo_is_the_processes(void)
{
    set = make_set(row_key(0), 1, 0600);
    set_value(1);
    finish_child("process", start_child(take_in_thread_give_here));
    until_value(1);
    semctl(set, 0, IPC_RMID);
}

static const struct row ROWS[] = {
    { "woken_by_add", "semop GETNCNT", woken_by_add },
    { "woken_by_zero", "semop GETZCNT", woken_by_zero },
    { "woken_by_setval", "semctl SETVAL", woken_by_setval },
    { "woken_by_setall", "semctl SETALL", woken_by_setall },
    { "several_or_none", "semop several", several_or_none },
    { "in_order", "semop GETNCNT", in_order },
    { "eidrm", "semop EIDRM", eidrm },
    { "eintr", "semop EINTR", eintr },
    { "eintr_after_stop", "semop EINTR", eintr_after_stop },
    { "waiter_killed", "semop GETNCNT", waiter_killed },
    { "timed_woken", "semtimedop", timed_woken },
    { "permission_lost_while_waiting", "semop EACCES", permission_lost_while_waiting },
    { "undo_at_exit", "semop SEM_UNDO", undo_at_exit },
    { "undo_when_killed", "semop SEM_UNDO", undo_when_killed },
    { "undo_wakes_a_waiter", "semop SEM_UNDO", undo_wakes_a_waiter },
    { "undo_balances", "semop SEM_UNDO", undo_balances },
    { "undo_cleared_by_setval", "semop SEM_UNDO SETVAL", undo_cleared_by_setval },
    { "undo_cleared_by_setall", "semop SEM_UNDO SETALL", undo_cleared_by_setall },
    { "undo_not_inherited", "semop SEM_UNDO", undo_not_inherited },
    { "undo_kept_over_exec", "semop SEM_UNDO", undo_kept_over_exec },
    { "undo_is_the_processes", "semop SEM_UNDO", undo_is_the_processes },
};

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--after-exec") == 0)
        return after_exec(atoi(argv[2]));
    return run_rows(ROWS, sizeof ROWS / sizeof *ROWS, argc, argv);
}
