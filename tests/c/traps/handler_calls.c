/* A signal handler that runs inside one call makes others, also inside the program's malloc. */
#include "trap.h"
#include <pthread.h>
#include <sys/time.h>

static int queue, set;
static volatile int sent, ticks;

static void on_signal(int number)
{
    (void)number;
    int saved = errno;
    CHECK(trap_op(set, 0, 1, 0) == 0, "semop in a handler");
    CHECK(trap_op(set, 0, -1, 0) == 0, "semop in a handler that takes it back");
    CHECK(trap_send(queue, 7, "from the handler") == 0, "msgsnd in a handler");
    sent = 1;
    errno = saved;
}

static void on_timer(int number)
{
    (void)number;
    int saved = errno;
    CHECK(trap_op(set, 1, 1, 0) == 0, "semop inside malloc");
    ticks++;
    errno = saved;
}

static void *interrupt(void *target)
{
    trap_until_asleep(getpid(), getpid());
    pthread_kill(*(pthread_t *)target, SIGUSR1);
    return NULL;
}

int main(void)
{
    alarm(SECONDS_MAX);
    queue = trap_queue();
    set = trap_set(2);
    signal(SIGUSR1, on_signal);
    pthread_t self = pthread_self(), helper;
    pthread_create(&helper, NULL, interrupt, &self);
    errno = 0;
    CHECK(!trap_receive(queue, 1, 0) && errno == EINTR, "msgrcv under a handler");
    pthread_join(helper, NULL);
    CHECK(sent, "the handler did not run");
    const char *text = trap_receive(queue, 0, IPC_NOWAIT);
    CHECK(text && strcmp(text, "from the handler") == 0, "the handler's message is not there");

    struct sigaction action = { .sa_handler = on_timer, .sa_flags = SA_RESTART };
    sigaction(SIGALRM, &action, NULL);
    alarm(0);
    struct itimerval often = { { 0, 2000 }, { 0, 2000 } }, never = { 0 };
    setitimer(ITIMER_REAL, &often, NULL);
    for (time_t end = time(NULL) + SECONDS_MAX; ticks < 100 && time(NULL) < end;) {
        void *blocks[64];
        for (int i = 0; i < 64; i++)
            blocks[i] = malloc((size_t)(i + 1) * 97);
        for (int i = 0; i < 64; i++)
            free(blocks[i]);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    CHECK(ticks >= 100 && semctl(set, 1, GETVAL) == ticks, "%d of the ticks", ticks);
    return trap_end();
}
