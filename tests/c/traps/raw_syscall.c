/* libc's syscall() makes the same calls, and all others with every argument as it came. */
#include "trap.h"
#include <sys/mman.h>
#include <sys/syscall.h>

int main(void)
{
    alarm(SECONDS_MAX);
    int queue = trap_queue(), set = trap_set(1);
    struct message message = { 3, "raw" };
    struct sembuf up = { 0, 1, 0 };
    struct msqid_ds state;
    CHECK(syscall(SYS_msgsnd, queue, &message, 4L, 0) == 0, "msgsnd");
    CHECK(syscall(SYS_msgctl, queue, IPC_STAT, &state) == 0 && state.msg_qnum == 1, "msgctl");
    memset(&message, 0, sizeof message);
    CHECK(syscall(SYS_msgrcv, queue, &message, sizeof message.text, 3L, 0) == 4
          && strcmp(message.text, "raw") == 0, "msgrcv");
    CHECK(syscall(SYS_semop, set, &up, 1L) == 0, "semop");
    CHECK(syscall(SYS_semctl, set, 0, GETVAL, 0) == 1, "semctl");
    CHECK(syscall(SYS_msgget, 0x7bfffff1, 0600) == -1 && errno == ENOENT, "msgget");
    CHECK(syscall(SYS_getpid) == getpid(), "another call");
    long length = sysconf(_SC_PAGESIZE);
    char *page = (char *)syscall(SYS_mmap, 0, length, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    CHECK(page != MAP_FAILED, "a call with six arguments");
    if (page != MAP_FAILED)
        page[length - 1] = 1;
    return trap_end();
}
