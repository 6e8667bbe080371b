/*
 * pi computes pi with N processes on any machines of the cluster: start it N times,
 *
 *     pi N [STEPS]
 *
 * Each integrates 4 / (1 + x^2) over its share of STEPS strips and leaves the partial sum in a
 * shared segment. They meet at a barrier of semaphores; then everybody reads all partial sums,
 * adds them up and checks the result. Who comes first makes the segment and the semaphores; rank 0
 * removes them when the others have left.
 */
#include <errno.h>
#include <linux/dipc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/shm.h>

#define KEY 4400
#define FLAGS (IPC_DIPC | 0666)

enum { COUNT_MAX = 64, STEPS = 10000000 };

/* MUTEX guards the next rank; MISSING says who has yet to finish, STAYING who has not left. */
enum { MUTEX, MISSING, STAYING, SEMAPHORES };

struct shared {
    int next_rank;
    double parts[COUNT_MAX];
};

static int set, segment;
static struct shared *shared;

static void die(const char *what)
{
    fprintf(stderr, "pi: %s failed BECAUSE %s\n", what, strerror(errno));
    exit(20);
}

static void operate(int semaphore, int value)
{
    struct sembuf operation = { (unsigned short)semaphore, (short)value, 0 };
    while (semop(set, &operation, 1) < 0)
        if (errno != EINTR)
            die("semop()");
}

static void attach(int flags)
{
    segment = shmget(KEY, sizeof *shared, FLAGS | flags);
    if (segment < 0)
        die("shmget()");
    shared = shmat(segment, NULL, 0);
    if (shared == (void *)-1)
        die("shmat()");
}

/* Makes everything, or joins who did; the next rank. A new semaphore is 0, so MUTEX is taken. */
static int join(int count)
{
    set = semget(KEY, SEMAPHORES, FLAGS | IPC_CREAT | IPC_EXCL);
    if (set >= 0) {
        struct sembuf open[] = { { MISSING, (short)count, 0 }, { STAYING, (short)count, 0 } };
        attach(IPC_CREAT | IPC_EXCL);
        if (semop(set, open, 2) < 0)
            die("semop()");
    } else {
        set = semget(KEY, 0, FLAGS);
        if (set < 0)
            die("semget()");
        operate(MUTEX, -1);
        attach(0);
    }
    int rank = shared->next_rank++;
    operate(MUTEX, 1);
    return rank;
}

static double integrate(int rank, int count, long steps)
{
    double sum = 0, width = 1.0 / steps;
    for (long i = rank; i < steps; i += count) {
        double x = (i + 0.5) * width;
        sum += 4 / (1 + x * x);
    }
    return sum * width;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 0;
    long steps = argc > 2 ? atol(argv[2]) : STEPS;
    double pi = 0;
    if (count < 1 || count > COUNT_MAX || steps < 10000) {
        fprintf(stderr, "usage: pi N (1 to %d) [STEPS (10000 or more)]\n", COUNT_MAX);
        return 2;
    }
    int rank = join(count);
    if (rank >= count) {
        fprintf(stderr, "pi: all %d ranks are taken\n", count);
        return 20;
    }
    shared->parts[rank] = integrate(rank, count, steps);
    operate(MISSING, -1);
    operate(MISSING, 0);
    for (int i = 0; i < count; i++)
        pi += shared->parts[i];
    int wrong = fabs(pi - M_PI) > 1e-8;
    printf("pi: rank %d of %d: %.8f%s\n", rank, count, pi, wrong ? ", which is WRONG" : "");
    operate(STAYING, -1);
    if (rank == 0) {
        operate(STAYING, 0);
        if (shmctl(segment, IPC_RMID, NULL) < 0 || semctl(set, 0, IPC_RMID) < 0)
            die("removing");
    }
    return wrong;
}
