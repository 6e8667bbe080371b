/*
 * msgop(2) where somebody waits: both ways of blocking, what wakes a waiter, EIDRM, EINTR, and
 * leaving a wait without returning from it. The other rows are in msg_cases.c.
 */
#define _GNU_SOURCE
#include "cases.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

struct message {
    long type;
    char text[512];
};

static struct message out, in;
static int queue;
static long wanted_type;
static int receive_flags;
static int action_flags;

static void put(int id, long type, const char *text)
{
    out.type = type;
    strcpy(out.text, text);
    TRY("put", msgsnd(id, &out, strlen(text), IPC_NOWAIT));
}

static void take(const char *what, int id, long type, int flags)
{
    memset(&in, 0, sizeof in);
    if (TRY(what, msgrcv(id, &in, sizeof in.text, type, flags)) >= 0)
        say("[%ld:%.20s]", in.type, in.text);
}

static unsigned long messages(int id)
{
    struct msqid_ds ds;
    return msgctl(id, IPC_STAT, &ds) == 0 ? (unsigned long)ds.msg_qnum : 999;
}

static void fill(int id)
{
    out.type = 1;
    while (msgsnd(id, &out, 512, IPC_NOWAIT) == 0)
        continue;
}

/* The first call opens whatever has to be opened, so that the second one only waits. */
static void wait_to_receive(void)
{
    messages(queue);
    about_to_wait();
    take("take", queue, wanted_type, receive_flags);
}

static void wait_to_send(void)
{
    messages(queue);
    out.type = 9;
    strcpy(out.text, "late");
    about_to_wait();
    TRY("put", msgsnd(queue, &out, 512, 0));
}

static void receiver_woken(void)
{
    queue = make_queue(row_key(0), 0600);
    pid_t child = start_child(wait_to_receive);
    until_waiting(child);
    put(queue, 5, "wake up");
    finish_child("receiver", child);
    say(" left=%lu", messages(queue));
    msgctl(queue, IPC_RMID, NULL);
}

static void receiver_waits_for_its_type(void)
{
    queue = make_queue(row_key(0), 0600);
    wanted_type = 2;
    pid_t child = start_child(wait_to_receive);
    until_waiting(child);
    put(queue, 1, "not this");
    until_waiting(child);
    put(queue, 2, "this");
    finish_child("receiver", child);
    say(" left=%lu", messages(queue));
    msgctl(queue, IPC_RMID, NULL);
}

static void receiver_waits_below(void)
{
    queue = make_queue(row_key(0), 0600);
    wanted_type = -2;
    pid_t child = start_child(wait_to_receive);
    until_waiting(child);
    put(queue, 3, "above");
    until_waiting(child);
    put(queue, 2, "not above");
    finish_child("receiver", child);
    msgctl(queue, IPC_RMID, NULL);
}

static void receiver_waits_except(void)
{
    queue = make_queue(row_key(0), 0600);
    wanted_type = 3;
    receive_flags = MSG_EXCEPT;
    pid_t child = start_child(wait_to_receive);
    until_waiting(child);
    put(queue, 3, "not this");
    until_waiting(child);
    put(queue, 4, "this");
    finish_child("receiver", child);
    msgctl(queue, IPC_RMID, NULL);
}

static void wait_with_small_buffer(void)
{
    messages(queue);
    about_to_wait();
    TRY("take", msgrcv(queue, &in, 3, 0, receive_flags));
}

static void waiting_e2big(void)
{
    queue = make_queue(row_key(0), 0600);
    pid_t child = start_child(wait_with_small_buffer);
    until_waiting(child);
    put(queue, 1, "more than three");
    finish_child("strict", child);
    say(" left=%lu", messages(queue));
    take("take", queue, 0, IPC_NOWAIT);
    receive_flags = MSG_NOERROR;
    child = start_child(wait_with_small_buffer);
    until_waiting(child);
    put(queue, 1, "more than three");
    finish_child("cut", child);
    say(" left=%lu", messages(queue));
    msgctl(queue, IPC_RMID, NULL);
}

static void receivers_in_order(void)
{
    pid_t children[3];
    queue = make_queue(row_key(0), 0600);
    for (int i = 0; i < 3; i++) {
        children[i] = start_child(wait_to_receive);
        until_waiting(children[i]);
    }
    put(queue, 1, "first");
    put(queue, 2, "second");
    put(queue, 3, "third");
    for (int i = 0; i < 3; i++)
        finish_child("receiver", children[i]);
    msgctl(queue, IPC_RMID, NULL);
}

