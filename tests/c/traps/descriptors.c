/* Programs close every descriptor, put others in their place, and count on the lowest number. */
#include "trap.h"
#include <fcntl.h>
#include <sys/resource.h>

static int queue, set;

static void work(const char *when)
{
    CHECK(trap_send(queue, 1, when) == 0, "msgsnd %s", when);
    CHECK(trap_receive(queue, 1, 0), "msgrcv %s", when);
    CHECK(trap_op(set, 0, 1, 0) == 0 && trap_op(set, 0, -1, 0) == 0, "semop %s", when);
}

static int lowest(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(fd);
    return fd;
}

int main(void)
{
    alarm(SECONDS_MAX);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    int top = limit.rlim_cur > 65536 ? 65536 : (int)limit.rlim_cur, before = lowest();
    queue = trap_queue();
    set = trap_set(1);
    work("at first");
    CHECK(lowest() == before, "the lowest free descriptor was %d, is %d", before, lowest());
    for (int fd = before; fd < top; fd++)
        close(fd);
    work("with everything closed");
    int pipes[2];
    CHECK(pipe(pipes) == 0, "pipe");
    for (int fd = top / 2; fd < top; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            dup2(pipes[1], fd);
    work("with pipes in the place of ours");
    fcntl(pipes[0], F_SETFL, O_NONBLOCK);
    char byte;
    CHECK(read(pipes[0], &byte, 1) == -1 && errno == EAGAIN, "something was written to a pipe");
    for (int fd = top / 2; fd < top; fd++)
        close(fd);
    close(pipes[0]);
    close(pipes[1]);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 16;
    setrlimit(RLIMIT_NOFILE, &limit);
    work("with few descriptors allowed");
    return trap_end();
}
