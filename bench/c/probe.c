/*
 * probe: one end of a measurement. Knows nothing of DIPC: the get flag is an argument, and the
 * same program is run by the kernel alone and under libdipc.
 *
 *   probe CPU pair   KEY FLAG ROUNDS         msgsnd + msgrcv of 512 bytes on a queue of its own
 *   probe CPU drain  KEY FLAG                makes the queue, empties it now and then
 *   probe CPU send   KEY FLAG ROUNDS         msgsnd of 512 bytes to a queue that is drained
 *   probe CPU answer KEY FLAG                makes queues KEY and KEY+1, answers each request
 *   probe CPU ask    KEY FLAG ROUNDS         one request and its answer, 512 bytes each
 *   probe CPU lock   KEY FLAG ROUNDS         P + V on a set of its own
 *   probe CPU lend   KEY FLAG                makes the set, until somebody is done with it
 *   probe CPU borrow KEY FLAG ROUNDS         P + V on that set
 *   probe CPU echo   ADDRESS PORT            TCP server: sends back 512 bytes
 *   probe CPU tcp    ADDRESS PORT ROUNDS     TCP client: 512 bytes there and back
 *
 * A measuring mode prints the median of its rounds in nanoseconds. CPU is where it runs.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <unistd.h>

#include "measure.h"

enum { SIZE = 512, WORK = 1, END = 2, WARM_UP = 500, BATCH = 50 };

static struct { long type; char text[SIZE]; } message;

static int get(int key, int flags)
{
    int id = msgget(key, flags | 0666);
    if (id < 0)
        die("msgget");
    return id;
}

static void put(int id, long type)
{
    message.type = type;
    if (msgsnd(id, &message, SIZE, 0) < 0)
        die("msgsnd");
}

static long take(int id, int flags)
{
    if (msgrcv(id, &message, SIZE, 0, flags) < 0) {
        if (errno == ENOMSG)
            return 0;
        die("msgrcv");
    }
    return message.type;
}

/* A pair takes less than the clock can tell apart, so a sample is the mean of a batch. */
static void pair(int key, int flag, int rounds)
{
    int id = get(key, flag | IPC_CREAT), count = rounds / BATCH;
    double *samples = malloc(count * sizeof *samples);
    for (int i = -WARM_UP / BATCH; i < count; i++) {
        double start = now_ns();
        for (int j = 0; j < BATCH; j++) {
            put(id, WORK);
            take(id, 0);
        }
        if (i >= 0)
            samples[i] = (now_ns() - start) / BATCH;
    }
    msgctl(id, IPC_RMID, NULL);
    print_median(samples, count);
}

static void drain(int key, int flag)
{
    int id = get(key, flag | IPC_CREAT);
    puts("ready");
    fflush(stdout);
    for (;;) {
        long type;
        usleep(200);
        while ((type = take(id, IPC_NOWAIT)) == WORK)
            ;
        if (type == END)
            break;
    }
    msgctl(id, IPC_RMID, NULL);
}

static void send_all(int key, int flag, int rounds)
{
    int id = get(key, flag);
    double *samples = malloc(rounds * sizeof *samples);
    for (int i = -WARM_UP; i < rounds; i++) {
        double start = now_ns();
        put(id, WORK);
        if (i >= 0)
            samples[i] = now_ns() - start;
    }
    put(id, END);
    print_median(samples, rounds);
}

static void answer(int key, int flag)
{
    int in = get(key, flag | IPC_CREAT), out = get(key + 1, flag | IPC_CREAT);
    puts("ready");
    fflush(stdout);
    while (take(in, 0) == WORK)
        put(out, WORK);
    msgctl(in, IPC_RMID, NULL);
    msgctl(out, IPC_RMID, NULL);
}

static void ask(int key, int flag, int rounds)
{
    int out = get(key, flag), in = get(key + 1, flag);
    double *samples = malloc(rounds * sizeof *samples);
    for (int i = -WARM_UP; i < rounds; i++) {
        double start = now_ns();
        put(out, WORK);
        take(in, 0);
        if (i >= 0)
            samples[i] = now_ns() - start;
    }
    put(out, END);
    print_median(samples, rounds);
}

enum { LOCK, DONE };

static int get_set(int key, int flags)
{
    int id = semget(key, 2, flags | 0666);
    if (id < 0)
        die("semget");
    return id;
}

