/* Threads come and go; what one had open goes with it, its SEM_UNDO stays the process's. */
#include "trap.h"
#include <dirent.h>
#include <pthread.h>

enum { THREADS = 16, ROUNDS = 8 };

static int queue, set;

static int descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void *work(void *argument)
{
    long type = (long)argument;
    char word[32];
    snprintf(word, sizeof word, "thread %ld", type);
    for (int i = 0; i < 5; i++) {
        CHECK(trap_send(queue, type, word) == 0, "msgsnd");
        const char *text = trap_receive(queue, type, 0);
        CHECK(text && strcmp(text, word) == 0, "another thread's message");
    }
    CHECK(trap_op(set, 0, 1, SEM_UNDO) == 0, "semop");
    return NULL;
}

int main(void)
{
    alarm(SECONDS_MAX);
    queue = trap_queue();
    set = trap_set(1);
    CHECK(trap_send(queue, 1, "x") == 0 && trap_receive(queue, 0, 0), "the main thread");
    int before = descriptors();
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t threads[THREADS];
        for (long i = 0; i < THREADS; i++)
            pthread_create(&threads[i], NULL, work, (void *)(i + 1));
        for (int i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
    }
    CHECK(descriptors() == before, "%d descriptors before, %d after", before, descriptors());
    int value = semctl(set, 0, GETVAL);
    CHECK(value == THREADS * ROUNDS, "SEM_UNDO came with the end of threads: %d", value);
    return trap_end();
}
