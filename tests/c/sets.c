/*
 * Programs that guard their data with semaphores.
 *
 *   sets count KEY FILE ROUNDS   ROUNDS times: P with SEM_UNDO, add one to the number in FILE, V;
 *                                semaphore 1 marks that somebody is at it, and must find nobody
 *   sets record KEY FILE NUMBER TOTAL
 *                                until FILE holds TOTAL records: P, add a record, V, all with
 *                                SEM_UNDO, as process NUMBER; says how many records are its own
 *   sets threads KEY THREADS ROUNDS
 *                                THREADS times ROUNDS times: P with SEM_UNDO, add one to a number
 *                                of the process, V; says the number
 *   sets barrier KEY COUNT       meets COUNT - 1 others three times; says its place each time
 *   sets rank KEY COUNT          takes the first free rank of COUNT, and says it
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/stat.h>
#include <unistd.h>

#define IPC_DIPC 00010000

static int set;

static int fail(const char *what)
{
    fprintf(stderr, "sets: %s: %s\n", what, strerror(errno));
    return 1;
}

static int operate(unsigned short number, short op, short flags)
{
    struct sembuf buf = { number, op, flags };
    return semop(set, &buf, 1);
}

/* The number, and a mark that nobody else is at it. */
static int add_one(int file)
{
    char text[32] = "";
    if (pread(file, text, sizeof text - 1, 0) < 0)
        return -1;
    long number = atol(text);
    int size = snprintf(text, sizeof text, "%020ld", number + 1);
    return pwrite(file, text, (size_t)size, 0) == size ? 0 : -1;
}

static int count(const char *path, int rounds)
{
    int file = open(path, O_RDWR | O_CREAT, 0644);
    if (file < 0)
        return fail(path);
    for (int i = 0; i < rounds; i++) {
        if (operate(0, -1, SEM_UNDO) < 0)
            return fail("P");
        if (operate(1, 1, IPC_NOWAIT | SEM_UNDO) < 0)
            return fail("mark");
        if (semctl(set, 1, GETVAL) != 1) {
            fprintf(stderr, "sets: held twice\n");
            return 1;
        }
        if (add_one(file) < 0)
            return fail(path);
        if (operate(1, -1, IPC_NOWAIT | SEM_UNDO) < 0)
            return fail("unmark");
        if (operate(0, 1, SEM_UNDO) < 0)
            return fail("V");
    }
    return 0;
}

/*
 * A record is a line, "NUMBER ROUND", of a length that divides a page, so that none is written in
 * part. The first line of the file says who holds the lock, 0 for nobody.
 */
enum { RECORD_BYTES = 16 };

static int put_record(int file, long index, unsigned number, unsigned round)
{
    char text[RECORD_BYTES + 1];
    snprintf(text, sizeof text, "%07u %07u\n", number, round);
    return pwrite(file, text, RECORD_BYTES, index * RECORD_BYTES) == RECORD_BYTES ? 0 : -1;
}

static unsigned holder(int file)
{
    char text[RECORD_BYTES + 1] = "";
    return pread(file, text, RECORD_BYTES, 0) == RECORD_BYTES ? (unsigned)atol(text) : 0;
}

static int operate_both(short first, short second)
{
    struct sembuf both[] = { { 0, first, SEM_UNDO }, { 1, second, SEM_UNDO } };
    int result;
    while ((result = semop(set, both, 2)) < 0 && errno == EINTR)
        continue;
    return result;
}

/* With the lock held: adds a record unless there are enough. 1 when there are, -1 on failure. */
static int add_record(int file, unsigned number, unsigned round, long total)
{
    unsigned short values[2];
    struct stat state;
    if (put_record(file, 0, number, 0) < 0 || fstat(file, &state) < 0)
        return -1;
    if (semctl(set, 0, GETALL, values) < 0)
        return -1;
    errno = EBUSY;
    if (values[0] != 0 || values[1] != 1)
        return -1;
    long index = state.st_size / RECORD_BYTES;
    int enough = index > total;
    if (!enough && put_record(file, index, number, round) < 0)
        return -1;
    if (holder(file) != number)
        return -1;
    return put_record(file, 0, 0, 0) < 0 ? -1 : enough;
}

static int record(const char *path, unsigned number, long total)
{
    int file = open(path, O_RDWR | O_CREAT, 0644), enough = 0;
    if (file < 0)
        return fail(path);
    for (unsigned round = 0; !enough; round++) {
        if (operate_both(-1, 1) < 0)
            return fail("P");
        enough = add_record(file, number, round, total);
        if (enough < 0)
            return fail("held twice, or not kept");
        if (operate_both(1, -1) < 0)
            return fail("V");
        if (enough)
            printf("%u\n", round);
    }
    return 0;
}

static volatile long number;
static int rounds_each;

static void *add_in_thread(void *argument)
{
    for (int i = 0; i < rounds_each; i++) {
        if (operate(0, -1, SEM_UNDO) < 0)
            return NULL;
        number = number + 1;
        if (operate(0, 1, SEM_UNDO) < 0)
            return NULL;
    }
    return argument;
}

static int threads(int count)
{
    pthread_t all[64];
    void *result = &set;
    for (int i = 0; i < count && i < 64; i++)
        if (pthread_create(&all[i], NULL, add_in_thread, &set) != 0)
            return 1;
    for (int i = 0; i < count && i < 64; i++)
        if (pthread_join(all[i], &result) != 0 || !result)
            return fail("a thread");
    printf("%ld\n", number);
    return 0;
}

/* Semaphore 0 counts those still missing, 1 those that have not left. */
static int barrier(int count)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int round = 0; round < 3; round++) {
        unsigned short gate = (unsigned short)round;
        if (operate(gate, -1, 0) < 0)
            return fail("arrive");
        printf("arrived %d\n", round);
        if (operate(gate, 0, 0) < 0)
            return fail("wait for zero");
        printf("passed %d of %d\n", round, count);
    }
    return 0;
}

static int rank(int key, int count)
{
    for (int i = 0; i < count; i++) {
        if (semget(key + i, 1, IPC_CREAT | IPC_EXCL | IPC_DIPC | 0600) >= 0) {
            printf("rank %d\n", i);
            return 0;
        }
        if (errno != EEXIST)
            return fail("semget");
    }
    return 1;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    int key = atoi(argv[2]);
    if (strcmp(argv[1], "rank") == 0)
        return rank(key, atoi(argv[3]));
    set = semget(key, 0, IPC_DIPC | 0600);
    if (set < 0)
        return fail("semget");
    if (strcmp(argv[1], "barrier") == 0)
        return barrier(atoi(argv[3]));
    if (strcmp(argv[1], "record") == 0 && argc == 6)
        return record(argv[3], (unsigned)atoi(argv[4]), atol(argv[5]));
    if (strcmp(argv[1], "threads") == 0 && argc == 5) {
        rounds_each = atoi(argv[4]);
        return threads(atoi(argv[3]));
    }
    return argc == 5 ? count(argv[3], atoi(argv[4])) : 2;
}
