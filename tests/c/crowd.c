/*
 * Many users of one queue.
 *
 *   crowd processes KEY COUNT   so many processes that used the queue once and are idle then
 *   crowd threads KEY COUNT     so many threads that wait, each for a message of its own type
 *
 * It says "ready" when all are there. Idle processes end with its standard input; it ends well when
 * each thread has got its message.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/wait.h>
#include <unistd.h>

#define IPC_DIPC 00010000

static int queue;
static volatile int failures;

static void *wait_for_mine(void *argument)
{
    struct { long type; char text[8]; } message;
    long type = (long)argument;
    if (msgrcv(queue, &message, sizeof message.text, type, 0) < 0 || message.type != type)
        __sync_fetch_and_add(&failures, 1);
    return NULL;
}

static int threads(int count)
{
    pthread_t *all = calloc((size_t)count, sizeof *all);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 << 10);
    for (long i = 0; i < count; i++)
        if (pthread_create(&all[i], &small, wait_for_mine, (void *)(i + 1)) != 0)
            return 1;
    puts("ready");
    fflush(stdout);
    for (int i = 0; i < count; i++)
        pthread_join(all[i], NULL);
    return failures != 0;
}

/* One idle process: one call that reaches home, then nothing until the pipe is closed. */
static void idle(int key, int said[2], int go)
{
    struct msqid_ds ds;
    char byte;
    queue = msgget(key, IPC_DIPC);
    byte = queue >= 0 && msgctl(queue, IPC_STAT, &ds) == 0 ? '+' : '-';
    close(said[0]);
    ssize_t length = write(said[1], &byte, 1);
    close(said[1]);
    length = read(go, &byte, 1);
    _exit(length != 0);
}

static int processes(int key, int count)
{
    int said[2], go[2], good = 0, status;
    char byte;
    if (pipe(said) < 0 || pipe(go) < 0)
        return 1;
    for (int i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            close(go[1]);
            idle(key, said, go[0]);
        }
        if (pid < 0 || read(said[0], &byte, 1) != 1)
            return 1;
        good += byte == '+';
    }
    printf("%d of %d\nready\n", good, count);
    fflush(stdout);
    ssize_t length = read(0, &byte, 1);
    close(go[1]);
    while (wait(&status) > 0)
        continue;
    return length != 0 || good != count;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int key = atoi(argv[2]), count = atoi(argv[3]);
    if (strcmp(argv[1], "processes") == 0)
        return processes(key, count);
    queue = msgget(key, IPC_DIPC);
    if (queue < 0) {
        perror("msgget");
        return 1;
    }
    return threads(count);
}
