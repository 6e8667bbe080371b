/*
 * System calls whose arguments lie in an attachment, whose pages need not be here yet: the kernel's
 * own accesses must be served like the program's. And what sleeps in a segment: futexes and the
 * process-shared locks made of them.
 */
#define _GNU_SOURCE
#include "cases.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 8, ROUNDS = 300 };

static int segment;
static char *area;

/* The row's segment, new, so that none of its pages is here. */
static void begin(void)
{
    segment = make_segment(row_key(0), PAGES * PAGE, 0600);
    errno = 0;
    area = shmat(segment, NULL, 0);
    report("attach", area == (char *)-1 ? -1 : 0);
}

static void end(void) { TRY("rmid", shmctl(segment, IPC_RMID, NULL)); }

static int pattern_file(void)
{
    static char pattern[3 * PAGE];
    int file = memfd_create("pattern", MFD_CLOEXEC);
    for (int i = 0; i < 3 * PAGE; i++)
        pattern[i] = (char)(i % 251);
    if (write(file, pattern, sizeof pattern) != (ssize_t)sizeof pattern)
        say(" no file");
    return file;
}

static void say_pattern(const char *what, const char *at, int bytes)
{
    int wrong = 0;
    for (int i = 0; i < bytes; i++)
        wrong += at[i] != (char)(i % 251);
    say(" %s wrong=%d", what, wrong);
}

static void read_into(void)
{
    begin();
    int file = pattern_file();
    TRY("pread", pread(file, area + PAGE / 2, 3 * PAGE, 0));
    say_pattern("read", area + PAGE / 2, 3 * PAGE);
    lseek(file, 0, SEEK_SET);
    TRY("read", read(file, area + 5 * PAGE, 100));
    say_pattern("short", area + 5 * PAGE, 100);
    struct iovec parts[] = { { area + 6 * PAGE, 10 }, { area + 7 * PAGE, 10 } };
    TRY("preadv", preadv(file, parts, 2, 0));
    say_pattern("parts", area + 6 * PAGE, 10);
    say(" %d", area[7 * PAGE]);
    end();
}

static void write_from(void)
{
    int ends[2];
    char back[2 * PAGE] = "";
    begin();
    TRY("pipe", pipe(ends));
    TRY("absent", write(ends[1], area + PAGE, 64));
    TRY("read", read(ends[0], back, sizeof back));
    say(" %d", back[63]);
    for (int i = 0; i < PAGES * PAGE; i++)
        area[i] = (char)(i % 251);
    TRY("write", write(ends[1], area, 2 * PAGE));
    TRY("read", read(ends[0], back, sizeof back));
    say_pattern("written", back, sizeof back);
    end();
}

static void sockets(void)
{
    int ends[2];
    begin();
    char *at = area + PAGE;
    struct msghdr *header = (void *)area;
    struct iovec *part = (void *)(area + 4 * PAGE);
    TRY("socketpair", socketpair(AF_UNIX, SOCK_DGRAM, 0, ends));
    TRY("send absent", send(ends[0], at, 10, 0));
    TRY("send", send(ends[0], "twelve bytes", 12, 0));
    TRY("recv", recv(ends[1], at, PAGE, 0));
    say(" %d", at[0]);
    /* Header, vector and data, each in a page of its own. */
    *part = (struct iovec){ at + PAGE, PAGE };
    *header = (struct msghdr){ .msg_iov = part, .msg_iovlen = 1 };
    TRY("recvmsg", recvmsg(ends[1], header, 0));
    say(" %s", at + PAGE);
    *part = (struct iovec){ area + 6 * PAGE, 20 };
    TRY("sendmsg absent", sendmsg(ends[0], header, 0));
    TRY("getsockopt", getsockopt(ends[0], SOL_SOCKET, SO_TYPE, area + 5 * PAGE,
                                 &(socklen_t){ sizeof(int) }));
    say(" %s", *(int *)(area + 5 * PAGE) == SOCK_DGRAM ? "datagrams" : "another");
    end();
}

static void other_arguments(void)
{
    begin();
    struct stat *state = (void *)area;
    TRY("stat", stat("/", state));
    say(" %s", S_ISDIR(state->st_mode) ? "directory" : "another");
    strcpy(area + 2 * PAGE - 2, "/");
    TRY("path", access(area + 2 * PAGE - 2, F_OK));
    TRY("absent path", access(area + 3 * PAGE, F_OK));
    say(" getcwd %s", getcwd(area + 4 * PAGE, PAGE) ? "ok" : errno_name(errno));
    struct pollfd *watched = (void *)(area + 5 * PAGE);
    dup2(open("/dev/null", O_RDONLY), 0); /* of which nothing is asked */
    TRY("poll absent", poll(watched, 1, 0));
    TRY("time", syscall(SYS_clock_gettime, CLOCK_REALTIME, area + 6 * PAGE));
    say(" %s", *(time_t *)(area + 6 * PAGE) > 1000000 ? "now" : "never");
    TRY("random", getentropy(area + 7 * PAGE, 64) == 0 ? 0 : -1);
    end();
}

