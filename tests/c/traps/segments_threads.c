/*
 * Threads attach, detach, touch and fork at once, while others map and unmap memory as malloc
 * does; nobody waits for ever and no store is lost.
 */
#include "trap.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 4, THREADS = 4, ROUNDS = 60 };

static int segment;
static _Atomic long *shared;
static atomic_int working;

static void *attach_and_detach(void *argument)
{
    (void)argument;
    for (int i = 0; i < ROUNDS; i++) {
        char *own = trap_attach(segment);
        for (int page = 0; page < PAGES; page++)
            atomic_fetch_add((_Atomic long *)(own + page * PAGE), 1);
        if (i % 3 == 0)
            munmap(own + PAGE, PAGE);
        if (i % 5 == 0)
            CHECK(mremap(own + 2 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE) == own + 2 * PAGE, "mremap");
        CHECK(shmdt(own) == 0, "shmdt");
    }
    working--;
    return NULL;
}

static void *map_and_unmap(void *argument)
{
    (void)argument;
    while (working > 0) {
        char *own = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                         -1, 0);
        own[PAGE] = 1;
        own = mremap(own, 64 * PAGE, 128 * PAGE, MREMAP_MAYMOVE);
        CHECK(own != MAP_FAILED && own[PAGE] == 1, "mremap of one's own");
        CHECK(mmap(own, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == own,
              "mmap over one's own");
        CHECK(mprotect(own, PAGE, PROT_NONE) == 0, "mprotect of one's own");
        CHECK(munmap(own, 128 * PAGE) == 0, "munmap of one's own");
        free(malloc(1 << 20));
    }
    return NULL;
}

int main(void)
{
    alarm(2 * SECONDS_MAX);
    segment = trap_segment(PAGES * PAGE);
    shared = (_Atomic long *)trap_attach(segment);
    pthread_t threads[THREADS], mapper;
    working = THREADS;
    for (int i = 0; i < THREADS; i++)
        pthread_create(threads + i, NULL, attach_and_detach, NULL);
    pthread_create(&mapper, NULL, map_and_unmap, NULL);
    for (int i = 0; i < 10; i++) {
        int status = -1;
        pid_t child = fork();
        if (child == 0) {
            atomic_fetch_add(shared, 1);
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0, "a child: %x", status);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_join(mapper, NULL);
    for (int page = 0; page < PAGES; page++) {
        long expected = THREADS * ROUNDS + (page == 0 ? 10 : 0);
        long found = shared[page * PAGE / (long)sizeof *shared];
        CHECK(found == expected, "page %d is %ld, not %ld", page, found, expected);
    }
    CHECK(trap_attached(segment) == 1, "nattch %ld", trap_attached(segment));
    return trap_end();
}
