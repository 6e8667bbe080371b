/*
 * matrix multiplies two matrices with N processes on any machines of the cluster: start it N times,
 *
 *     matrix N [SIZE]
 *
 * A, B and their product lie in one shared segment. Each process fills every N-th row of A and B,
 * waits for the others, computes every N-th row of the product, waits again, and checks the rows of
 * the next process against a formula: with A(i,j) = i + j and B(i,j) = i - j all is known.
 */
#include <errno.h>
#include <linux/dipc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/shm.h>

#define KEY 4500
#define FLAGS (IPC_DIPC | 0666)

enum { COUNT_MAX = 64, SIZE = 200, SIZE_LIMIT = 2000 };

/* MUTEX guards the next rank; FILLED, COMPUTED and STAYING count those who have not yet. */
enum { MUTEX, FILLED, COMPUTED, STAYING, SEMAPHORES };

struct shared {
    int next_rank;
    double numbers[];
};

static int set, segment, size;
static struct shared *shared;

static void die(const char *what)
{
    fprintf(stderr, "matrix: %s failed BECAUSE %s\n", what, strerror(errno));
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
    size_t bytes = sizeof *shared + 3 * sizeof(double) * (size_t)size * (size_t)size;
    segment = shmget(KEY, bytes, FLAGS | flags);
    if (segment < 0)
        die("shmget()");
    shared = shmat(segment, NULL, 0);
    if (shared == (void *)-1)
        die("shmat()");
}

/* Makes everything, or joins who did; the next rank. A new semaphore is 0, so MUTEX is taken. */
static int join(int count)
{
    short all = (short)count;
    set = semget(KEY, SEMAPHORES, FLAGS | IPC_CREAT | IPC_EXCL);
    if (set >= 0) {
        struct sembuf open[] = { { FILLED, all, 0 }, { COMPUTED, all, 0 }, { STAYING, all, 0 } };
        attach(IPC_CREAT | IPC_EXCL);
        if (semop(set, open, 3) < 0)
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

static void meet(int semaphore)
{
    operate(semaphore, -1);
    operate(semaphore, 0);
}

static double *row(int matrix, int i)
{
    return shared->numbers + ((size_t)matrix * (size_t)size + (size_t)i) * (size_t)size;
}

static void fill(int i)
{
    for (int j = 0; j < size; j++) {
        row(0, i)[j] = i + j;
        row(1, i)[j] = i - j;
    }
}

static void compute(int i)
{
    double *product = row(2, i);
    for (int j = 0; j < size; j++)
        product[j] = 0;
    for (int k = 0; k < size; k++)
        for (int j = 0; j < size; j++)
            product[j] += row(0, i)[k] * row(1, k)[j];
}

/* How many numbers of a row are not the sum over k of (i + k) * (k - j). */
static int check(int i)
{
    double n = size, sum = n * (n - 1) / 2, squares = (n - 1) * n * (2 * n - 1) / 6;
    int wrong = 0;
    for (int j = 0; j < size; j++)
        wrong += row(2, i)[j] != (i - j) * sum + squares - n * i * j;
    return wrong;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 0, wrong = 0;
    size = argc > 2 ? atoi(argv[2]) : SIZE;
    if (count < 1 || count > COUNT_MAX || size < 1 || size > SIZE_LIMIT) {
        fprintf(stderr, "usage: matrix N (1 to %d) [SIZE (1 to %d)]\n", COUNT_MAX, SIZE_LIMIT);
        return 2;
    }
    int rank = join(count);
    if (rank >= count) {
        fprintf(stderr, "matrix: all %d ranks are taken\n", count);
        return 20;
    }
    for (int i = rank; i < size; i += count)
        fill(i);
    meet(FILLED);
    for (int i = rank; i < size; i += count)
        compute(i);
    meet(COMPUTED);
    for (int i = (rank + 1) % count; i < size; i += count)
        wrong += check(i);
    printf("matrix: rank %d of %d: %d x %d, %d wrong\n", rank, count, size, size, wrong);
    operate(STAYING, -1);
    if (rank == 0) {
        operate(STAYING, 0);
        if (shmctl(segment, IPC_RMID, NULL) < 0 || semctl(set, 0, IPC_RMID) < 0)
            die("removing");
    }
    return wrong != 0;
}
