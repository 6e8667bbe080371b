/* A program that reaps any child finds only its own: a library starts none. */
#include "trap.h"

static volatile int children;

static void on_child(int number)
{
    (void)number;
    children++;
}

int main(void)
{
    alarm(SECONDS_MAX);
    signal(SIGCHLD, on_child);
    int queue = trap_queue(), set = trap_set(1);
    CHECK(trap_send(queue, 1, "x") == 0 && trap_receive(queue, 1, 0), "a message");
    CHECK(trap_op(set, 0, 1, 0) == 0, "semop");
    CHECK(wait(NULL) == -1 && errno == ECHILD, "a child that is not ours");
    CHECK(children == 0, "SIGCHLD came %d times", children);
    return trap_end();
}
