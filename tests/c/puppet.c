/*
 * Makes one System V call for each line of its standard input, and prints one line for it:
 * "= RESULT" or "! ERRNO". So a test drives several processes step by step.
 *
 *   msgget KEY FLAGS      FLAGS octal; the queue that the following lines mean
 *   semget KEY N FLAGS    the set that the following lines mean
 *   queue ID, set ID      the same, by id
 *   send TYPE TEXT, receive TYPE, and with a "?" behind the word: IPC_NOWAIT
 *   count                 messages in the queue
 *   op NUM OP [undo]      semop, value NUM, setval NUM VALUE, waiters NUM, zeros NUM (GETZCNT),
 *                         last NUM (GETPID)
 *   remove                the queue, or the set when the last get was semget's
 *   ftok PATH             the key that ftok makes of it
 *   become UID            setresuid and setresgid, as root
 *   child LINE            the line in a child, which then ends; 0, or the child's errno
 *   exec                  runs this program anew, which keeps the set; the set
 *
 * SIGUSR1 is handled, with SA_RESTART, by a function that does nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <unistd.h>

struct message {
    long type;
    char text[8192];
};

union semun {
    int val;
};

static int queue = -1, set = -1, set_is_last;
static struct message message;

static long send_it(const char *arguments, int flags)
{
    if (sscanf(arguments, "%ld %8191s", &message.type, message.text) != 2)
        return -1;
    return msgsnd(queue, &message, strlen(message.text), flags);
}

static long count(void)
{
    struct msqid_ds ds;
    return msgctl(queue, IPC_STAT, &ds) < 0 ? -1 : (long)ds.msg_qnum;
}

static long operate(const char *arguments)
{
    char undo[8] = "";
    int number = 0, op = 0;
    if (sscanf(arguments, "%d %d %7s", &number, &op, undo) < 2)
        return -1;
    struct sembuf buf = { (unsigned short)number, (short)op, 0 };
    if (strcmp(undo, "undo") == 0)
        buf.sem_flg = SEM_UNDO;
    return semop(set, &buf, 1);
}

static long get(const char *word, const char *arguments)
{
    int key = 0, size = 0;
    unsigned flags = 0;
    set_is_last = strcmp(word, "semget") == 0;
    if (set_is_last) {
        sscanf(arguments, "%i %d %o", &key, &size, &flags);
        return set = semget(key, size, (int)flags);
    }
    sscanf(arguments, "%i %o", &key, &flags);
    return queue = msgget(key, (int)flags);
}

static long become(unsigned uid)
{
    return setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 ? -1 : setresuid(uid, uid, uid);
}

static long run_anew(void)
{
    char number[16];
    snprintf(number, sizeof number, "%d", set);
    return execl("/proc/self/exe", "puppet", number, NULL);
}

static long call(const char *word, const char *arguments);

static long in_child(const char *line)
{
    char word[16];
    int used = 0, status;
    if (sscanf(line, "%15s %n", word, &used) != 1)
        return -1;
    pid_t pid = fork();
    if (pid == 0)
        _exit(call(word, line + used) < 0 ? errno : 0);
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        return -1;
    errno = WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
    return errno == 0 ? 0 : -1;
}

static long make_key(const char *path)
{
    char name[4096] = "";
    if (sscanf(path, "%4095s", name) != 1)
        return -1;
    key_t key = ftok(name, 'x');
    return key == -1 ? -1 : (long)(unsigned)key;
}

static long call(const char *word, const char *arguments)
{
    int number = atoi(arguments), value = 0;
    errno = EPROTO;
    if (strcmp(word, "msgget") == 0 || strcmp(word, "semget") == 0)
        return get(word, arguments);
    if (strcmp(word, "queue") == 0)
        return queue = number;
    if (strcmp(word, "set") == 0)
        return set = number;
    if (strcmp(word, "send") == 0)
        return send_it(arguments, 0);
    if (strcmp(word, "send?") == 0)
        return send_it(arguments, IPC_NOWAIT);
    if (strcmp(word, "count") == 0)
        return count();
    if (strcmp(word, "op") == 0)
        return operate(arguments);
    if (strcmp(word, "value") == 0)
        return semctl(set, number, GETVAL);
    if (strcmp(word, "waiters") == 0)
        return semctl(set, number, GETNCNT);
    if (strcmp(word, "zeros") == 0)
        return semctl(set, number, GETZCNT);
    if (strcmp(word, "last") == 0)
        return semctl(set, number, GETPID);
    if (strcmp(word, "setval") == 0 && sscanf(arguments, "%d %d", &number, &value) == 2)
        return semctl(set, number, SETVAL, (union semun){ .val = value });
    if (strcmp(word, "ftok") == 0)
        return make_key(arguments);
    if (strcmp(word, "become") == 0)
        return become((unsigned)number);
    if (strcmp(word, "child") == 0)
        return in_child(arguments);
    if (strcmp(word, "exec") == 0)
        return run_anew();
    if (strcmp(word, "remove") == 0)
        return set_is_last ? semctl(set, 0, IPC_RMID) : msgctl(queue, IPC_RMID, NULL);
    return -1;
}

static void receive(const char *arguments, int flags)
{
    long length = msgrcv(queue, &message, sizeof message.text, atol(arguments), flags);
    if (length < 0)
        printf("! %s\n", strerrorname_np(errno));
    else
        printf("= %ld %.*s\n", message.type, (int)length, message.text);
}

static void do_nothing(int number) { (void)number; }

int main(int argc, char **argv)
{
    char line[8300], word[16];
    int used = 0;
    struct sigaction action = { .sa_handler = do_nothing, .sa_flags = SA_RESTART };
    sigaction(SIGUSR1, &action, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 2) {
        set = atoi(argv[1]);
        set_is_last = 1;
        printf("= %d\n", set);
    }
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%15s %n", word, &used) != 1)
            continue;
        if (strcmp(word, "receive") == 0) {
            receive(line + used, 0);
        } else if (strcmp(word, "receive?") == 0) {
            receive(line + used, IPC_NOWAIT);
        } else {
            long result = call(word, line + used);
            if (result < 0)
                printf("! %s\n", strerrorname_np(errno));
            else
                printf("= %ld\n", result);
        }
    }
    return 0;
}
