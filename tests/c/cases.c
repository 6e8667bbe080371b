/*
 * What the differential cases share; cases.h says how they work. Nothing here knows whether it
 * runs under libdipc.
 */
#define _GNU_SOURCE
#include "cases.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 8192, CHILDREN = 16, ROW_SECONDS = 90, SETTLED_LOOKS = 12, LOOK_MS = 10 };

/* One process's words, in memory that its parent sees. */
struct words {
    volatile size_t length;
    volatile int waiting;
    char text[LINE_BYTES];
};

static struct words *pages;
static struct words *mine;
static struct { pid_t pid; struct words *words; } children[CHILDREN];
static int children_count;
static int row_number;
static long row_began;

volatile int signals_seen;

static void die(const char *what)
{
    fprintf(stderr, "cases: %s: %s\n", what, strerror(errno));
    exit(2);
}

void say(const char *format, ...)
{
    va_list arguments;
    size_t room = LINE_BYTES - mine->length;
    va_start(arguments, format);
    int length = vsnprintf(mine->text + mine->length, room, format, arguments);
    va_end(arguments);
    mine->length += (size_t)length < room ? (size_t)length : room - 1;
}

const char *errno_name(int number)
{
    const char *name = strerrorname_np(number);
    return name ? name : "unknown";
}

long report(const char *what, long result)
{
    int seen = errno;
    say(" %s=%ld", what, result);
    if (result < 0)
        say(" %s", errno_name(seen));
    else if (seen != 0)
        say(" (errno became %s)", errno_name(seen));
    errno = seen;
    return result;
}

long report_id(const char *what, long result)
{
    int seen = errno;
    if (result < 0) {
        report(what, result);
    } else {
        say(" %s=id", what);
        if (seen != 0)
            say(" (errno became %s)", errno_name(seen));
    }
    errno = seen;
    return result;
}

static long number_from(const char *name, int base)
{
    const char *text = getenv(name);
    return text ? strtol(text, NULL, base) : 0;
}

int get_flag(void) { return (int)number_from("DIPC_TEST_FLAG", 8); }

int object_limit(void) { return (int)number_from("DIPC_TEST_LIMIT", 10); }

key_t row_key(int n)
{
    return (key_t)(number_from("DIPC_TEST_KEY", 0) + row_number * KEYS_PER_ROW + n);
}

/* Asks the maker to create an object; the answer is its id or -errno. */
static int ask_maker(const char *path, const char *request)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char answer[32];
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        die("maker socket");
    strcpy(address.sun_path, path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect to the maker");
    if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0)
        die("ask the maker");
    ssize_t length = recv(fd, answer, sizeof answer - 1, 0);
    if (length <= 0)
        die("the maker's answer");
    close(fd);
    answer[length] = 0;
    int result = atoi(answer);
    if (result >= 0)
        return result;
    errno = -result;
    return -1;
}

static int create(const char *kind, key_t key, long count, int flags)
{
    flags |= IPC_CREAT;
    if (strcmp(kind, "queue") == 0)
        return msgget(key, flags);
    if (strcmp(kind, "set") == 0)
        return semget(key, (int)count, flags);
    return shmget(key, (size_t)count, flags);
}

/* Creates here, as somebody else if need be: a child makes the object and the parent gets it. */
static int make_here(const char *kind, uid_t uid, key_t key, long count, int flags)
{
    if (uid == geteuid())
        return create(kind, key, count, flags);
    int answer[2], result[2] = { -1, EPROTO };
    if (pipe2(answer, O_CLOEXEC) < 0)
        die("pipe");
    pid_t pid = fork();
    if (pid == 0) {
        if (!become(uid))
            _exit(2);
        result[0] = create(kind, key, count, flags);
        result[1] = errno;
        ssize_t sent = write(answer[1], result, sizeof result);
        _exit(sent < 0);
    }
    close(answer[1]);
    ssize_t length = read(answer[0], result, sizeof result);
    close(answer[0]);
    waitpid(pid, NULL, 0);
    if (length != (ssize_t)sizeof result)
        die("the creating child");
    errno = result[1];
    return result[0];
}

static int make(const char *kind, uid_t uid, key_t key, long count, int flags)
{
    const char *maker = getenv("DIPC_TEST_MAKER");
    int saved = errno;
    flags |= get_flag();
    if (!maker) {
        int id = make_here(kind, uid, key, count, flags);
        if (id >= 0)
            errno = saved;
        return id;
    }
    char request[128];
    snprintf(request, sizeof request, "%s %d %ld %o %d", kind, (int)key, count, flags, (int)uid);
    int id = ask_maker(maker, request);
    if (id >= 0)
        errno = saved;
    return id;
}

int make_queue_as(uid_t uid, key_t key, int flags) { return make("queue", uid, key, 0, flags); }

int make_queue(key_t key, int flags) { return make_queue_as(geteuid(), key, flags); }

int make_set_as(uid_t uid, key_t key, int count, int flags)
{
    return make("set", uid, key, count, flags);
}

int make_set(key_t key, int count, int flags) { return make_set_as(geteuid(), key, count, flags); }

int make_segment_as(uid_t uid, key_t key, size_t bytes, int flags)
{
    return make("segment", uid, key, (long)bytes, flags);
}

