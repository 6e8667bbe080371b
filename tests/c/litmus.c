/*
 * Litmus tests of shared memory: what one thread may see of another's stores, on whichever nodes
 * they run.
 *
 *   litmus TEST KEY ROUNDS FENCE ROLE...
 *
 * Each ROLE is a thread of this process; the processes that share KEY together have all roles of
 * TEST (from 0), and perhaps "intruder", which touches the same pages without meaning. FENCE 1
 * puts a full fence between the two accesses of a thread. In each round all meet at a barrier and
 * run their two lines, after a pause of their own. x and y lie in different pages and grow from
 * round to round, so a value of an earlier round is a stale one. The process with role 0 says how
 * often each outcome came, removes the segment, and fails when a forbidden one did.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/dipc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <unistd.h>

enum { PAGE = 4096, ROLES = 4, STALE = 2, WORDS = PAGE / 8 };

typedef _Atomic int64_t word;

/* What all share; the outcomes follow: two bytes a round, for each role. */
struct shared {
    struct { word round; char pad[56]; } arrived[ROLES];
    word finished;
    char pad[PAGE - 64 * ROLES - sizeof(word)];
    word x[WORDS], y[WORDS];
    unsigned char seen[];
};

/* One role's lines: gives what its two registers saw. */
typedef void lines(int64_t round, unsigned char seen[2]);

static struct shared *shared;
static int64_t rounds;
static int fenced, roles;

static void between(void)
{
    if (fenced)
        atomic_thread_fence(memory_order_seq_cst);
    else
        atomic_signal_fence(memory_order_seq_cst);
}

static void set(word *at, int64_t value)
{
    atomic_store_explicit(at, value, memory_order_relaxed);
}

static int64_t get(word *at) { return atomic_load_explicit(at, memory_order_relaxed); }

/* Whether a load has seen this round's store. */
static unsigned char seen_of(int64_t value, int64_t round)
{
    return value == round + 1 ? 1 : value == round ? 0 : STALE;
}

static void store_both(word *first, word *second, int64_t round)
{
    set(first, round + 1);
    between();
    set(second, round + 1);
}

static void load_both(word *first, word *second, int64_t round, unsigned char seen[2])
{
    int64_t one = get(first);
    between();
    int64_t two = get(second);
    seen[0] = seen_of(one, round);
    seen[1] = seen_of(two, round);
}

static void store_and_load(word *first, word *second, int64_t round, unsigned char seen[2])
{
    set(first, round + 1);
    between();
    seen[0] = seen_of(get(second), round);
}

static void load_and_store(word *first, word *second, int64_t round, unsigned char seen[2])
{
    int64_t value = get(first);
    between();
    set(second, round + 1);
    seen[0] = seen_of(value, round);
}

static void store_xy(int64_t round, unsigned char seen[2])
{
    (void)seen;
    store_both(shared->x, shared->y, round);
}

static void load_yx(int64_t round, unsigned char seen[2])
{
    load_both(shared->y, shared->x, round, seen);
}

static void load_xy(int64_t round, unsigned char seen[2])
{
    load_both(shared->x, shared->y, round, seen);
}

static void load_xx(int64_t round, unsigned char seen[2])
{
    load_both(shared->x, shared->x, round, seen);
}

static void store_x(int64_t round, unsigned char seen[2])
{
    (void)seen;
    set(shared->x, round + 1);
}

static void store_y(int64_t round, unsigned char seen[2])
{
    (void)seen;
    set(shared->y, round + 1);
}

static void store_x_load_y(int64_t round, unsigned char seen[2])
{
    store_and_load(shared->x, shared->y, round, seen);
}

static void store_y_load_x(int64_t round, unsigned char seen[2])
{
    store_and_load(shared->y, shared->x, round, seen);
}

static void load_x_store_y(int64_t round, unsigned char seen[2])
{
    load_and_store(shared->x, shared->y, round, seen);
}

