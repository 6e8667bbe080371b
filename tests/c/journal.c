/*
 * Reads and adds to words of a segment at random, and holds every value against a journal: a plain
 * file that all processes of the test map, on whichever node they are (they run on one machine).
 *
 *   journal KEY BYTES FILE check  looks at every word once
 *   journal KEY BYTES FILE SLOT   works until its standard input ends; says how much it did, and
 *                                 counts it in a slot of the journal meanwhile
 *
 * Before an addition to a word its `begun` is counted, behind it its `done`. So a value can be no
 * less than what was done before it was read, and no more than what was begun after that, also when
 * processes are killed in between. That is what one memory means for such words.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dipc.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

enum { SLOTS = 64, WORDS = 512, IN_A_PLACE = 8, RUN = 16, LOOK_EVERY = 64 };

struct journal {
    _Atomic int64_t begun[WORDS], done[WORDS], steps[SLOTS];
};

static struct journal *journal;
static char *area;
static size_t apart;
static uint64_t random_state;
static long reads, adds;

static void die(const char *what)
{
    fprintf(stderr, "journal: %s: %s\n", what, strerror(errno));
    exit(2);
}

static unsigned below(unsigned bound)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (unsigned)(random_state * 0x2545f4914f6cdd1du >> 33) % bound;
}

/* Words come in groups that share a page, the groups far apart. */
static _Atomic int64_t *word(unsigned number)
{
    return (void *)(area + number / IN_A_PLACE * apart + number % IN_A_PLACE * 64);
}

static void judge(unsigned number, int64_t least, int64_t value, int64_t most, const char *what)
{
    if (value >= least && value <= most)
        return;
    fprintf(stderr, "journal: %s word %u: %ld is not between %ld and %ld\n", what, number,
            (long)value, (long)least, (long)most);
    exit(1);
}

static void read_one(unsigned number)
{
    int64_t least = journal->done[number], value = *word(number), most = journal->begun[number];
    judge(number, least, value, most, "read");
    reads++;
}

static void add_one(unsigned number)
{
    int64_t least = journal->done[number];
    journal->begun[number]++;
    int64_t value = atomic_fetch_add(word(number), 1), most = journal->begun[number];
    journal->done[number]++;
    judge(number, least, value, most - 1, "add");
    adds++;
}

static void work(void)
{
    unsigned number = below(WORDS);
    switch (below(8)) {
    case 0:
    case 1:
    case 2:
        add_one(number);
        break;
    case 3:
        for (unsigned i = 0; i < RUN; i++)
            read_one((number + i) % WORDS);
        break;
    default:
        read_one(number);
    }
}

static int is_over(void)
{
    struct pollfd input = { .fd = 0, .events = POLLIN };
    return poll(&input, 1, 0) > 0;
}

static void open_all(int key, size_t bytes, const char *path)
{
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, sizeof *journal) < 0)
        die(path);
    journal = mmap(NULL, sizeof *journal, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (journal == MAP_FAILED)
        die("mmap");
    int segment = shmget(key, bytes, IPC_DIPC | 0600);
    if (segment < 0)
        die("shmget");
    area = shmat(segment, NULL, 0);
    if (area == (void *)-1)
        die("shmat");
    apart = (bytes - 4096) / (WORDS / IN_A_PLACE) / 4096 * 4096;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    open_all((int)strtol(argv[1], NULL, 0), strtoul(argv[2], NULL, 0), argv[3]);
    random_state = (uint64_t)getpid() * 0x9e3779b97f4a7c15u;
    puts("attached");
    fflush(stdout);
    if (strcmp(argv[4], "check") == 0) {
        for (unsigned number = 0; number < WORDS; number++)
            read_one(number);
    } else {
        _Atomic int64_t *steps = &journal->steps[atoi(argv[4]) % SLOTS];
        for (long i = 0; i % LOOK_EVERY != 0 || !is_over(); i++, ++*steps)
            work();
    }
    printf("read %ld added %ld\n", reads, adds);
    return 0;
}
