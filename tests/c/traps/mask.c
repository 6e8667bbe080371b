/* The signal mask is the program's own: after each call, in a handler, and while a call waits. */
#include "trap.h"
#include <pthread.h>

static int queue, set;
static volatile int others, in_handler = -1;

static int blocked(int number)
{
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    return sigismember(&mask, number);
}

static void on_signal(int number)
{
    in_handler = blocked(number) * 4 + blocked(SIGUSR2) * 2 + blocked(SIGTERM);
}

static void on_other(int number)
{
    (void)number;
    others++;
}

static void *interrupt(void *target)
{
    trap_until_asleep(getpid(), getpid());
    pthread_kill(*(pthread_t *)target, SIGUSR2);
    pthread_kill(*(pthread_t *)target, SIGUSR1);
    return NULL;
}

static void wait_blocked(int from_set)
{
    pthread_t self = pthread_self(), helper;
    others = 0;
    in_handler = -1;
    pthread_create(&helper, NULL, interrupt, &self);
    errno = 0;
    long result = from_set ? trap_op(set, 0, -1, 0) : trap_receive(queue, 0, 0) ? 0 : -1;
    CHECK(result == -1 && errno == EINTR, "the wait");
    CHECK(in_handler == 6, "mask in the handler: %d", in_handler);
    CHECK(others == 0, "a blocked signal came through");
    pthread_join(helper, NULL);
    sigset_t one, pending;
    sigemptyset(&one);
    sigaddset(&one, SIGUSR2);
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGUSR2), "the blocked signal is not pending");
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    CHECK(others == 1, "the blocked signal is lost");
    pthread_sigmask(SIG_BLOCK, &one, NULL);
}

int main(void)
{
    alarm(SECONDS_MAX);
    queue = trap_queue();
    set = trap_set(1);
    sigset_t mine, before, after;
    sigemptyset(&mine);
    sigaddset(&mine, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &mine, NULL);
    pthread_sigmask(SIG_BLOCK, NULL, &before);
    signal(SIGUSR1, on_signal);
    signal(SIGUSR2, on_other);
    CHECK(trap_send(queue, 1, "x") == 0 && trap_receive(queue, 0, 0), "a message");
    wait_blocked(0);
    wait_blocked(1);
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    for (int number = 1; number <= SIGRTMAX; number++)
        CHECK(sigismember(&before, number) == sigismember(&after, number), "signal %d", number);
    return trap_end();
}