static void load_y_store_x(int64_t round, unsigned char seen[2])
{
    load_and_store(shared->y, shared->x, round, seen);
}

/* 2+2W: x and y are 2 * round + 1 by one thread's first or 2 * round + 2 by one's second store. */
static void write_xy(int64_t round, unsigned char seen[2])
{
    (void)seen;
    set(shared->x, 2 * round + 1);
    between();
    set(shared->y, 2 * round + 2);
}

static void write_yx(int64_t round, unsigned char seen[2])
{
    (void)seen;
    set(shared->y, 2 * round + 1);
    between();
    set(shared->x, 2 * round + 2);
}

/* What both are when all have written; 0 is a thread's first store. */
static void look_at_both(int64_t round, unsigned char seen[2])
{
    seen[0] = seen_of(get(shared->x), 2 * round + 1);
    seen[1] = seen_of(get(shared->y), 2 * round + 1);
}

/*
 * A test: what its roles do, what role 0 looks at when all are done, and the forbidden outcomes as
 * the registers of all roles in order, '*' for any, '-' for one that is not used. Without fences a
 * machine may reorder: what TSO forbids is checked on x86 alone.
 */
static const struct test {
    const char *name;
    lines *roles[ROLES], *in_the_end;
    const char *forbidden[2];
    int tso_forbids;
} TESTS[] = {
    { "MP", { store_xy, load_yx }, NULL, { "--10" }, 1 },
    { "SB", { store_x_load_y, store_y_load_x }, NULL, { "0-0-" }, 0 },
    { "LB", { load_x_store_y, load_y_store_x }, NULL, { "1-1-" }, 1 },
    { "IRIW", { store_x, store_y, load_xy, load_yx }, NULL, { "----1010" }, 1 },
    { "CoRR", { store_x, load_xx, load_xx }, NULL, { "--10**", "--**10" }, 1 },
    { "2+2W", { write_xy, write_yx }, look_at_both, { "00--" }, 1 },
};

static const struct test *test;

