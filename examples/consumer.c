/*
 * consumer takes numbers out of a buffer of few places that producer fills: here, or on another
 * machine of the cluster. Start it first: it makes the buffer, checks what comes, says the sum, and
 * removes the buffer.
 *
 * Three semaphores in one set guard the buffer: how many places are free, how many are used, and a
 * mutex. What each side wants it takes in one semop(2), all or nothing. The buffer itself is a
 * message queue, whose messages are the places.
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
#define FLAGS (IPC_DIPC | IPC_CREAT | IPC_EXCL | 0666)

enum { FREE, USED, MUTEX, SEMAPHORES };
enum { ITEM = 1, LAST = 2 };
enum { PLACES = 8 };

struct item {
    long mtype;
    long number;
};

static int set = -1, buffer = -1;

static void remove_buffer(void)
{
    if (set >= 0)
        semctl(set, 0, IPC_RMID);
    if (buffer >= 0)
        msgctl(buffer, IPC_RMID, NULL);
}

static void die(const char *what)
{
    fprintf(stderr, "consumer: %s failed BECAUSE %s\n", what, strerror(errno));
    exit(20);
}

/* A new semaphore is 0, so producers wait until both values are there. */
static void make_buffer(void)
{
    struct sembuf open[] = { { FREE, PLACES, 0 }, { MUTEX, 1, 0 } };
    atexit(remove_buffer);
    buffer = msgget(BUFFER_KEY, FLAGS);
    if (buffer < 0)
        die("msgget()");
    set = semget(BUFFER_KEY, SEMAPHORES, FLAGS);
    if (set < 0)
        die("semget()");
    if (semop(set, open, 2) < 0)
        die("semop()");
}

/* Takes the next item; how many there were. */
static unsigned long take(struct item *item)
{
    struct sembuf begin[] = { { USED, -1, 0 }, { MUTEX, -1, SEM_UNDO } };
    struct sembuf end[] = { { MUTEX, 1, SEM_UNDO }, { FREE, 1, 0 } };
    struct msqid_ds state;
    if (semop(set, begin, 2) < 0)
        die("semop()");
    if (msgctl(buffer, IPC_STAT, &state) < 0)
        die("msgctl()");
    /* A place is used, so this does not wait. */
    if (msgrcv(buffer, item, sizeof item->number, 0, IPC_NOWAIT) < 0)
        die("msgrcv()");
    if (semop(set, end, 2) < 0)
        die("semop()");
    return state.msg_qnum;
}

int main(void)
{
    struct item item;
    long count = 0, sum = 0;
    int wrong = 0;
    make_buffer();
    fprintf(stderr, "consumer: waiting for a producer...\n");
    for (;;) {
        wrong |= take(&item) > PLACES;
        if (item.mtype == LAST)
            break;
        count++;
        sum += item.number;
        wrong |= item.number != count;
    }
    wrong |= item.number != count;
    printf("consumer: %ld numbers %s, sum %ld\n", count, wrong ? "WRONG" : "in order", sum);
    return wrong;
}
