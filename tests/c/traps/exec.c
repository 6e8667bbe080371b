/* exec is not exit: SEM_UNDO waits for the end of the process, and the new image starts afresh. */
#include "trap.h"

int main(int argc, char **argv)
{
    alarm(SECONDS_MAX);
    if (argc == 2) {
        int set = atoi(argv[1]);
        CHECK(semctl(set, 0, GETVAL) == 1, "exec undid what its process did");
        CHECK(trap_op(set, 0, 1, SEM_UNDO) == 0, "the new image's semop");
        CHECK(semctl(set, 0, GETVAL) == 2, "the new image's value");
        return trap_end();
    }
    int set = trap_set(1), status = 0;
    char word[16];
    snprintf(word, sizeof word, "%d", set);
    pid_t child = fork();
    if (child == 0) {
        CHECK(trap_op(set, 0, 1, SEM_UNDO) == 0, "semop");
        if (!trap_failures)
            execl("/proc/self/exe", argv[0], word, (char *)NULL);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %x", status);
    UNTIL(semctl(set, 0, GETVAL) == 0);

    pid_t vchild = vfork();
    if (vchild == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(1);
    }
    CHECK(waitpid(vchild, &status, 0) == vchild && status == 0, "vfork and exec: %x", status);
    CHECK(trap_op(set, 0, 1, 0) == 0, "semop after vfork");
    return trap_end();
}
