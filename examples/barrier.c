/*
 * barrier lets N processes, on any machines of the cluster, meet three times: start it N times,
 *
 *     barrier N
 *
 * A process takes the first free key of N by IPC_EXCL, and its place is its rank. The set of rank
 * 0 is the barrier: a semaphore that says how many are missing, and all wait for its zero. Beside
 * it a semaphore counts who came; whoever passes with somebody missing has found a broken barrier.
 */
#include <errno.h>
#include <linux/dipc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/sem.h>

#define FIRST_KEY 4200

enum { COUNT_MAX = 100, ROUNDS = 3 };

/* The semaphores: a MISSING and a CAME for each round, the sum of ranks, and who has not left. */
enum { MISSING = 0, CAME = ROUNDS, RANKS = 2 * ROUNDS, STAYING, SEMAPHORES };

static void die(const char *what)
{
    fprintf(stderr, "barrier: %s failed BECAUSE %s\n", what, strerror(errno));
    exit(20);
}

static struct sembuf add(int semaphore, int value)
{
    return (struct sembuf){ (unsigned short)semaphore, (short)value, 0 };
}

static void operate(int set, struct sembuf *operations, size_t count)
{
    while (semop(set, operations, count) < 0)
        if (errno != EINTR)
            die("semop()");
}

/* The first key that nobody has; its set is ours alone. */
static int take_rank(int count, int *own)
{
    for (int rank = 0; rank < count; rank++) {
        *own = semget(FIRST_KEY + rank, SEMAPHORES, IPC_DIPC | IPC_CREAT | IPC_EXCL | 0666);
        if (*own >= 0)
            return rank;
        if (errno != EEXIST)
            die("semget()");
    }
    fprintf(stderr, "barrier: all %d ranks are taken\n", count);
    exit(20);
}

/* All values at once, so that nobody sees some of them: who comes early waits for them. */
static void open_barrier(int set, int count)
{
    struct sembuf all[ROUNDS + 1];
    for (int round = 0; round < ROUNDS; round++)
        all[round] = add(MISSING + round, count);
    all[ROUNDS] = add(STAYING, count);
    operate(set, all, ROUNDS + 1);
}

static int value(int set, int semaphore)
{
    int value = semctl(set, semaphore, GETVAL);
    if (value < 0)
        die("semctl()");
    return value;
}

/* Meets the others; how many had come when we were let through. */
static int meet(int set, int round)
{
    struct sembuf arrive[] = { add(MISSING + round, -1), add(CAME + round, 1) };
    struct sembuf wait = add(MISSING + round, 0);
    operate(set, arrive, 2);
    operate(set, &wait, 1);
    return value(set, CAME + round);
}

int main(int argc, char **argv)
{
    int count = argc == 2 ? atoi(argv[1]) : 0, own, broken = 0;
    if (count < 1 || count > COUNT_MAX) {
        fprintf(stderr, "usage: barrier N (1 to %d)\n", COUNT_MAX);
        return 2;
    }
    int rank = take_rank(count, &own);
    int set = rank == 0 ? own : semget(FIRST_KEY, 0, IPC_DIPC | 0666);
    if (set < 0)
        die("semget()");
    if (rank == 0)
        open_barrier(set, count);
    struct sembuf say_rank = add(RANKS, rank), leave = add(STAYING, -1), all_left = add(STAYING, 0);
    if (rank > 0)
        operate(set, &say_rank, 1);
    for (int round = 0; round < ROUNDS; round++)
        broken |= meet(set, round) != count;
    broken |= value(set, RANKS) != count * (count - 1) / 2;
    printf("barrier: rank %d of %d: %s\n", rank, count,
           broken ? "somebody was MISSING" : "all were there each time");
    operate(set, &leave, 1);
    if (rank == 0)
        operate(set, &all_left, 1);
    if (semctl(own, 0, IPC_RMID) < 0)
        die("semctl()");
    return broken;
}
