/* A library opened with RTLD_DEEPBIND finds libc before a preloaded one; its calls count too. */
#include "trap.h"
#include <dlfcn.h>

static const char *source =
    "#include <sys/ipc.h>\n#include <sys/msg.h>\n"
    "int count(int queue)\n"
    "{ struct msqid_ds s; return msgctl(queue, IPC_STAT, &s) < 0 ? -1 : (int)s.msg_qnum; }\n";

int main(void)
{
    alarm(SECONDS_MAX);
    char directory[] = "/tmp/trap-deepbind-XXXXXX", command[256], library[128];
    if (!mkdtemp(directory))
        return 2;
    snprintf(library, sizeof library, "%s/count.so", directory);
    snprintf(command, sizeof command, "env -u LD_PRELOAD cc -shared -fPIC -x c -o %s - 2>/dev/null",
             library);
    FILE *compiler = popen(command, "w");
    fputs(source, compiler);
    if (pclose(compiler) != 0) {
        puts("no C compiler");
        rmdir(directory);
        return CANNOT_TELL;
    }
    int queue = trap_queue();
    CHECK(trap_send(queue, 1, "x") == 0, "msgsnd");
    void *handle = dlopen(library, RTLD_NOW | RTLD_DEEPBIND);
    int (*count)(int) = handle ? (int (*)(int))dlsym(handle, "count") : NULL;
    CHECK(count, "dlopen: %s", dlerror());
    if (count)
        CHECK(count(queue) == 1, "the library's call");
    unlink(library);
    rmdir(directory);
    return trap_end();
}
