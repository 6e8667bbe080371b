/* Credentials count at the call, for each thread alone: changed ones act as what they are now. */
#include "trap.h"
#include <pthread.h>
#include <sys/syscall.h>

enum { NOBODY = 65534 };

static int queue;

static void *as_nobody(void *argument)
{
    (void)argument;
    CHECK(trap_send(queue, 1, "as root") == 0, "root's thread");
    CHECK(syscall(SYS_setresuid, -1, NOBODY, -1) == 0, "setresuid of one thread");
    errno = 0;
    CHECK(trap_send(queue, 1, "as nobody") == -1 && errno == EACCES, "nobody may send");
    CHECK(syscall(SYS_setresuid, -1, 0, -1) == 0, "back");
    CHECK(trap_send(queue, 1, "as root again") == 0, "root's thread again");
    return NULL;
}

int main(void)
{
    alarm(SECONDS_MAX);
    if (geteuid() != 0) {
        puts("only root can change its user");
        return CANNOT_TELL;
    }
    queue = trap_queue();
    pthread_t thread;
    CHECK(trap_send(queue, 1, "main") == 0, "msgsnd");
    pthread_create(&thread, NULL, as_nobody, NULL);
    pthread_join(thread, NULL);
    CHECK(trap_send(queue, 1, "main") == 0 && trap_messages(queue) == 4, "the other thread");
    return trap_end();
}
