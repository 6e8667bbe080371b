/* In another IPC namespace nothing is here that was here before; distributed ids go on. */
#include "trap.h"
#include <sched.h>

int main(void)
{
    alarm(SECONDS_MAX);
    int queue = trap_queue(), set = trap_set(1), status = 0;
    CHECK(trap_send(queue, 1, "before") == 0, "msgsnd");
    pid_t child = fork();
    if (child == 0) {
        if (unshare(CLONE_NEWIPC) < 0)
            _exit(CANNOT_TELL);
        int local = msgget(IPC_PRIVATE, 0600);
        CHECK(local >= 0 && trap_messages(local) == 0, "a queue of the new namespace");
        const char *text = trap_receive(queue, 0, IPC_NOWAIT);
        if (trap_flag() && getenv("DIPC_SOCKET"))
            CHECK(text && strcmp(text, "before") == 0, "the distributed queue");
        else
            CHECK(!text && errno == EINVAL, "the other namespace's queue");
        _exit(trap_failures != 0);
    }
    CHECK(waitpid(child, &status, 0) == child, "waitpid");
    if (WIFEXITED(status) && WEXITSTATUS(status) == CANNOT_TELL) {
        puts("no right to a new IPC namespace");
        return CANNOT_TELL;
    }
    CHECK(status == 0, "the child ended with %x", status);
    CHECK(trap_op(set, 0, 1, 0) == 0, "the parent's set");
    return trap_end();
}
