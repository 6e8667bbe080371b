/*
 * What the programs of this directory share. Each goes about one trap of a preloaded library, says
 * what was amiss, and ends with 0 when nothing was, 77 when it cannot tell here. Natively every one
 * must end with 0.
 *
 * Environment, as in ../cases.h: DIPC_TEST_FLAG, the extra flag of every *get (octal; IPC_DIPC
 * unless given); DIPC_TEST_MAKER, the socket of a maker on the node that shall be home;
 * DIPC_TEST_KEY, the first key.
 */
#ifndef TRAP_H
#define TRAP_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CANNOT_TELL = 77, SECONDS_MAX = 60 };

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

struct message {
    long type;
    char text[64];
};

enum trap_kind { TRAP_SET, TRAP_QUEUE, TRAP_SEGMENT };

static int trap_failures;
static int trap_objects[8][2], trap_count;
static pid_t trap_owner;

/* Says what is amiss if `good` is false. */
#define CHECK(good, ...) \
    do { \
        if (!(good)) { \
            printf("%s:%d: ", __FILE__, __LINE__); \
            printf(__VA_ARGS__); \
            printf(" (errno %s)\n", strerrorname_np(errno)); \
            fflush(stdout); \
            trap_failures++; \
        } \
    } while (0)

static void trap_remove(void)
{
    if (getpid() != trap_owner)
        return;
    while (trap_count > 0) {
        int *object = trap_objects[--trap_count];
        if (object[0] == TRAP_QUEUE)
            msgctl(object[1], IPC_RMID, NULL);
        else if (object[0] == TRAP_SET)
            semctl(object[1], 0, IPC_RMID);
        else
            shmctl(object[1], IPC_RMID, NULL);
    }
}

static inline int trap_flag(void)
{
    const char *flag = getenv("DIPC_TEST_FLAG");
    return flag ? (int)strtol(flag, NULL, 8) : 010000;
}

static inline key_t trap_key(void)
{
    static int count;
    const char *first = getenv("DIPC_TEST_KEY");
    return (first ? (key_t)strtol(first, NULL, 0) : 0x7a000000 + getpid() * 16) + count++;
}

/* Asks the maker, if there is one, to create the object at its place. */
static inline void trap_make(const char *kind, key_t key, int count, int mode)
{
    const char *path = getenv("DIPC_TEST_MAKER");
    if (!path)
        return;
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char text[64];
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int flags = mode | trap_flag() | IPC_CREAT | IPC_EXCL;
    int length = snprintf(text, sizeof text, "%s %d %d %o %d", kind, key, count, flags, geteuid());
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0
        || send(fd, text, (size_t)length, MSG_NOSIGNAL) < 0
        || recv(fd, text, sizeof text, 0) <= 0)
        perror("maker");
    close(fd);
}

static inline int trap_made(enum trap_kind kind, int id)
{
    if (id < 0) {
        perror("get");
        exit(2);
    }
    if (!trap_count) {
        trap_owner = getpid();
        atexit(trap_remove);
    }
    trap_objects[trap_count][0] = kind;
    trap_objects[trap_count++][1] = id;
    return id;
}

/* A new queue, removed when the program ends. */
static inline int trap_queue(void)
{
    key_t key = trap_key();
    trap_make("queue", key, 0, 0600);
    return trap_made(TRAP_QUEUE, msgget(key, IPC_CREAT | 0600 | trap_flag()));
}

/* A new set of semaphores, all 0, removed when the program ends. */
static inline int trap_set(int count)
{
    key_t key = trap_key();
    trap_make("set", key, count, 0600);
    return trap_made(TRAP_SET, semget(key, count, IPC_CREAT | 0600 | trap_flag()));
}

/* A new segment, removed when the program ends. */
static inline int trap_segment(int bytes)
{
    key_t key = trap_key();
    trap_make("segment", key, bytes, 0600);
    return trap_made(TRAP_SEGMENT, shmget(key, (size_t)bytes, IPC_CREAT | 0600 | trap_flag()));
}

/* Attaches a segment anywhere. */
static inline char *trap_attach(int segment)
{
    char *at = shmat(segment, NULL, 0);
    if (at == (char *)-1) {
        perror("shmat");
        exit(2);
    }
    return at;
}

static inline long trap_attached(int segment)
{
    struct shmid_ds state;
    return shmctl(segment, IPC_STAT, &state) < 0 ? -1 : (long)state.shm_nattch;
}

static inline int trap_send(int queue, long type, const char *text)
{
    struct message message = { .type = type };
    snprintf(message.text, sizeof message.text, "%s", text);
    return msgsnd(queue, &message, strlen(text) + 1, 0);
}

/* The text of the next message; NULL if there is none. */
static inline const char *trap_receive(int queue, long type, int flags)
{
    static _Thread_local struct message message;
    ssize_t length = msgrcv(queue, &message, sizeof message.text, type, flags);
    return length < 0 ? NULL : message.text;
}

static inline int trap_op(int set, int number, int op, int flags)
{
    struct sembuf buf = { .sem_num = (unsigned short)number, .sem_op = (short)op,
                          .sem_flg = (short)flags };
    return semop(set, &buf, 1);
}

static inline long trap_messages(int queue)
{
    struct msqid_ds state;
    return msgctl(queue, IPC_STAT, &state) < 0 ? -1 : (long)state.msg_qnum;
}

static inline void trap_nap(void)
{
    struct timespec time = { 0, 5000000 };
    nanosleep(&time, NULL);
}

/* Waits until `condition`, at most SECONDS_MAX. */
#define UNTIL(condition) \
    do { \
        time_t trap_end = time(NULL) + SECONDS_MAX; \
        while (!(condition) && time(NULL) < trap_end) \
            trap_nap(); \
        CHECK((condition), "never came: %s", #condition); \
    } while (0)

/* Whether a task sleeps in the kernel, in whatever call. */
static inline int trap_sleeps(pid_t pid, pid_t tid)
{
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
        state = 0;
    fclose(file);
    return state == 'S';
}

/* Waits until a task has slept for a while: it is in the call that it was about to make. */
static inline void trap_until_asleep(pid_t pid, pid_t tid)
{
    int looks = 0;
    time_t end = time(NULL) + SECONDS_MAX;
    while (looks < 20 && time(NULL) < end) {
        looks = trap_sleeps(pid, tid) ? looks + 1 : 0;
        trap_nap();
    }
    CHECK(looks >= 20, "it never waited");
}

static inline int trap_end(void)
{
    return trap_failures != 0;
}

#endif
