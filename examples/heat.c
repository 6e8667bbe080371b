/*
 * heat lets heat flow through a plate, with N processes on any machines of the cluster: start it
 * N times,
 *
 *     heat N [PICTURE]
 *
 * The plate lies in a shared segment, twice: in each step every process computes its rows of one
 * copy from the other, and the neighbours' rows at its edges come from the neighbours' machines.
 * A barrier of semaphores ends each step. Rank 0 then computes all of it once more alone, compares,
 * and writes the plate to PICTURE (heat.ppm), which most viewers show.
 */
#include <errno.h>
#include <linux/dipc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/shm.h>

#define KEY 4600
#define FLAGS (IPC_DIPC | 0666)

enum { COUNT_MAX = 32, SIZE = 128, STEPS = 120 };

/* Three barriers take turns, each counting who is missing; see meet(). */
enum { MUTEX, STAYING, BARRIER, SEMAPHORES = BARRIER + 3 };

typedef double plate[SIZE][SIZE];

struct shared {
    int next_rank;
    plate plates[2];
};

static int set, segment;
static struct shared *shared;

static void die(const char *what)
{
    fprintf(stderr, "heat: %s failed BECAUSE %s\n", what, strerror(errno));
    exit(20);
}

static struct sembuf add(int semaphore, int value)
{
    return (struct sembuf){ (unsigned short)semaphore, (short)value, 0 };
}

static void operate(struct sembuf *operations, size_t count)
{
    while (semop(set, operations, count) < 0)
        if (errno != EINTR)
            die("semop()");
}

/*
 * Meets the others. Who is let through has seen all arrive here, so all have left the barrier
 * before: everybody counts himself in there for its next turn.
 */
static void meet(int step)
{
    int here = BARRIER + step % 3, before = BARRIER + (step + 2) % 3;
    struct sembuf arrive = add(here, -1), wait[] = { add(here, 0), add(before, 1) };
    operate(&arrive, 1);
    operate(wait, 2);
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

/* A cold plate with a hot edge above and a hot spot in it. */
static void warm(plate plates[2])
{
    for (int which = 0; which < 2; which++) {
        for (int x = 0; x < SIZE; x++)
            plates[which][0][x] = 1;
        for (int y = SIZE / 2; y < SIZE / 2 + 8; y++)
            for (int x = SIZE / 3; x < SIZE / 3 + 8; x++)
                plates[which][y][x] = 1;
    }
}

/* Makes everything, or joins who did; the next rank. A new semaphore is 0, so MUTEX is taken. */
static int join(int count)
{
    struct sembuf enter = add(MUTEX, -1), leave = add(MUTEX, 1);
    set = semget(KEY, SEMAPHORES, FLAGS | IPC_CREAT | IPC_EXCL);
    if (set >= 0) {
        struct sembuf open[] = { add(BARRIER, count), add(BARRIER + 1, count),
                                 add(STAYING, count) };
        attach(IPC_CREAT | IPC_EXCL);
        warm(shared->plates);
        operate(open, 3);
    } else {
        set = semget(KEY, 0, FLAGS);
        if (set < 0)
            die("semget()");
        operate(&enter, 1);
        attach(0);
    }
    int rank = shared->next_rank++;
    operate(&leave, 1);
    return rank;
}

/* One step of the rows from `first` to before `end`; the plate's edges stay as they are. */
static void flow(plate from, plate to, int first, int end)
{
    for (int y = first < 1 ? 1 : first; y < end && y < SIZE - 1; y++)
        for (int x = 1; x < SIZE - 1; x++)
            to[y][x] = (from[y - 1][x] + from[y + 1][x] + from[y][x - 1] + from[y][x + 1]) / 4;
}

static int is_right(plate result)
{
    static plate alone[2];
    warm(alone);
    for (int step = 0; step < STEPS; step++)
        flow(alone[step % 2], alone[1 - step % 2], 0, SIZE);
    return memcmp(alone[STEPS % 2], result, sizeof alone[0]) == 0;
}

/* From black over red and yellow to white, as glowing things are. */
static int brightness(double heat, int part)
{
    double light = 3 * heat - part;
    return light <= 0 ? 0 : light >= 1 ? 255 : (int)(255 * light);
}

static void draw(plate result, const char *path)
{
    FILE *picture = fopen(path, "w");
    if (!picture)
        die(path);
    fprintf(picture, "P6\n%d %d\n255\n", SIZE, SIZE);
    for (int y = 0; y < SIZE; y++)
        for (int x = 0; x < SIZE; x++)
            for (int part = 0; part < 3; part++)
                putc(brightness(result[y][x], part), picture);
    if (fclose(picture) != 0)
        die(path);
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 0, wrong = 0;
    const char *path = argc > 2 ? argv[2] : "heat.ppm";
    if (count < 1 || count > COUNT_MAX) {
        fprintf(stderr, "usage: heat N (1 to %d) [PICTURE]\n", COUNT_MAX);
        return 2;
    }
    int rank = join(count);
    if (rank >= count) {
        fprintf(stderr, "heat: all %d ranks are taken\n", count);
        return 20;
    }
    int first = SIZE * rank / count, end = SIZE * (rank + 1) / count;
    for (int step = 0; step < STEPS; step++) {
        flow(shared->plates[step % 2], shared->plates[1 - step % 2], first, end);
        meet(step);
    }
    struct sembuf leave = add(STAYING, -1), all_left = add(STAYING, 0);
    if (rank == 0) {
        wrong = !is_right(shared->plates[STEPS % 2]);
        draw(shared->plates[STEPS % 2], path);
    }
    operate(&leave, 1);
    if (rank == 0)
        operate(&all_left, 1);
    printf("heat: rank %d of %d: rows %d to %d%s\n", rank, count, first, end - 1,
           wrong ? ", and the plate is WRONG" : "");
    if (rank == 0 && (shmctl(segment, IPC_RMID, NULL) < 0 || semctl(set, 0, IPC_RMID) < 0))
        die("removing");
    return wrong;
}
