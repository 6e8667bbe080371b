/* pthread_cancel ends a thread that waits in msgrcv, runs its clean-up, and takes no message. */
#include "trap.h"
#include <pthread.h>

static int queue;
static volatile int cleaned;
static volatile pid_t tid;

static void clean(void *argument)
{
    (void)argument;
    cleaned++;
}

static void *wait_for_message(void *argument)
{
    (void)argument;
    pthread_cleanup_push(clean, NULL);
    tid = gettid();
    trap_receive(queue, 0, 0);
    CHECK(0, "the wait ended by itself");
    pthread_cleanup_pop(0);
    return NULL;
}

static void *enter_cancelled(void *argument)
{
    (void)argument;
    pthread_cleanup_push(clean, NULL);
    pthread_cancel(pthread_self());
    trap_receive(queue, 0, 0);
    CHECK(0, "msgrcv is a cancellation point");
    pthread_cleanup_pop(0);
    return NULL;
}

static void *disabled(void *argument)
{
    (void)argument;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    tid = gettid();
    const char *text = trap_receive(queue, 0, 0);
    CHECK(text && strcmp(text, "for the disabled") == 0, "a thread that cannot be cancelled");
    return NULL;
}

int main(void)
{
    alarm(SECONDS_MAX);
    queue = trap_queue();
    pthread_t thread;
    void *result;
    for (int round = 1; round <= 3; round++) {
        tid = 0;
        pthread_create(&thread, NULL, wait_for_message, NULL);
        UNTIL(tid);
        trap_until_asleep(getpid(), tid);
        CHECK(pthread_cancel(thread) == 0, "pthread_cancel");
        pthread_join(thread, &result);
        CHECK(result == PTHREAD_CANCELED && cleaned == round, "it was not cancelled");
    }
    pthread_create(&thread, NULL, enter_cancelled, NULL);
    pthread_join(thread, &result);
    CHECK(result == PTHREAD_CANCELED && cleaned == 4, "cancelled before the call");

    tid = 0;
    pthread_create(&thread, NULL, disabled, NULL);
    UNTIL(tid);
    trap_until_asleep(getpid(), tid);
    pthread_cancel(thread);
    CHECK(trap_send(queue, 1, "for the disabled") == 0, "msgsnd");
    pthread_join(thread, &result);
    CHECK(result == NULL, "it was cancelled though it had disabled that");
    CHECK(trap_send(queue, 1, "kept") == 0 && trap_messages(queue) == 1, "a message is gone");
    return trap_end();
}
