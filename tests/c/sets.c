/*
 * Programs that guard their data with semaphores.
 *
 *   sets count KEY FILE ROUNDS   ROUNDS times: P with SEM_UNDO, add one to the number in FILE, V;
 *                                semaphore 1 marks that somebody is at it, and must find nobody
 *   sets barrier KEY COUNT       meets COUNT - 1 others three times; says its place each time
 *   sets rank KEY COUNT          takes the first free rank of COUNT, and says it
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/sem.h>
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
    return argc == 5 ? count(argv[3], atoi(argv[4])) : 2;
}
