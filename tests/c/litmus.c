/*
 * Litmus tests of shared memory: what one thread may see of another's stores, on whichever nodes
 * they run.
 *
 *   litmus TEST KEY ROUNDS FENCE FILE ROLE...
 *
 * Each ROLE is a thread of this process; the processes that share KEY together have all roles of
 * TEST (from 0), and perhaps "intruder", which touches the same pages without meaning. FENCE 1
 * puts a full fence between the two accesses of a thread. x and y lie in different pages. The
 * rounds of a batch have words of their own there: all meet, and run their two lines round after
 * round, each at its own pace, so that pages move in the middle of it. The words grow from batch to
 * batch: a value of an earlier one is stale. They meet, and keep what they saw, in FILE, a plain
 * file that all map (they run on one machine): what is tested is not used to test it.
 *
 * The process with role 0 says how often each outcome came, removes the segment, and fails when a
 * forbidden one did.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dipc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

enum { PAGE = 4096, ROLES = 4, STALE = 2, WORDS = PAGE / 8, LINE = 8, BATCH = WORDS / LINE };

typedef _Atomic int64_t word;

/* The segment: the words of a round are the first of a line in each page. */
struct memory {
    word x[WORDS], y[WORDS];
};

/* The file; the outcomes follow: two bytes a round, for each role. */
struct meeting {
    struct { word round; char pad[56]; } arrived[ROLES];
    word finished;
    unsigned char seen[];
};

/* One role's lines in one round of a batch: gives what its two registers saw. */
typedef void lines(word *x, word *y, int64_t batch, unsigned char seen[2]);

static struct memory *memory;
static struct meeting *meeting;
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

/* Whether a load has seen this batch's store. */
static unsigned char seen_of(int64_t value, int64_t batch)
{
    return value == batch + 1 ? 1 : value == batch ? 0 : STALE;
}

static void store_both(word *first, word *second, int64_t batch)
{
    set(first, batch + 1);
    between();
    set(second, batch + 1);
}

static void load_both(word *first, word *second, int64_t batch, unsigned char seen[2])
{
    int64_t one = get(first);
    between();
    int64_t two = get(second);
    seen[0] = seen_of(one, batch);
    seen[1] = seen_of(two, batch);
}

static void store_and_load(word *first, word *second, int64_t batch, unsigned char seen[2])
{
    set(first, batch + 1);
    between();
    seen[0] = seen_of(get(second), batch);
}

static void load_and_store(word *first, word *second, int64_t batch, unsigned char seen[2])
{
    int64_t value = get(first);
    between();
    set(second, batch + 1);
    seen[0] = seen_of(value, batch);
}

static void store_xy(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    (void)seen;
    store_both(x, y, batch);
}

static void load_yx(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    load_both(y, x, batch, seen);
}

static void load_xy(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    load_both(x, y, batch, seen);
}

static void load_xx(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    (void)y;
    load_both(x, x, batch, seen);
}

static void store_x(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    (void)y, (void)seen;
    set(x, batch + 1);
}

static void store_y(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    (void)x, (void)seen;
    set(y, batch + 1);
}

static void store_x_load_y(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    store_and_load(x, y, batch, seen);
}

static void store_y_load_x(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    store_and_load(y, x, batch, seen);
}

static void load_x_store_y(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    load_and_store(x, y, batch, seen);
}

static void load_y_store_x(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    load_and_store(y, x, batch, seen);
}

/* 2+2W: x and y are 2 * batch + 1 by one thread's first or 2 * batch + 2 by one's second store. */
static void write_xy(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    (void)seen;
    set(x, 2 * batch + 1);
    between();
    set(y, 2 * batch + 2);
}

static void write_yx(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    (void)seen;
    set(y, 2 * batch + 1);
    between();
    set(x, 2 * batch + 2);
}

/* What both are when all have written; 0 is a thread's first store. */
static void look_at_both(word *x, word *y, int64_t batch, unsigned char seen[2])
{
    seen[0] = seen_of(get(x), 2 * batch + 1);
    seen[1] = seen_of(get(y), 2 * batch + 1);
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
    meeting->arrived[role].round = round;
    for (int other = 0; other < roles; other++)
        for (int looks = 0; meeting->arrived[other].round < round; looks++)
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
    case 0: get(&memory->x[LINE / 2]); break;
    case 1: get(&memory->y[LINE / 2]); break;
    case 2: set(&memory->x[LINE / 2 + role % 4], 1); break;
    case 3: set(&memory->y[LINE / 2 + role % 4], 1); break;
    }
}

static void pause_some(uint32_t *random)
{
    for (volatile uint32_t left = next(random) % (1u << next(random) % 15); left > 0; left--)
        ;
}

static unsigned char *outcome(int role, int64_t round)
{
    return &meeting->seen[((size_t)role * (size_t)rounds + (size_t)round) * 2];
}

/* The rounds of a batch, each at a moment of its own. */
static void run_batch(lines *run, int role, int64_t batch, uint32_t *random)
{
    for (int64_t slot = 0; slot < BATCH && batch * BATCH + slot < rounds; slot++) {
        word *x = &memory->x[slot * LINE], *y = &memory->y[slot * LINE];
        if (random)
            pause_some(random);
        run(x, y, batch, outcome(role, batch * BATCH + slot));
    }
}

static void *run_role(void *argument)
{
    int role = (int)(intptr_t)argument;
    uint32_t random = (uint32_t)role * 7919 + 1;
    for (int64_t batch = 0; batch * BATCH < rounds; batch++) {
        touch_something(&random, role);
        meet(role, 2 * batch + 1);
        run_batch(test->roles[role], role, batch, &random);
        if (test->in_the_end) {
            meet(role, 2 * batch + 2);
            if (role == 0)
                run_batch(test->in_the_end, role, batch, NULL);
        }
    }
    meet(role, 2 * rounds + 1);
    return NULL;
}

/* Touches the pages of x and y until all is over. */
static void *intrude(void *argument)
{
    uint32_t random = 4711;
    while (!meeting->finished) {
        touch_something(&random, ROLES);
        usleep(next(&random) % 200);
    }
    return argument;
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

static void open_meeting(const char *path)
{
    size_t bytes = sizeof *meeting + (size_t)roles * (size_t)rounds * 2;
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, (off_t)bytes) < 0)
        die(path);
    meeting = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (meeting == MAP_FAILED)
        die("mmap");
}

static int open_segment(int key)
{
    int segment = shmget(key, sizeof *memory, IPC_DIPC | 0600);
    if (segment < 0)
        die("shmget");
    memory = shmat(segment, NULL, 0);
    if (memory == (void *)-1)
        die("shmat");
    return segment;
}

int main(int argc, char **argv)
{
    pthread_t threads[ROLES + 1];
    int count = 0, has_first = 0;
    for (size_t i = 0; argc > 6 && i < sizeof TESTS / sizeof *TESTS; i++)
        if (strcmp(argv[1], TESTS[i].name) == 0)
            test = &TESTS[i];
    if (!test || argc > 7 + ROLES) {
        fprintf(stderr, "usage: litmus TEST KEY ROUNDS FENCE FILE ROLE...\n");
        return 2;
    }
    while (roles < ROLES && test->roles[roles])
        roles++;
    rounds = atol(argv[3]);
    fenced = atoi(argv[4]);
    open_meeting(argv[5]);
    int segment = open_segment((int)strtol(argv[2], NULL, 0));
    for (int i = 6; i < argc; i++) {
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
    meeting->finished = 1;
    if (shmctl(segment, IPC_RMID, NULL) < 0)
        die("shmctl");
    return wrong;
}