static void segments_of_calls(void)
{
    begin();
    struct shmid_ds *state = (void *)(area + PAGE);
    TRY("IPC_STAT into", shmctl(segment, IPC_STAT, state));
    say(" nattch=%lu", (unsigned long)state->shm_nattch);
    int queue = make_queue(row_key(0), 0600);
    struct msgbuf *message = (void *)(area + 2 * PAGE);
    TRY("absent msgsnd", msgsnd(queue, message, 10, 0));
    message->mtype = 3;
    TRY("msgsnd", msgsnd(queue, message, 2 * PAGE, 0));
    message = (void *)(area + 5 * PAGE + 8);
    TRY("msgrcv", msgrcv(queue, message, 2 * PAGE, 0, 0));
    say(" type=%ld", message->mtype);
    msgctl(queue, IPC_RMID, NULL);
    end();
}

static void read_into_rdonly(void)
{
    begin();
    int file = pattern_file();
    char *reader = shmat(segment, NULL, SHM_RDONLY);
    TRY("pread", pread(file, reader, 10, 0));
    TRY("pread absent", pread(file, reader + 3 * PAGE, 10, 0));
    mprotect(area, PAGE, PROT_NONE);
    TRY("pread none", pread(file, area, 10, 0));
    TRY("half", pread(file, area + PAGES * PAGE - 5, 10, 0) > 0 ? 1 : -1);
    end();
}

static void process_vm(void)
{
    char here[PAGE] = "from another process";
    begin();
    struct iovec mine = { here, PAGE }, there = { area + 2 * PAGE, PAGE };
    TRY("writev", process_vm_writev(getpid(), &mine, 1, &there, 1, 0));
    say(" %s", area + 2 * PAGE);
    memset(here, 0, PAGE);
    TRY("readv", process_vm_readv(getpid(), &mine, 1, &there, 1, 0));
    say(" %s", here);
    there.iov_base = area + 5 * PAGE;
    TRY("readv absent", process_vm_readv(getpid(), &mine, 1, &there, 1, 0));
    say(" %d", here[0]);
    pid_t pid = fork();
    if (pid == 0) {
        there.iov_base = area + 3 * PAGE;
        strcpy(here, "of the parent");
        _exit(process_vm_writev(getppid(), &mine, 1, &there, 1, 0) != PAGE);
    }
    int status;
    waitpid(pid, &status, 0);
    say(" status %d %s", status, area + 3 * PAGE);
    end();
}

static long futex(void *word, int operation, int value, const struct timespec *time)
{
    return syscall(SYS_futex, word, operation, value, time, NULL, 0);
}

static void futex_calls(void)
{
    struct timespec soon = { 0, 20000000 };
    begin();
    TRY("wake absent", futex(area, FUTEX_WAKE, 1, NULL));
    TRY("wait, another value", futex(area + PAGE, FUTEX_WAIT, 5, NULL));
    TRY("wait, time", futex(area + 2 * PAGE, FUTEX_WAIT, 0, &soon));
    memcpy(area + 3 * PAGE, &soon, sizeof soon);
    TRY("wait, time here", futex(area + 4 * PAGE, FUTEX_WAIT, 0, (void *)(area + 3 * PAGE)));
    TRY("odd", futex(area + 1, FUTEX_WAKE, 1, NULL));
    end();
}

static atomic_int *word;

static void wait_for_word(void)
{
    about_to_wait();
    while (*word == 0)
        if (futex(word, FUTEX_WAIT, 0, NULL) < 0 && errno != EAGAIN && errno != EINTR)
            say(" %s", errno_name(errno));
    say(" woken by %d", *word);
}

static void futex_wakes(void)
{
    begin();
    word = (void *)(area + PAGE + 8);
    pid_t pids[3];
    for (int i = 0; i < 3; i++)
        pids[i] = start_child(wait_for_word);
    for (int i = 0; i < 3; i++)
        until_waiting(pids[i]);
    *word = 7;
    TRY("wake", futex(word, FUTEX_WAKE, 10, NULL));
    for (int i = 0; i < 3; i++)
        finish_child("sleeper", pids[i]);
    end();
}

