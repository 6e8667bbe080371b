/* SIGSTOP and SIGCONT without a handler end a semop with EINTR, and a msgrcv not (signal(7)). */
#include "trap.h"

static int queue, set;

static void stop_and_continue(pid_t child)
{
    int status;
    trap_until_asleep(child, child);
    kill(child, SIGSTOP);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status), "it did not stop");
    kill(child, SIGCONT);
}

int main(void)
{
    alarm(SECONDS_MAX);
    int status = 0;
    queue = trap_queue();
    set = trap_set(1);
    pid_t child = fork();
    if (child == 0)
        _exit(trap_op(set, 0, -1, 0) == -1 && errno == EINTR ? 0 : 1);
    stop_and_continue(child);
    CHECK(waitpid(child, &status, 0) == child && status == 0, "semop: %x", status);

    child = fork();
    if (child == 0) {
        const char *text = trap_receive(queue, 1, 0);
        _exit(text && strcmp(text, "after") == 0 ? 0 : 1);
    }
    stop_and_continue(child);
    trap_until_asleep(child, child);
    CHECK(trap_send(queue, 1, "after") == 0, "msgsnd");
    CHECK(waitpid(child, &status, 0) == child && status == 0, "msgrcv: %x", status);
    return trap_end();
}
