/* A forked child has connections of its own, and the parent's go on. */
#include "trap.h"

static int queue;

static void exchange(const char *who, long type)
{
    for (int i = 0; i < 20; i++) {
        CHECK(trap_send(queue, type, who) == 0, "%s sends", who);
        const char *text = trap_receive(queue, type, 0);
        CHECK(text && strcmp(text, who) == 0, "%s receives %s", who, text ? text : "nothing");
    }
}

int main(void)
{
    alarm(SECONDS_MAX);
    queue = trap_queue();
    exchange("parent", 1);
    for (int i = 0; i < 5; i++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) {
            exchange("child", getpid());
            _exit(trap_failures != 0);
        }
        exchange("parent", 1);
        CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended: %x", status);
    }
    CHECK(trap_messages(queue) == 0, "messages are left");
    return trap_end();
}
