/* The alarm idiom: a handler leaves a wait by siglongjmp. The wait must not swallow a message. */
#include "trap.h"
#include <pthread.h>
#include <setjmp.h>

enum { ROUNDS = 5 };

static sigjmp_buf place;
static int queue, set;

static void on_signal(int number)
{
    (void)number;
    siglongjmp(place, 1);
}

static void *interrupt(void *target)
{
    trap_until_asleep(getpid(), getpid());
    pthread_kill(*(pthread_t *)target, SIGUSR1);
    return NULL;
}

static void leave(int from_set)
{
    pthread_t self = pthread_self(), helper;
    if (sigsetjmp(place, 1) == 0) {
        pthread_create(&helper, NULL, interrupt, &self);
        if (from_set)
            trap_op(set, 0, -1, 0);
        else
            trap_receive(queue, 0, 0);
        CHECK(0, "the wait ended by itself");
    }
    pthread_join(helper, NULL);
}

int main(void)
{
    alarm(SECONDS_MAX);
    queue = trap_queue();
    set = trap_set(1);
    char stack[64 * 1024];
    stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
    for (int round = 0; round < ROUNDS; round++) {
        struct sigaction action = { .sa_handler = on_signal };
        if (round % 2) {
            sigaltstack(&alternate, NULL);
            action.sa_flags = SA_ONSTACK;
        }
        sigaction(SIGUSR1, &action, NULL);
        leave(0);
        CHECK(trap_send(queue, 1, "kept") == 0, "msgsnd");
        CHECK(trap_messages(queue) == 1, "the abandoned wait took the message");
        const char *text = trap_receive(queue, 0, IPC_NOWAIT);
        CHECK(text && strcmp(text, "kept") == 0, "the message");
        leave(1);
        CHECK(trap_op(set, 0, 1, 0) == 0 && semctl(set, 0, GETVAL) == 1, "the wait took it");
        CHECK(trap_op(set, 0, -1, IPC_NOWAIT) == 0, "semop");
        int type = -1;
        pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &type);
        CHECK(type == PTHREAD_CANCEL_ENABLE, "cancellation stayed disabled");
    }
    return trap_end();
}