static void die(const char *what)
{
    fprintf(stderr, "litmus: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* Waits a little longer each time: there are fewer processors than threads. */
static void rest(int looks)
{
    if (looks < 50)
        return;
    if (looks < 80)
        sched_yield();
    else
        usleep(20);
}

static void meet(int role, int64_t round)
{
    shared->arrived[role].round = round;
    for (int other = 0; other < roles; other++)
        for (int looks = 0; shared->arrived[other].round < round; looks++)
            rest(looks);
}

static uint32_t next(uint32_t *random)
{
    *random = *random * 1664525 + 1013904223;
    return *random >> 8;
}

/* Leaves the pages of x and y in some state, so that rounds begin with all of them. */
static void touch_something(uint32_t *random, int role)
{
    switch (next(random) % 6) {
    case 0: get(&shared->x[WORDS / 2]); break;
    case 1: get(&shared->y[WORDS / 2]); break;
    case 2: set(&shared->x[WORDS / 2 + role], 1); break;
    case 3: set(&shared->y[WORDS / 2 + role], 1); break;
    }
}

static void pause_some(uint32_t *random)
{
    for (volatile uint32_t left = next(random) % (1u << next(random) % 15); left > 0; left--)
        ;
}

static void *run_role(void *argument)
{
    int role = (int)(intptr_t)argument;
    uint32_t random = (uint32_t)role * 7919 + 1;
    unsigned char *seen = calloc((size_t)rounds, 2);
    for (int64_t round = 0; round < rounds; round++) {
        touch_something(&random, role);
        meet(role, 2 * round + 1);
        pause_some(&random);
        test->roles[role](round, &seen[2 * round]);
        if (test->in_the_end) {
            meet(role, 2 * round + 2);
            if (role == 0)
                test->in_the_end(round, &seen[2 * round]);
        }
    }
    memcpy(&shared->seen[(size_t)role * (size_t)rounds * 2], seen, (size_t)rounds * 2);
    free(seen);
    meet(role, 2 * rounds + 1);
    return NULL;
}

/* Touches the pages of x and y until all is over. */
static void *intrude(void *argument)
{
    uint32_t random = 4711;
    while (!shared->finished) {
        touch_something(&random, ROLES);
        usleep(next(&random) % 200);
    }
    return argument;
}

static unsigned char *outcome(int role, int64_t round)
{
    return &shared->seen[((size_t)role * (size_t)rounds + (size_t)round) * 2];
}

static int matches(const char *pattern, int64_t round)
{
    for (int i = 0; pattern && i < 2 * roles; i++)
        if (strchr("01", pattern[i]) && outcome(i / 2, round)[i % 2] != pattern[i] - '0')
            return 0;
    return pattern != NULL;
}

static void say_outcomes(const int64_t *counts)
{
    printf("%s%s:", test->name, fenced ? " fenced" : "");
    for (int number = 0; number < 1 << (2 * roles); number++) {
        if (counts[number] == 0)
            continue;
        printf(" ");
        for (int i = 0; i < 2 * roles; i++)
            if (test->forbidden[0][i] != '-')
                printf("%d", number >> i & 1);
        printf("=%ld", (long)counts[number]);
    }
}

/* Counts the outcomes; whether there was one that must not be. */
static int judge(void)
{
    static int64_t counts[1 << (2 * ROLES)];
    long stale = 0, forbidden = 0;
    for (int64_t round = 0; round < rounds; round++) {
        int number = 0, is_stale = 0;
        for (int i = 0; i < 2 * roles; i++) {
            is_stale |= outcome(i / 2, round)[i % 2] == STALE;
            number |= (outcome(i / 2, round)[i % 2] & 1) << i;
        }
        stale += is_stale;
        forbidden += matches(test->forbidden[0], round) || matches(test->forbidden[1], round);
        counts[number]++;
    }
#if defined(__x86_64__) || defined(__i386__)
    int binding = fenced || test->tso_forbids;
#else
    int binding = fenced || strcmp(test->name, "CoRR") == 0;
#endif
    say_outcomes(counts);
    printf("; forbidden %ld%s, stale %ld\n", forbidden, binding ? "" : " (allowed here)", stale);
    return stale > 0 || (forbidden > 0 && binding);
}

static int open_segment(int key)
{
    size_t bytes = sizeof *shared + (size_t)roles * (size_t)rounds * 2;
    int segment = shmget(key, bytes, IPC_DIPC | IPC_CREAT | 0600);
    if (segment < 0)
        die("shmget");
    shared = shmat(segment, NULL, 0);
    if (shared == (void *)-1)
        die("shmat");
    return segment;
}

int main(int argc, char **argv)
{
    pthread_t threads[ROLES + 1];
    int count = 0, has_first = 0;
    for (size_t i = 0; argc > 5 && i < sizeof TESTS / sizeof *TESTS; i++)
        if (strcmp(argv[1], TESTS[i].name) == 0)
            test = &TESTS[i];
    if (!test || argc > 6 + ROLES) {
        fprintf(stderr, "usage: litmus TEST KEY ROUNDS FENCE ROLE...\n");
        return 2;
    }
    while (roles < ROLES && test->roles[roles])
        roles++;
    rounds = atol(argv[3]);
    fenced = atoi(argv[4]);
    int segment = open_segment((int)strtol(argv[2], NULL, 0));
    for (int i = 5; i < argc; i++) {
        int role = strcmp(argv[i], "intruder") == 0 ? ROLES : atoi(argv[i]);
        has_first |= role == 0;
        if (pthread_create(&threads[count++], NULL, role == ROLES ? intrude : run_role,
                           (void *)(intptr_t)role) != 0)
            die("pthread_create");
    }
    while (count > 0)
        pthread_join(threads[--count], NULL);
    if (!has_first)
        return 0;
    int wrong = judge();
    shared->finished = 1;
    if (shmctl(segment, IPC_RMID, NULL) < 0)
        die("shmctl");
    return wrong;
}