static void sender_woken_by_room(void)
{
    queue = make_queue(row_key(0), 0600);
    fill(queue);
    unsigned long full = messages(queue);
    pid_t child = start_child(wait_to_send);
    until_waiting(child);
    TRY("take", msgrcv(queue, &in, 512, 1, 0));
    finish_child("sender", child);
    say(" %s", messages(queue) == full ? "full again" : "not full");
    take("late", queue, 9, IPC_NOWAIT);
    msgctl(queue, IPC_RMID, NULL);
}

static void sender_woken_by_set(void)
{
    struct msqid_ds ds;
    queue = make_queue(row_key(0), 0600);
    msgctl(queue, IPC_STAT, &ds);
    ds.msg_qbytes = 512;
    msgctl(queue, IPC_SET, &ds);
    fill(queue);
    pid_t child = start_child(wait_to_send);
    until_waiting(child);
    ds.msg_qbytes = 1024;
    TRY("set", msgctl(queue, IPC_SET, &ds));
    finish_child("sender", child);
    say(" messages=%lu", messages(queue));
    msgctl(queue, IPC_RMID, NULL);
}

static void receiver_eidrm(void)
{
    queue = make_queue(row_key(0), 0600);
    pid_t child = start_child(wait_to_receive);
    until_waiting(child);
    TRY("rmid", msgctl(queue, IPC_RMID, NULL));
    finish_child("receiver", child);
}

static void sender_eidrm(void)
{
    queue = make_queue(row_key(0), 0600);
    fill(queue);
    pid_t child = start_child(wait_to_send);
    until_waiting(child);
    TRY("rmid", msgctl(queue, IPC_RMID, NULL));
    finish_child("sender", child);
}

static void receive_as_nobody(void)
{
    if (become(NOBODY))
        wait_to_receive();
}

static void send_as_nobody(void)
{
    if (become(NOBODY))
        wait_to_send();
}

/* IPC_SET wakes waiters so that those who may not any more find out. */
static void receiver_loses_permission(void)
{
    struct msqid_ds ds;
    queue = make_queue(row_key(0), 0666);
    pid_t child = start_child(receive_as_nobody);
    until_waiting(child);
    msgctl(queue, IPC_STAT, &ds);
    ds.msg_perm.mode = 0600;
    TRY("set", msgctl(queue, IPC_SET, &ds));
    finish_child("receiver", child);
    msgctl(queue, IPC_RMID, NULL);
}

static void sender_loses_permission(void)
{
    struct msqid_ds ds;
    queue = make_queue(row_key(0), 0666);
    fill(queue);
    pid_t child = start_child(send_as_nobody);
    until_waiting(child);
    msgctl(queue, IPC_STAT, &ds);
    ds.msg_perm.mode = 0600;
    TRY("set", msgctl(queue, IPC_SET, &ds));
    TRY("make room", msgrcv(queue, &in, 512, 0, 0));
    finish_child("sender", child);
    msgctl(queue, IPC_RMID, NULL);
}

static void interrupted_receive(void)
{
    count_signals(SIGUSR1, action_flags);
    wait_to_receive();
    say(" handler ran %d", signals_seen);
}

static void interrupted_send(void)
{
    count_signals(SIGUSR1, action_flags);
    wait_to_send();
    say(" handler ran %d", signals_seen);
}

static void interrupt(void (*run)(void), int flags)
{
    action_flags = flags;
    pid_t child = start_child(run);
    until_waiting(child);
    kill(child, SIGUSR1);
    finish_child(flags ? "restart" : "plain", child);
}

static void receive_eintr(void)
{
    queue = make_queue(row_key(0), 0600);
    interrupt(interrupted_receive, 0);
    interrupt(interrupted_receive, SA_RESTART);
    put(queue, 1, "still there");
    say(" left=%lu", messages(queue));
    msgctl(queue, IPC_RMID, NULL);
}

static void send_eintr(void)
{
    queue = make_queue(row_key(0), 0600);
    fill(queue);
    unsigned long full = messages(queue);
    interrupt(interrupted_send, 0);
    interrupt(interrupted_send, SA_RESTART);
    say(" %s", messages(queue) == full ? "as full" : "changed");
    msgctl(queue, IPC_RMID, NULL);
}

