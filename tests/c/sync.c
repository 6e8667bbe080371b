/*
 * The C library's process-shared locks in a segment, by processes on any nodes.
 *
 *   sync KIND KEY COUNT ROUNDS
 *
 * COUNT processes with one KEY do ROUNDS of KIND: "mutex" (adding), "cond" (taking turns),
 * "rwlock" (writers leave two numbers equal), "barrier" (nobody is a round behind), "sem" (passing
 * numbers on, the even ranks to the odd ones), "spin" (pthread_spinlock_t). Each says whether what
 * it saw was right. The first one makes the segment, the last one removes it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/dipc.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <unistd.h>

enum { PAGE = 4096, COUNT_MAX = 16 };

struct shared {
    _Atomic int is_made, ranks, done;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_rwlock_t lock;
    pthread_barrier_t barrier;
    pthread_spinlock_t spin;
    struct { sem_t free, used; long number; } pairs[COUNT_MAX];
    char pad[PAGE];
    long count, turn, one;
    char pad2[PAGE];
    long two;
    _Atomic long rounds[COUNT_MAX];
};

static struct shared *shared;
static int rank, count;
static long rounds, wrong;

static void must(const char *what, int why)
{
    if (why == 0)
        return;
    fprintf(stderr, "sync: %s: %s\n", what, strerror(why));
    exit(2);
}

static void make(void)
{
    pthread_mutexattr_t mutex;
    pthread_condattr_t condition;
    pthread_rwlockattr_t lock;
    pthread_barrierattr_t barrier;
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    must("mutex", pthread_mutex_init(&shared->mutex, &mutex));
    pthread_condattr_init(&condition);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    must("cond", pthread_cond_init(&shared->changed, &condition));
    pthread_rwlockattr_init(&lock);
    pthread_rwlockattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
    must("rwlock", pthread_rwlock_init(&shared->lock, &lock));
    pthread_barrierattr_init(&barrier);
    pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
    must("barrier", pthread_barrier_init(&shared->barrier, &barrier, (unsigned)count));
    must("spin", pthread_spin_init(&shared->spin, PTHREAD_PROCESS_SHARED));
    for (int i = 0; i < COUNT_MAX; i++) {
        sem_init(&shared->pairs[i].free, 1, 1);
        sem_init(&shared->pairs[i].used, 1, 0);
    }
    shared->is_made = 1;
}

static void with_mutex(long round)
{
    (void)round;
    must("lock", pthread_mutex_lock(&shared->mutex));
    wrong += shared->one != shared->two;
    shared->one++;
    shared->two++;
    shared->count++;
    must("unlock", pthread_mutex_unlock(&shared->mutex));
}

static void with_cond(long round)
{
    (void)round;
    must("lock", pthread_mutex_lock(&shared->mutex));
    while (shared->turn != rank)
        must("wait", pthread_cond_wait(&shared->changed, &shared->mutex));
    shared->turn = (rank + 1) % count;
    shared->count++;
    must("broadcast", pthread_cond_broadcast(&shared->changed));
    must("unlock", pthread_mutex_unlock(&shared->mutex));
}

static void with_rwlock(long round)
{
    if ((round + rank) % 3 == 0) {
        must("wrlock", pthread_rwlock_wrlock(&shared->lock));
        shared->one++;
        shared->two++;
        shared->count++;
    } else {
        must("rdlock", pthread_rwlock_rdlock(&shared->lock));
        wrong += shared->one != shared->two;
    }
    must("unlock", pthread_rwlock_unlock(&shared->lock));
}

static void with_barrier(long round)
{
    shared->rounds[rank] = round + 1;
    pthread_barrier_wait(&shared->barrier);
    for (int other = 0; other < count; other++)
        wrong += shared->rounds[other] != round + 1;
    pthread_barrier_wait(&shared->barrier);
}

static void with_sem(long round)
{
    if (rank == count - 1 && count % 2)
        return;
    int pair = rank / 2, takes = rank % 2;
    while (sem_wait(takes ? &shared->pairs[pair].used : &shared->pairs[pair].free) < 0)
        if (errno != EINTR)
            must("sem_wait", errno);
    if (takes)
        wrong += shared->pairs[pair].number != round;
    else
        shared->pairs[pair].number = round;
    must("sem_post", sem_post(takes ? &shared->pairs[pair].free : &shared->pairs[pair].used));
}

static void with_spin(long round)
{
    (void)round;
    while (pthread_spin_trylock(&shared->spin) != 0)
        usleep(50);
    wrong += shared->one != shared->two;
    shared->one++;
    shared->two++;
    shared->count++;
    pthread_spin_unlock(&shared->spin);
}

/* What each kind does, and what the count shall be in the end, in rounds of all; 0: nothing. */
static const struct {
    const char *name;
    void (*round)(long);
    int counts;
} KINDS[] = {
    { "mutex", with_mutex, 1 },     { "cond", with_cond, 1 }, { "rwlock", with_rwlock, 0 },
    { "barrier", with_barrier, 0 }, { "sem", with_sem, 0 },   { "spin", with_spin, 1 },
};

static int join(int key)
{
    int segment = shmget(key, sizeof *shared, IPC_DIPC | IPC_CREAT | IPC_EXCL | 0600);
    int is_first = segment >= 0;
    if (!is_first)
        segment = shmget(key, sizeof *shared, IPC_DIPC | 0600);
    shared = segment < 0 ? (void *)-1 : shmat(segment, NULL, 0);
    if (shared == (void *)-1)
        must("attach", errno);
    if (is_first)
        make();
    while (!shared->is_made)
        usleep(1000);
    rank = shared->ranks++;
    return segment;
}

int main(int argc, char **argv)
{
    int kind = -1;
    for (size_t i = 0; argc == 5 && i < sizeof KINDS / sizeof *KINDS; i++)
        if (strcmp(argv[1], KINDS[i].name) == 0)
            kind = (int)i;
    count = argc == 5 ? atoi(argv[3]) : 0;
    if (kind < 0 || count < 1 || count > COUNT_MAX)
        return 2;
    rounds = atol(argv[4]);
    int segment = join((int)strtol(argv[2], NULL, 0));
    for (long round = 0; round < rounds; round++)
        KINDS[kind].round(round);
    int done = ++shared->done;
    if (done == count) {
        wrong += KINDS[kind].counts && shared->count != count * rounds;
        if (shmctl(segment, IPC_RMID, NULL) < 0)
            must("IPC_RMID", errno);
    }
    printf("%s: %ld rounds, %ld wrong\n", argv[1], rounds, wrong);
    return wrong != 0;
}
