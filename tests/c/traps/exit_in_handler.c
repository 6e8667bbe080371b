/* A thread that ends inside a handler, inside a wait, leaves nothing behind that takes messages. */
#include "trap.h"
#include <pthread.h>

static int queue;
static volatile pid_t tid;

static void on_signal(int number)
{
    (void)number;
    pthread_exit(NULL);
}

static void *wait_for_message(void *argument)
{
    tid = gettid();
    trap_receive(queue, 0, 0);
    return argument;
}

int main(void)
{
    alarm(SECONDS_MAX);
    queue = trap_queue();
    signal(SIGUSR1, on_signal);
    for (int round = 0; round < 3; round++) {
        pthread_t thread;
        tid = 0;
        pthread_create(&thread, NULL, wait_for_message, NULL);
        UNTIL(tid);
        trap_until_asleep(getpid(), tid);
        pthread_kill(thread, SIGUSR1);
        pthread_join(thread, NULL);
        CHECK(trap_send(queue, 1, "kept") == 0 && trap_messages(queue) == 1, "it was taken");
        CHECK(trap_receive(queue, 0, IPC_NOWAIT), "the message");
    }
    return trap_end();
}