static void ignored_receive(void)
{
    signal(SIGUSR1, SIG_IGN);
    wait_to_receive();
}

static void receive_ignored_signal(void)
{
    queue = make_queue(row_key(0), 0600);
    pid_t child = start_child(ignored_receive);
    until_waiting(child);
    kill(child, SIGUSR1);
    until_waiting(child);
    put(queue, 1, "after it");
    finish_child("receiver", child);
    msgctl(queue, IPC_RMID, NULL);
}

static void blocked_receive(void)
{
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    count_signals(SIGUSR1, 0);
    wait_to_receive();
    sigpending(&pending);
    say(" %s", sigismember(&pending, SIGUSR1) ? "pending" : "not pending");
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    say(" handler ran %d", signals_seen);
}

static void receive_blocked_signal(void)
{
    queue = make_queue(row_key(0), 0600);
    pid_t child = start_child(blocked_receive);
    until_waiting(child);
    kill(child, SIGUSR1);
    until_waiting(child);
    put(queue, 1, "after it");
    finish_child("receiver", child);
    msgctl(queue, IPC_RMID, NULL);
}

/* A stop and a continuation do not end msgrcv(2), see signal(7). */
static void receive_stopped(void)
{
    queue = make_queue(row_key(0), 0600);
    pid_t child = start_child(wait_to_receive);
    until_waiting(child);
    kill(child, SIGSTOP);
    waitpid(child, NULL, WUNTRACED);
    kill(child, SIGCONT);
    until_waiting(child);
    put(queue, 1, "after it");
    finish_child("receiver", child);
    msgctl(queue, IPC_RMID, NULL);
}

static void send_from_handler(int number)
{
    struct message message = { .type = 7, .text = "from the handler" };
    (void)number;
    int saved = errno;
    signals_seen += msgsnd(queue, &message, 16, IPC_NOWAIT) == 0;
    errno = saved;
}

static void receive_with_sending_handler(void)
{
    struct sigaction action = { .sa_handler = send_from_handler };
    sigaction(SIGUSR1, &action, NULL);
    wanted_type = 1;
    wait_to_receive();
    say(" sent=%d", signals_seen);
    take("handler's", queue, 7, IPC_NOWAIT);
}

static void handler_sends(void)
{
    queue = make_queue(row_key(0), 0600);
    pid_t child = start_child(receive_with_sending_handler);
    until_waiting(child);
    kill(child, SIGUSR1);
    finish_child("receiver", child);
    say(" left=%lu", messages(queue));
    msgctl(queue, IPC_RMID, NULL);
}

static sigjmp_buf out_of_wait;

static void jump(int number) { siglongjmp(out_of_wait, number); }

/* The alarm idiom of old programs. What was jumped out of must not take a message later. */
static void receive_and_jump(void)
{
    struct itimerval soon = { .it_value = { 0, 200000 } };
    signal(SIGALRM, jump);
    messages(queue);
    if (sigsetjmp(out_of_wait, 1) == 0) {
        setitimer(ITIMER_REAL, &soon, NULL);
        take("take", queue, 0, 0);
    } else {
        say(" jumped");
    }
    put(queue, 4, "once");
    say(" there=%lu", messages(queue));
    take("take", queue, 0, IPC_NOWAIT);
    take("take", queue, 0, IPC_NOWAIT);
}

static void jump_out_of_receive(void)
{
    queue = make_queue(row_key(0), 0600);
    finish_child("receiver", start_child(receive_and_jump));
    say(" left=%lu", messages(queue));
    msgctl(queue, IPC_RMID, NULL);
}

static void jump_and_leave(void)
{
    struct itimerval soon = { .it_value = { 0, 200000 } };
    signal(SIGALRM, jump);
    if (sigsetjmp(out_of_wait, 1) == 0) {
        setitimer(ITIMER_REAL, &soon, NULL);
        take("take", queue, 0, 0);
    }
    about_to_wait();
    pause();
}

/* As before, but somebody else sends, while the one who jumped lives on without another call. */
static void jump_takes_nothing(void)
{
    queue = make_queue(row_key(0), 0600);
    pid_t child = start_child(jump_and_leave);
    until_waiting(child);
    put(queue, 4, "mine");
    take("take", queue, 0, IPC_NOWAIT);
    kill(child, SIGKILL);
    finish_child("jumper", child);
    msgctl(queue, IPC_RMID, NULL);
}

