/*
 * counter lets N processes, on any machines of the cluster, count together: start it N times,
 *
 *     counter N [ROUNDS]
 *
 * The number lies in a shared segment beside a mutex of the C library (pthread_mutex_t,
 * PTHREAD_PROCESS_SHARED), and each process adds one to it ROUNDS times with the mutex held. A
 * condition variable tells who waits that all have come, and later that all are done. In the end
 * everybody checks the sum; the last one removes the segment.
 */
#include <errno.h>
#include <linux/dipc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <unistd.h>

#define KEY 4700
#define FLAGS (IPC_DIPC | 0666)

enum { ROUNDS = 1000 };

struct shared {
    volatile int is_made;
    int came, done, left;
    long number;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
};

static int segment;
static struct shared *shared;

static void die(const char *what, int why)
{
    fprintf(stderr, "counter: %s failed BECAUSE %s\n", what, strerror(why));
    exit(20);
}

static void attach(void)
{
    shared = shmat(segment, NULL, 0);
    if (shared == (void *)-1)
        die("shmat()", errno);
}

static void make(void)
{
    pthread_mutexattr_t mutex;
    pthread_condattr_t condition;
    attach();
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_condattr_init(&condition);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    int why = pthread_mutex_init(&shared->mutex, &mutex);
    if (why == 0)
        why = pthread_cond_init(&shared->changed, &condition);
    if (why != 0)
        die("making the mutex", why);
    __sync_synchronize();
    shared->is_made = 1;
}

static void join(void)
{
    segment = shmget(KEY, sizeof *shared, FLAGS | IPC_CREAT | IPC_EXCL);
    if (segment >= 0) {
        make();
        return;
    }
    segment = shmget(KEY, sizeof *shared, FLAGS);
    if (segment < 0)
        die("shmget()", errno);
    attach();
    while (!shared->is_made)
        usleep(1000);
    __sync_synchronize();
}

static void lock(void)
{
    int why = pthread_mutex_lock(&shared->mutex);
    if (why != 0)
        die("pthread_mutex_lock()", why);
}

static void unlock(void) { pthread_mutex_unlock(&shared->mutex); }

/* With the mutex held: one more, and waits for the others. */
static void meet(int *how_many, int count)
{
    ++*how_many;
    pthread_cond_broadcast(&shared->changed);
    while (*how_many < count)
        pthread_cond_wait(&shared->changed, &shared->mutex);
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 0;
    long rounds = argc > 2 ? atol(argv[2]) : ROUNDS;
    if (count < 1 || rounds < 1) {
        fprintf(stderr, "usage: counter N [ROUNDS]\n");
        return 2;
    }
    join();
    lock();
    meet(&shared->came, count);
    unlock();
    for (long i = 0; i < rounds; i++) {
        lock();
        shared->number++;
        unlock();
    }
    lock();
    meet(&shared->done, count);
    long number = shared->number;
    int last = ++shared->left == count;
    unlock();
    if (last && shmctl(segment, IPC_RMID, NULL) < 0)
        die("shmctl()", errno);
    int wrong = number != count * rounds;
    printf("counter: %ld of %ld%s\n", number, count * rounds, wrong ? ", which is WRONG" : "");
    return wrong;
}
