/*
 * What the differential cases share. Each row runs in a process of its own and prints one line,
 *
 *     name: what=result ...
 *
 * that holds no id, pid or time of the machine, only relations between them. So the same program
 * run by the kernel, under libdipc with the object at home here, and under libdipc with the object
 * at home elsewhere must print the same lines.
 *
 * Environment: DIPC_TEST_FLAG, the extra flag of every *get (octal); DIPC_TEST_MAKER, the socket of
 * a maker (maker.c) on the node that shall be home; DIPC_TEST_KEY, the first key; DIPC_TEST_LIMIT,
 * how many objects of the kind home's kernel allows, when that is few enough to be tried.
 */
#ifndef CASES_H
#define CASES_H

#include <errno.h>
#include <stddef.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/types.h>

#ifndef MSG_COPY
#define MSG_COPY 040000
#endif
#ifndef MSG_STAT_ANY
#define MSG_STAT_ANY 13
#endif
#ifndef SEM_STAT_ANY
#define SEM_STAT_ANY 20
#endif
#ifndef SHM_STAT_ANY
#define SHM_STAT_ANY 15
#endif

enum { NOBODY = 65534, DAEMON = 1, KEYS_PER_ROW = 8 };

/* One case. `covers` names the call and the flags, commands and errnos it is the case for. */
struct row {
    const char *name;
    const char *covers;
    void (*run)(void);
};

/* The fourth argument of semctl(2), which the program has to declare itself. */
union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
    struct seminfo *info;
};

/* Main program: runs every row, or only the one named by the first argument. */
int run_rows(const struct row *rows, size_t count, int argc, char **argv);

/* The n-th key that belongs to the running row; the flag to add to each get. */
key_t row_key(int n);
int get_flag(void);

/* Adds words to the row's line. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Says `what=result`, and on failure the errno's name; also when success changed errno. */
long report(const char *what, long result);
#define TRY(what, call) (errno = 0, report((what), (long)(call)))
/* The same for a call that returns an id, which is not said. */
long report_id(const char *what, long result);
#define TRY_ID(what, call) (errno = 0, report_id((what), (long)(call)))

/* The name of an errno value. */
const char *errno_name(int number);

/* Creates an object at the place under test, as the user with that id, and gets it here. */
int make_queue_as(uid_t uid, key_t key, int flags);
int make_queue(key_t key, int flags);
int make_set_as(uid_t uid, key_t key, int count, int flags);
int make_set(key_t key, int count, int flags);
int make_segment_as(uid_t uid, key_t key, size_t bytes, int flags);
int make_segment(key_t key, size_t bytes, int flags);

/* How many objects the kernel at home allows, 0 when that is not to be tried. */
int object_limit(void);

/* Gives up root for good. False when there is nothing to give up: the row then says so and ends. */
int become(uid_t uid);

/* Runs `run` in a child; `finish_child` waits for it and takes over what it said. */
pid_t start_child(void (*run)(void));
void finish_child(const char *what, pid_t pid);

/* A child says that it is about to wait; its parent waits until it does wait. */
void about_to_wait(void);
void until_waiting(pid_t pid);

/* Says whether a time is 0, about now, or neither; whose a pid is. */
void say_time(const char *what, long when);
void say_pid(const char *what, pid_t pid, pid_t child);

/* Installs a handler that counts, with or without SA_RESTART; how often it ran. */
void count_signals(int number, int flags);
extern volatile int signals_seen;

#endif