static void receiver_killed(void)
{
    queue = make_queue(row_key(0), 0600);
    pid_t child = start_child(wait_to_receive);
    until_waiting(child);
    kill(child, SIGKILL);
    finish_child("receiver", child);
    put(queue, 1, "for another");
    child = start_child(wait_to_receive);
    finish_child("another", child);
    msgctl(queue, IPC_RMID, NULL);
}

/* A message under way when its sender is killed may still arrive, from another node. */
static void sender_killed(void)
{
    queue = make_queue(row_key(0), 0600);
    fill(queue);
    pid_t child = start_child(wait_to_send);
    until_waiting(child);
    kill(child, SIGKILL);
    finish_child("sender", child);
    while (msgrcv(queue, &in, 512, 1, IPC_NOWAIT) >= 0)
        continue;
    say(" %s", messages(queue) <= 1 ? "sent at most once" : "sent more than once");
    msgctl(queue, IPC_RMID, NULL);
}

static void *receive_in_thread(void *argument)
{
    struct message message;
    (void)argument;
    about_to_wait();
    return msgrcv(queue, &message, 512, 2, 0) == 4 ? &queue : NULL;
}

static void thread_waits(void)
{
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, receive_in_thread, NULL);
    put(queue, 1, "other");
    take("meanwhile", queue, 1, IPC_NOWAIT);
    put(queue, 2, "done");
    pthread_join(thread, &result);
    say(" thread %s", result ? "got it" : "failed");
}

/* One thread waits while another of the same process goes on. */
static void thread_does_not_stop_others(void)
{
    queue = make_queue(row_key(0), 0600);
    finish_child("process", start_child(thread_waits));
    msgctl(queue, IPC_RMID, NULL);
}

static void *cancelled_receive(void *argument)
{
    struct message message;
    msgrcv(queue, &message, 512, 0, 0);
    return argument;
}

static void cancel_a_waiting_thread(void)
{
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, cancelled_receive, NULL);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    say(" %s", result == PTHREAD_CANCELED ? "cancelled" : "returned");
    put(queue, 1, "mine");
    take("take", queue, 0, IPC_NOWAIT);
}

static void thread_cancelled(void)
{
    queue = make_queue(row_key(0), 0600);
    finish_child("process", start_child(cancel_a_waiting_thread));
    msgctl(queue, IPC_RMID, NULL);
}

static const struct row ROWS[] = {
    { "receiver_woken", "msgrcv", receiver_woken },
    { "receiver_waits_for_its_type", "msgrcv type>0", receiver_waits_for_its_type },
    { "receiver_waits_below", "msgrcv type<0", receiver_waits_below },
    { "receiver_waits_except", "msgrcv MSG_EXCEPT", receiver_waits_except },
    { "waiting_e2big", "msgrcv MSG_NOERROR E2BIG", waiting_e2big },
    { "receivers_in_order", "msgrcv", receivers_in_order },
    { "sender_woken_by_room", "msgsnd", sender_woken_by_room },
    { "sender_woken_by_set", "msgsnd IPC_SET", sender_woken_by_set },
    { "receiver_eidrm", "msgrcv EIDRM", receiver_eidrm },
    { "sender_eidrm", "msgsnd EIDRM", sender_eidrm },
    { "receiver_loses_permission", "msgrcv EACCES", receiver_loses_permission },
    { "sender_loses_permission", "msgsnd EACCES", sender_loses_permission },
    { "receive_eintr", "msgrcv EINTR", receive_eintr },
    { "send_eintr", "msgsnd EINTR", send_eintr },
    { "receive_ignored_signal", "msgrcv", receive_ignored_signal },
    { "receive_blocked_signal", "msgrcv", receive_blocked_signal },
    { "receive_stopped", "msgrcv", receive_stopped },
    { "handler_sends", "msgrcv EINTR", handler_sends },
    { "jump_out_of_receive", "msgrcv", jump_out_of_receive },
    { "jump_takes_nothing", "msgrcv", jump_takes_nothing },
    { "receiver_killed", "msgrcv", receiver_killed },
    { "sender_killed", "msgsnd", sender_killed },
    { "thread_does_not_stop_others", "msgrcv", thread_does_not_stop_others },
    { "thread_cancelled", "msgrcv", thread_cancelled },
};

int main(int argc, char **argv)
{
    return run_rows(ROWS, sizeof ROWS / sizeof *ROWS, argc, argv);
}
