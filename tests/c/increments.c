/*
 * Adds to shared numbers from many processes at once; whoever reads them afterwards must find every
 * addition.
 *
 *   increments KIND KEY PAGES ADDS
 *
 * KIND is how: "word" adds atomically to the first word; "page" to words of the first page and
 * "pages" to words of PAGES pages, as they come up; "swap" adds by compare-and-swap; "lock" adds to
 * plain words with a spin lock in the first page held. It says how many it added.
 */
#include <errno.h>
#include <linux/dipc.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

typedef _Atomic long word;

static word *area;
static unsigned random_state;

static unsigned below(unsigned bound)
{
    random_state = random_state * 1664525 + 1013904223;
    return (random_state >> 8) % bound;
}

static void add_by_swap(word *at)
{
    long seen = *at;
    while (!atomic_compare_exchange_weak(at, &seen, seen + 1))
        ;
}

static void add_with_lock(word *lock, long *plain)
{
    for (int looks = 0; atomic_exchange(lock, 1) != 0; looks++)
        if (looks > 20)
            usleep(50);
    ++*plain;
    *lock = 0;
}

static int add(const char *kind, unsigned pages)
{
    if (strcmp(kind, "word") == 0)
        atomic_fetch_add(&area[0], 1);
    else if (strcmp(kind, "page") == 0)
        atomic_fetch_add(&area[below(WORDS)], 1);
    else if (strcmp(kind, "pages") == 0)
        atomic_fetch_add(&area[below(pages * WORDS)], 1);
    else if (strcmp(kind, "swap") == 0)
        add_by_swap(&area[below(pages) * WORDS + below(8)]);
    else if (strcmp(kind, "lock") == 0 && pages > 1)
        add_with_lock(&area[0], (long *)&area[(1 + below(pages - 1)) * WORDS + below(8)]);
    else
        return 0;
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    unsigned pages = (unsigned)atoi(argv[3]);
    int segment = shmget((int)strtol(argv[2], NULL, 0), (size_t)pages * PAGE, IPC_DIPC | 0600);
    area = segment < 0 ? (void *)-1 : shmat(segment, NULL, 0);
    if (area == (void *)-1) {
        fprintf(stderr, "increments: %s\n", strerror(errno));
        return 1;
    }
    random_state = (unsigned)getpid();
    for (long i = 0; i < atol(argv[4]); i++)
        if (!add(argv[1], pages))
            return 2;
    printf("added %s\n", argv[4]);
    return 0;
}