/* What a child and its parent share, each in a page of its own. */
struct shared {
    pthread_mutex_t mutex;
    char pad1[PAGE - sizeof(pthread_mutex_t)];
    pthread_cond_t changed;
    char pad2[PAGE - sizeof(pthread_cond_t)];
    sem_t free, used;
    char pad3[PAGE - 2 * sizeof(sem_t)];
    pthread_barrier_t barrier;
    pthread_rwlock_t lock;
    char pad4[PAGE - sizeof(pthread_barrier_t) - sizeof(pthread_rwlock_t)];
    long count, turn, slot;
};

static struct shared *shared;

static void make_shared(void)
{
    pthread_mutexattr_t mutex;
    pthread_condattr_t condition;
    pthread_barrierattr_t barrier;
    pthread_rwlockattr_t lock;
    shared = (void *)area;
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->mutex, &mutex);
    pthread_condattr_init(&condition);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->changed, &condition);
    pthread_barrierattr_init(&barrier);
    pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&shared->barrier, &barrier, 3);
    pthread_rwlockattr_init(&lock);
    pthread_rwlockattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
    pthread_rwlock_init(&shared->lock, &lock);
    sem_init(&shared->free, 1, 1);
    sem_init(&shared->used, 1, 0);
}

static void with_three(void (*work)(int number))
{
    pid_t pids[3];
    for (int i = 0; i < 3; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            work(i);
            _exit(0);
        }
    }
    for (int i = 0; i < 3; i++)
        waitpid(pids[i], NULL, 0);
    say(" count=%ld", shared->count);
}

static void add_with_mutex(int number)
{
    (void)number;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&shared->mutex);
        shared->count++;
        pthread_mutex_unlock(&shared->mutex);
    }
}

static void take_turns(int number)
{
    for (int i = 0; i < ROUNDS / 3; i++) {
        pthread_mutex_lock(&shared->mutex);
        while (shared->turn != number)
            pthread_cond_wait(&shared->changed, &shared->mutex);
        shared->turn = (number + 1) % 3;
        shared->count++;
        pthread_cond_broadcast(&shared->changed);
        pthread_mutex_unlock(&shared->mutex);
    }
}

static void meet(int number)
{
    for (int i = 0; i < ROUNDS / 10; i++) {
        if (number == i % 3)
            shared->count++;
        pthread_barrier_wait(&shared->barrier);
        if (shared->count != i + 1)
            shared->count += 1000;
        pthread_barrier_wait(&shared->barrier);
    }
}

static void read_and_write(int number)
{
    for (int i = 0; i < ROUNDS; i++) {
        if ((i + number) % 3 == 0) {
            pthread_rwlock_wrlock(&shared->lock);
            shared->slot++;
            shared->count++;
            shared->slot--;
        } else {
            pthread_rwlock_rdlock(&shared->lock);
            if (shared->slot != 0)
                shared->turn = 1000;
        }
        pthread_rwlock_unlock(&shared->lock);
    }
}

static void pass_on(int number)
{
    for (int i = 0; i < ROUNDS && number < 2; i++) {
        sem_wait(number == 0 ? &shared->free : &shared->used);
        if (number == 0)
            shared->slot = i;
        else if (shared->slot == i)
            shared->count++;
        sem_post(number == 0 ? &shared->used : &shared->free);
    }
}

static void process_shared(void)
{
    static void (*const works[])(int) = { add_with_mutex, take_turns, meet, read_and_write,
                                          pass_on };
    begin();
    for (size_t i = 0; i < sizeof works / sizeof *works; i++) {
        make_shared();
        shared->count = shared->turn = shared->slot = 0;
        with_three(works[i]);
    }
    say(" torn=%ld", shared->turn);
    end();
}

static const struct row ROWS[] = {
    { "read_into", "shmat read", read_into },
    { "write_from", "shmat write", write_from },
    { "sockets", "shmat recvmsg", sockets },
    { "other_arguments", "shmat ioctl", other_arguments },
    { "segments_of_calls", "shmat shmctl", segments_of_calls },
    { "read_into_rdonly", "shmat SHM_RDONLY EFAULT", read_into_rdonly },
    { "process_vm", "shmat process_vm", process_vm },
    { "futex_calls", "shmat futex", futex_calls },
    { "futex_wakes", "shmat futex", futex_wakes },
    { "process_shared", "shmat pthread", process_shared },
};

int main(int argc, char **argv)
{
    return run_rows(ROWS, sizeof ROWS / sizeof *ROWS, argc, argv);
}
