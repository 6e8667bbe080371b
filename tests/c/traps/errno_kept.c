/* A call that succeeds leaves errno alone, a call that fails sets it, and -1 is all it returns. */
#include "trap.h"

#define KEPT(call) \
    do { \
        errno = 4321; \
        long result = (long)(call); \
        CHECK(result >= 0 && errno == 4321, "%s: %ld", #call, result); \
    } while (0)

#define FAILS(number, call) \
    do { \
        errno = 4321; \
        long result = (long)(call); \
        CHECK(result == -1 && errno == (number), "%s: %ld", #call, result); \
    } while (0)

int main(void)
{
    alarm(SECONDS_MAX);
    int queue = trap_queue(), set = trap_set(2);
    struct message message = { 1, "text" };
    struct msqid_ds queue_state;
    struct semid_ds set_state;
    union semun argument = { .buf = &set_state };
    struct sembuf up = { 0, 1, 0 }, down = { 1, -1, IPC_NOWAIT };
    KEPT(msgsnd(queue, &message, 4, 0));
    KEPT(msgctl(queue, IPC_STAT, &queue_state));
    KEPT(msgrcv(queue, &message, 4, 0, 0));
    KEPT(semop(set, &up, 1));
    KEPT(semctl(set, 0, GETVAL));
    KEPT(semctl(set, 0, IPC_STAT, argument));
    FAILS(ENOMSG, msgrcv(queue, &message, 4, 0, IPC_NOWAIT));
    FAILS(EAGAIN, semop(set, &down, 1));
    FAILS(EFAULT, msgsnd(queue, NULL, 4, 0));
    message.type = 0;
    FAILS(EINVAL, msgsnd(queue, &message, 4, 0));
    return trap_end();
}
