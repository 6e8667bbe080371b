/* A signal handler on an alternate stack of the customary 8 KiB, and a thread with the least. */
#include "trap.h"
#include <limits.h>
#include <pthread.h>
#include <stdint.h>

enum { STACK_BYTES = 8192, FILL = 0xAA };

static int queue;
static volatile int sent;

static void on_signal(int number)
{
    (void)number;
    int saved = errno;
    sent = trap_send(queue, 9, "from a small stack") == 0;
    errno = saved;
}

static void *interrupt(void *target)
{
    trap_until_asleep(getpid(), getpid());
    pthread_kill(*(pthread_t *)target, SIGUSR1);
    return NULL;
}

static void *exchange(void *argument)
{
    CHECK(trap_send(queue, 5, "x") == 0 && trap_receive(queue, 5, 0), "in a small thread");
    return argument;
}

int main(void)
{
    alarm(SECONDS_MAX);
    queue = trap_queue();
    unsigned char *memory = aligned_alloc(4096, 2 * STACK_BYTES);
    memset(memory, FILL, 2 * STACK_BYTES);
    stack_t stack = { .ss_sp = memory + STACK_BYTES, .ss_size = STACK_BYTES };
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK };
    CHECK(sigaltstack(&stack, NULL) == 0 && sigaction(SIGUSR1, &action, NULL) == 0, "set-up");

    pthread_t self = pthread_self(), helper;
    pthread_create(&helper, NULL, interrupt, &self);
    errno = 0;
    CHECK(!trap_receive(queue, 1, 0) && errno == EINTR, "msgrcv");
    pthread_join(helper, NULL);
    CHECK(sent, "msgsnd in the handler");
    int i = 0;
    while (i < STACK_BYTES && memory[i] == FILL)
        i++;
    CHECK(i == STACK_BYTES, "the handler wrote below its stack");

    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN);
    CHECK(pthread_create(&helper, &attributes, exchange, NULL) == 0, "a thread");
    pthread_join(helper, NULL);
    return trap_end();
}
