/*
 * producer puts COUNT numbers (1000 if it is not said), 1 the first, into a buffer of few places,
 * out of which consumer takes them: here, or on another machine of the cluster. Start consumer
 * first; it says how the buffer is made.
 */
#include <errno.h>
#include <linux/dipc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>

#define BUFFER_KEY 4300

enum { FREE, USED, MUTEX };
enum { ITEM = 1, LAST = 2 };

struct item {
    long mtype;
    long number;
};

static void die(const char *what)
{
    fprintf(stderr, "producer: %s failed BECAUSE %s\n", what, strerror(errno));
    exit(20);
}

static void put(int set, int buffer, long type, long number)
{
    struct sembuf begin[] = { { FREE, -1, 0 }, { MUTEX, -1, SEM_UNDO } };
    struct sembuf end[] = { { MUTEX, 1, SEM_UNDO }, { USED, 1, 0 } };
    struct item item = { type, number };
    if (semop(set, begin, 2) < 0)
        die("semop()");
    /* There is a free place, so this does not wait. */
    if (msgsnd(buffer, &item, sizeof item.number, IPC_NOWAIT) < 0)
        die("msgsnd()");
    if (semop(set, end, 2) < 0)
        die("semop()");
}

int main(int argc, char **argv)
{
    long count = argc > 1 ? atol(argv[1]) : 1000;
    int set = semget(BUFFER_KEY, 0, IPC_DIPC | 0666);
    if (set < 0)
        die("semget()");
    int buffer = msgget(BUFFER_KEY, IPC_DIPC | 0666);
    if (buffer < 0)
        die("msgget()");
    for (long number = 1; number <= count; number++)
        put(set, buffer, ITEM, number);
    put(set, buffer, LAST, count);
    printf("producer: %ld numbers\n", count);
    return 0;
}
