/* msgrcv and semop are not restarted after a handler, SA_RESTART or not. */
#include "trap.h"
#include <pthread.h>

static volatile int handled;

static void on_signal(int number)
{
    (void)number;
    handled++;
}

static void *interrupt(void *target)
{
    trap_until_asleep(getpid(), getpid());
    pthread_kill(*(pthread_t *)target, SIGUSR1);
    return NULL;
}

#define INTERRUPTED(call) \
    do { \
        pthread_t self = pthread_self(), helper; \
        pthread_create(&helper, NULL, interrupt, &self); \
        errno = 0; \
        long result = (long)(call); \
        CHECK(result == -1 && errno == EINTR, "%s: %ld", #call, result); \
        pthread_join(helper, NULL); \
    } while (0)

int main(void)
{
    alarm(SECONDS_MAX);
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    sigaction(SIGUSR1, &action, NULL);
    int queue = trap_queue(), set = trap_set(1);
    struct message message;
    struct sembuf op = { 0, -1, 0 };
    struct timespec long_time = { 1000, 0 };
    INTERRUPTED(msgrcv(queue, &message, sizeof message.text, 0, 0));
    INTERRUPTED(semop(set, &op, 1));
    INTERRUPTED(semtimedop(set, &op, 1, &long_time));
    CHECK(handled == 3, "%d handlers ran", handled);
    CHECK(trap_send(queue, 1, "x") == 0 && trap_messages(queue) == 1, "a wait went on");
    return trap_end();
}
