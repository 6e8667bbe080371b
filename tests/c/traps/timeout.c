/* semtimedop ends in time, not before, and takes nothing afterwards. */
#include "trap.h"

static long elapsed_ms(struct timespec from)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - from.tv_sec) * 1000 + (now.tv_nsec - from.tv_nsec) / 1000000;
}

int main(void)
{
    alarm(SECONDS_MAX);
    int set = trap_set(1);
    struct sembuf down = { 0, -1, 0 };
    long waits_ms[] = { 0, 1, 50, 300 };
    for (int i = 0; i < 4; i++) {
        struct timespec wait = { 0, waits_ms[i] * 1000000 }, start;
        clock_gettime(CLOCK_MONOTONIC, &start);
        errno = 0;
        CHECK(semtimedop(set, &down, 1, &wait) == -1 && errno == EAGAIN, "semtimedop");
        long ms = elapsed_ms(start);
        /* On a busy machine it may end late; if never, the alarm does. */
        CHECK(ms >= waits_ms[i], "%ld ms for %ld", ms, waits_ms[i]);
    }
    CHECK(trap_op(set, 0, 1, 0) == 0 && semctl(set, 0, GETVAL) == 1, "a wait went on");
    struct timespec wait = { 5, 0 };
    CHECK(semtimedop(set, &down, 1, &wait) == 0, "semtimedop that need not wait");
    return trap_end();
}