static void operate(int id, unsigned short number, short op)
{
    struct sembuf buf = { number, op, 0 };
    if (semop(id, &buf, 1) < 0)
        die("semop");
}

static void lock(int key, int flag, int rounds)
{
    int id = get_set(key, flag | IPC_CREAT), count = rounds / BATCH;
    double *samples = malloc(count * sizeof *samples);
    operate(id, LOCK, 1);
    for (int i = -WARM_UP / BATCH; i < count; i++) {
        double start = now_ns();
        for (int j = 0; j < BATCH; j++) {
            operate(id, LOCK, -1);
            operate(id, LOCK, 1);
        }
        if (i >= 0)
            samples[i] = (now_ns() - start) / BATCH;
    }
    semctl(id, 0, IPC_RMID);
    print_median(samples, count);
}

static void lend(int key, int flag)
{
    int id = get_set(key, flag | IPC_CREAT);
    operate(id, LOCK, 1);
    puts("ready");
    fflush(stdout);
    operate(id, DONE, -1);
    semctl(id, 0, IPC_RMID);
}

static void borrow(int key, int flag, int rounds)
{
    int id = get_set(key, flag);
    double *samples = malloc(rounds * sizeof *samples);
    for (int i = -WARM_UP; i < rounds; i++) {
        double start = now_ns();
        operate(id, LOCK, -1);
        operate(id, LOCK, 1);
        if (i >= 0)
            samples[i] = now_ns() - start;
    }
    operate(id, DONE, 1);
    print_median(samples, rounds);
}

static int all_of(int fd, ssize_t (*move)(int, void *, size_t), char *bytes)
{
    for (int done = 0; done < SIZE;) {
        ssize_t n = move(fd, bytes + done, SIZE - done);
        if (n <= 0)
            return 0;
        done += n;
    }
    return 1;
}

static ssize_t write_bytes(int fd, void *bytes, size_t size)
{
    return write(fd, bytes, size);
}

static int tcp_socket(const char *address, const char *port, struct sockaddr_in *name)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    memset(name, 0, sizeof *name);
    name->sin_family = AF_INET;
    name->sin_port = htons(atoi(port));
    inet_aton(address, &name->sin_addr);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void echo(const char *address, const char *port)
{
    struct sockaddr_in name;
    int one = 1, listener = tcp_socket(address, port, &name);
    if (bind(listener, (void *)&name, sizeof name) < 0 || listen(listener, 1) < 0)
        die("listen");
    puts("ready");
    fflush(stdout);
    int fd = accept(listener, NULL, NULL);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (all_of(fd, read, message.text) && all_of(fd, write_bytes, message.text))
        ;
}

static void tcp(const char *address, const char *port, int rounds)
{
    struct sockaddr_in name;
    int fd = tcp_socket(address, port, &name);
    if (connect(fd, (void *)&name, sizeof name) < 0)
        die("connect");
    double *samples = malloc(rounds * sizeof *samples);
    for (int i = -WARM_UP; i < rounds; i++) {
        double start = now_ns();
        if (!all_of(fd, write_bytes, message.text) || !all_of(fd, read, message.text))
            die("tcp");
        if (i >= 0)
            samples[i] = now_ns() - start;
    }
    print_median(samples, rounds);
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: see the head of probe.c\n");
        return 2;
    }
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[1]), &cpus);
    if (sched_setaffinity(0, sizeof cpus, &cpus) < 0)
        die("sched_setaffinity");
    const char *mode = argv[2];
    int key = strtol(argv[3], NULL, 0), flag = strtol(argv[4], NULL, 0);
    int rounds = argc > 5 ? atoi(argv[5]) : 0;
    if (!strcmp(mode, "pair"))
        pair(key, flag, rounds);
    else if (!strcmp(mode, "drain"))
        drain(key, flag);
    else if (!strcmp(mode, "send"))
        send_all(key, flag, rounds);
    else if (!strcmp(mode, "answer"))
        answer(key, flag);
    else if (!strcmp(mode, "ask"))
        ask(key, flag, rounds);
    else if (!strcmp(mode, "lock"))
        lock(key, flag, rounds);
    else if (!strcmp(mode, "lend"))
        lend(key, flag);
    else if (!strcmp(mode, "borrow"))
        borrow(key, flag, rounds);
    else if (!strcmp(mode, "echo"))
        echo(argv[3], argv[4]);
    else if (!strcmp(mode, "tcp"))
        tcp(argv[3], argv[4], rounds);
    else
        die("no such mode");
    return 0;
}
