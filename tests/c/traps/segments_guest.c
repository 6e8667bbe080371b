/*
 * Who attaches finds descriptors, errno, mask, cancellation state and the rights of its threads as
 * they were; closing every descriptor takes nothing away; and a process whose threads have all
 * ended ends.
 */
#include "trap.h"
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>

enum { PAGE = 4096, PAGES = 4, NOBODY = 65534 };

static int segment;
static char *memory;

static int descriptors(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (directory && readdir(directory))
        count++;
    if (directory)
        closedir(directory);
    return count;
}

static void touch(const char *when)
{
    for (int page = 0; page < PAGES; page++) {
        char before = memory[page * PAGE];
        memory[page * PAGE]++;
        CHECK(memory[page * PAGE] == (char)(before + 1), "page %d, %s", page, when);
    }
}

static void kept(void)
{
    sigset_t before, after;
    int state, count = descriptors();
    sigemptyset(&before);
    sigaddset(&before, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    errno = 1234;
    memory = trap_attach(segment);
    touch("just attached");
    CHECK(errno == 1234, "errno was changed");
    CHECK(shmdt(memory) == 0 && errno == 1234, "errno was changed by shmdt");
    CHECK(shmdt(memory) == -1 && errno == EINVAL, "errno was not set");
    memory = trap_attach(segment);
    CHECK(descriptors() == count, "%d descriptors, there were %d", descriptors(), count);
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
    CHECK(state == PTHREAD_CANCEL_DISABLE, "the cancellation state");
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    for (int number = 1; number <= SIGRTMAX; number++)
        CHECK(sigismember(&before, number) == sigismember(&after, number), "signal %d", number);
}

static void closed(void)
{
    pid_t child = fork();
    if (child == 0) {
        for (int fd = 3; fd < 4096; fd++)
            close(fd);
        touch("with every descriptor closed");
        pid_t grandchild = fork();
        if (grandchild == 0) {
            touch("in a child of that");
            _exit(trap_failures);
        }
        int status = -1;
        CHECK(waitpid(grandchild, &status, 0) == grandchild && status == 0, "it: %x", status);
        CHECK(shmdt(memory) == 0, "shmdt with every descriptor closed");
        _exit(trap_failures);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child: %x", status);
}

static void end_of_pipe(void)
{
    int ends[2];
    char byte;
    CHECK(pipe(ends) == 0, "pipe");
    char *again = trap_attach(segment);
    close(ends[1]);
    CHECK(read(ends[0], &byte, 1) == 0, "nobody else has the other end");
    close(ends[0]);
    CHECK(shmdt(again) == 0, "shmdt");
}

/* Of a process that has given up root, no thread may have kept it. */
static void rights(void)
{
    if (geteuid() != 0)
        return;
    pid_t child = fork();
    if (child == 0) {
        touch("as root");
        if (setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
            _exit(99);
        touch("as nobody");
        DIR *tasks = opendir("/proc/self/task");
        for (struct dirent *entry; tasks && (entry = readdir(tasks));) {
            char path[300], line[256];
            snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
            FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
            int uids[4] = { 0, 0, 0, 0 };
            unsigned long long rights = 0;
            while (file && fgets(line, sizeof line, file)) {
                sscanf(line, "Uid: %d %d %d %d", uids, uids + 1, uids + 2, uids + 3);
                if (sscanf(line, "CapPrm: %llx", &rights) == 1)
                    CHECK(rights == 0, "thread %s can do %llx", entry->d_name, rights);
            }
            if (file) {
                CHECK(uids[0] && uids[1] && uids[2] && uids[3], "thread %s is root", entry->d_name);
                fclose(file);
            }
        }
        _exit(trap_failures);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child: %x", status);
}

static void *last(void *argument)
{
    usleep(20000);
    touch("after main has ended");
    char *own = trap_attach(segment);
    own[0]++;
    CHECK(trap_attached(segment) == 3, "nattch %ld after main has ended", trap_attached(segment));
    CHECK(shmdt(own) == 0, "shmdt after main has ended");
    return argument;
}

static void ends(void)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        pthread_t thread;
        alarm(SECONDS_MAX);
        touch("before main ends");
        pthread_create(&thread, NULL, last, NULL);
        pthread_exit(NULL);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "its threads have ended: %x", status);
}

static void *cancelled(void *argument)
{
    for (;;) {
        char *own = trap_attach(segment);
        own[1]++;
        shmdt(own);
        pthread_testcancel();
    }
    return argument;
}

static void cancellation(void)
{
    for (int i = 0; i < 10; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, cancelled, NULL);
        trap_nap();
        pthread_cancel(thread);
        pthread_join(thread, NULL);
    }
    CHECK(trap_attached(segment) == 1, "nattch %ld after cancelling", trap_attached(segment));
}

int main(void)
{
    alarm(2 * SECONDS_MAX);
    segment = trap_segment(PAGES * PAGE);
    kept();
    end_of_pipe();
    closed();
    rights();
    ends();
    cancellation();
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 16;
    setrlimit(RLIMIT_NOFILE, &limit);
    char *again = trap_attach(segment);
    CHECK(shmdt(again) == 0, "with few descriptors allowed");
    return trap_end();
}