int make_segment(key_t key, size_t bytes, int flags)
{
    return make_segment_as(geteuid(), key, bytes, flags);
}

int become(uid_t uid)
{
    if (geteuid() != 0) {
        say(" needs root");
        return 0;
    }
    if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
        die("setresuid");
    return 1;
}

pid_t start_child(void (*run)(void))
{
    if (children_count == CHILDREN - 1)
        die("too many children");
    struct words *words = &pages[1 + children_count];
    memset(words, 0, sizeof *words);
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        mine = words;
        children_count++;
        alarm(ROW_SECONDS);
        run();
        _exit(0);
    }
    children[children_count].pid = pid;
    children[children_count].words = words;
    children_count++;
    return pid;
}

static struct words *words_of(pid_t pid)
{
    for (int i = 0; i < children_count; i++)
        if (children[i].pid == pid)
            return children[i].words;
    die("no such child");
    return NULL;
}

void finish_child(const char *what, pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            die("waitpid");
    say(" %s:{%s }", what, words_of(pid)->text);
    if (WIFSIGNALED(status))
        say(" %s killed by signal %d", what, WTERMSIG(status));
    else if (WEXITSTATUS(status) != 0)
        say(" %s ended with %d", what, WEXITSTATUS(status));
}

void about_to_wait(void) { mine->waiting = 1; }

static void pause_ms(long ms)
{
    struct timespec time = { ms / 1000, ms % 1000 * 1000000 };
    while (nanosleep(&time, &time) < 0 && errno == EINTR)
        continue;
}

/* How often a process has given up the processor by itself, and whether it sleeps now. */
static long sleeps_of(pid_t pid)
{
    char path[64], line[256];
    long count = -1;
    int asleep = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return -1;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, "State:\tS", 8) == 0)
            asleep = 1;
        sscanf(line, "voluntary_ctxt_switches: %ld", &count);
    }
    fclose(file);
    return asleep ? count : -1;
}

void until_waiting(pid_t pid)
{
    struct words *words = words_of(pid);
    long before = -1;
    int same = 0;
    for (int look = 0; look < ROW_SECONDS * 1000 / LOOK_MS && same < SETTLED_LOOKS; look++) {
        long now = words->waiting ? sleeps_of(pid) : -1;
        same = now >= 0 && now == before ? same + 1 : 0;
        before = now;
        if (waitpid(pid, NULL, WNOHANG | WNOWAIT) > 0)
            return;
        pause_ms(LOOK_MS);
    }
    if (same < SETTLED_LOOKS)
        say(" (never waited)");
}

/* "now" is since the row began, however long that takes; two clocks may differ by a second. */
void say_time(const char *what, long when)
{
    int is_of_row = when >= row_began - 1 && when <= (long)time(NULL) + 1;
    say(" %s=%s", what, when == 0 ? "0" : is_of_row ? "now" : "wrong");
}

void say_pid(const char *what, pid_t pid, pid_t child)
{
    const char *whose = pid == 0 ? "0" : pid == getpid() ? "mine" : "other";
    say(" %s=%s", what, child != 0 && pid == child ? "child" : whose);
}

static void count_one(int number)
{
    (void)number;
    signals_seen = signals_seen + 1;
}

void count_signals(int number, int flags)
{
    struct sigaction action = { .sa_handler = count_one, .sa_flags = flags };
    signals_seen = 0;
    if (sigaction(number, &action, NULL) < 0)
        die("sigaction");
}

/* What a row left behind under its keys goes, whatever became of it. */
static void sweep(void)
{
    for (int n = 0; n < KEYS_PER_ROW; n++) {
        int queue = msgget(row_key(n), get_flag());
        if (queue >= 0)
            msgctl(queue, IPC_RMID, NULL);
        int set = semget(row_key(n), 0, get_flag());
        if (set >= 0)
            semctl(set, 0, IPC_RMID);
        int segment = shmget(row_key(n), 0, get_flag());
        if (segment >= 0)
            shmctl(segment, IPC_RMID, NULL);
    }
}

static void run_row(const struct row *row)
{
    int status;
    memset(&pages[0], 0, sizeof pages[0]);
    row_began = time(NULL);
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        mine = &pages[0];
        alarm(ROW_SECONDS);
        row->run();
        _exit(0);
    }
    waitpid(pid, &status, 0);
    printf("%s:%s", row->name, pages[0].text);
    if (WIFSIGNALED(status))
        printf(" killed by signal %d", WTERMSIG(status));
    else if (WEXITSTATUS(status) != 0)
        printf(" ended with %d", WEXITSTATUS(status));
    printf("\n");
    fflush(stdout);
    sweep();
}

int run_rows(const struct row *rows, size_t count, int argc, char **argv)
{
    size_t bytes = sizeof *pages * CHILDREN;
    pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        die("mmap");
    if (argc > 1 && strcmp(argv[1], "--covers") == 0) {
        for (size_t i = 0; i < count; i++)
            printf("%s\n", rows[i].covers);
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        row_number = (int)i;
        if (argc < 2 || strcmp(argv[1], rows[i].name) == 0)
            run_row(&rows[i]);
    }
    return 0;
}
