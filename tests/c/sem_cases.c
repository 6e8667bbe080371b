/*
 * semget(2), semop(2) and semctl(2): one row for each flag, command and errno that does not need
 * a process to wait (those are in sem_wait_cases.c). ENOMEM cannot be provoked without harm.
 */
#define _GNU_SOURCE
#include "cases.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MANY = 4096 };

static void *const BAD = (void *)8;

static long operate(const char *what, int id, unsigned short number, short op, short flags)
{
    struct sembuf buf = { number, op, flags };
    return TRY(what, semop(id, &buf, 1));
}

static void say_values(int id)
{
    unsigned short values[8] = { 0 };
    struct semid_ds ds;
    union semun argument = { .buf = &ds };
    if (semctl(id, 0, IPC_STAT, argument) < 0) {
        say(" stat %s", errno_name(errno));
        return;
    }
    argument.array = values;
    if (ds.sem_nsems > 8 || semctl(id, 0, GETALL, argument) < 0) {
        say(" getall %s", errno_name(errno));
        return;
    }
    say(" values");
    for (unsigned i = 0; i < ds.sem_nsems; i++)
        say(":%d", values[i]);
}

static void set_value(int id, int number, int value)
{
    TRY("setval", semctl(id, number, SETVAL, (union semun){ .val = value }));
}

static void remove_set(int id) { TRY("rmid", semctl(id, 0, IPC_RMID)); }

static void say_state(const char *what, int id)
{
    struct semid_ds ds;
    memset(&ds, 0, sizeof ds);
    if (TRY(what, semctl(id, 0, IPC_STAT, (union semun){ .buf = &ds })) < 0)
        return;
    say(" mode=%o uid=%d gid=%d cuid=%d cgid=%d nsems=%lu", ds.sem_perm.mode, ds.sem_perm.uid,
        ds.sem_perm.gid, ds.sem_perm.cuid, ds.sem_perm.cgid, (unsigned long)ds.sem_nsems);
    say(" key %s", ds.sem_perm.__key == row_key(0) ? "mine" : "another");
    say_time("otime", ds.sem_otime);
    say_time("ctime", ds.sem_ctime);
}

static void get_new(void)
{
    int id = TRY_ID("get", make_set(row_key(0), 3, 0640));
    say_state("stat", id);
    say_values(id);
    remove_set(id);
}

static void get_existing(void)
{
    int id = TRY_ID("make", make_set(row_key(0), 3, 0600));
    say(" 0 %s", semget(row_key(0), 0, get_flag()) == id ? "same" : "different");
    say(" 3 %s", semget(row_key(0), 3, get_flag()) == id ? "same" : "different");
    say(" 1 %s", semget(row_key(0), 1, IPC_CREAT | 0600 | get_flag()) == id ? "same" : "different");
    TRY_ID("4", semget(row_key(0), 4, get_flag()));
    TRY_ID("excl-alone", semget(row_key(0), 3, IPC_EXCL | 0600 | get_flag()));
    remove_set(id);
    TRY_ID("gone", semget(row_key(0), 3, get_flag()));
}

static void get_eexist(void)
{
    int id = TRY_ID("make", make_set(row_key(0), 1, 0600));
    TRY_ID("excl", semget(row_key(0), 1, IPC_CREAT | IPC_EXCL | 0600 | get_flag()));
    TRY_ID("excl more", semget(row_key(0), 9, IPC_CREAT | IPC_EXCL | 0600 | get_flag()));
    TRY_ID("excl-make", make_set(row_key(0), 1, IPC_EXCL | 0600));
    remove_set(id);
    id = TRY_ID("excl-new", make_set(row_key(0), 1, IPC_EXCL | 0600));
    remove_set(id);
}

static void get_enoent(void)
{
    TRY_ID("get", semget(row_key(0), 1, get_flag()));
    TRY_ID("none", semget(row_key(0), 0, get_flag()));
    TRY_ID("excl", semget(row_key(0), 1, IPC_EXCL | get_flag()));
}

static void get_einval(void)
{
    TRY_ID("0", make_set(row_key(0), 0, 0600));
    TRY_ID("-1", make_set(row_key(0), -1, 0600));
    TRY_ID("-1 here", semget(row_key(0), -1, get_flag()));
    TRY_ID("32001", make_set(row_key(0), 32001, 0600));
    TRY_ID("32001 here", semget(row_key(0), 32001, get_flag()));
    int id = TRY_ID("make", make_set(row_key(0), 2, 0600));
    TRY_ID("more", semget(row_key(0), 3, get_flag()));
    TRY_ID("far more", semget(row_key(0), INT_MAX, get_flag()));
    TRY_ID("far more, excl", make_set(row_key(0), 32001, IPC_EXCL | 0600));
    remove_set(id);
}

static void get_private(void)
{
    int one = TRY_ID("one", make_set(IPC_PRIVATE, 1, 0600));
    int two = TRY_ID("two", make_set(IPC_PRIVATE, 1, 0600));
    say(" %s", one == two ? "same" : "different");
    set_value(one, 0, 5);
    say_values(two);
    say_values(one);
    remove_set(one);
    remove_set(two);
}

static void get_eacces(void)
{
    int id = TRY_ID("make", make_set(row_key(0), 1, 0604));
    if (become(NOBODY)) {
        TRY_ID("none", semget(row_key(0), 1, get_flag()));
        TRY_ID("read", semget(row_key(0), 1, 0004 | get_flag()));
        TRY_ID("alter", semget(row_key(0), 1, 0002 | get_flag()));
        TRY_ID("alter, more", semget(row_key(0), 2, 0002 | get_flag()));
        TRY_ID("creat", semget(row_key(0), 1, IPC_CREAT | 0666 | get_flag()));
        TRY("rmid", semctl(id, 0, IPC_RMID));
    }
}

static void get_other_creator(void)
{
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int id = make_set_as(NOBODY, row_key(0), 1, 0600);
    say_state("stat", id);
    remove_set(id);
}

static void get_enospc(void)
{
    int ids[64], made = 0, limit = object_limit();
    if (limit == 0 || limit > 64) {
        say(" not tried");
        return;
    }
    while (made < limit && (ids[made] = make_set(IPC_PRIVATE, 1, 0600)) >= 0)
        made++;
    say(" made=%d", made);
    TRY_ID("next", make_set(IPC_PRIVATE, 1, 0600));
    TRY_ID("next-key", make_set(row_key(0), 1, 0600));
    for (int i = 0; i < made; i++)
        semctl(ids[i], 0, IPC_RMID);
    remove_set(TRY_ID("after", make_set(row_key(0), 1, 0600)));
}

static void add_and_take(void)
{
    int id = make_set(row_key(0), 2, 0600);
    operate("+3", id, 0, 3, 0);
    operate("-1", id, 0, -1, 0);
    operate("-2", id, 0, -2, IPC_NOWAIT);
    operate("0", id, 0, 0, 0);
    operate("+1", id, 1, 1, 0);
    say_values(id);
    say_state("stat", id);
    remove_set(id);
}

static void several_at_once(void)
{
    struct sembuf both[] = { { 0, 2, 0 }, { 1, 1, 0 } };
    struct sembuf one_fails[] = { { 0, -1, 0 }, { 1, -2, IPC_NOWAIT } };
    struct sembuf same_twice[] = { { 0, -2, IPC_NOWAIT }, { 0, 0, IPC_NOWAIT }, { 0, 7, 0 } };
    int id = make_set(row_key(0), 2, 0600);
    TRY("both", semop(id, both, 2));
    say_values(id);
    TRY("one fails", semop(id, one_fails, 2));
    say_values(id);
    TRY("same twice", semop(id, same_twice, 3));
    say_values(id);
    remove_set(id);
}

static void eagain(void)
{
    int id = make_set(row_key(0), 1, 0600);
    operate("-1", id, 0, -1, IPC_NOWAIT);
    set_value(id, 0, 1);
    operate("0", id, 0, 0, IPC_NOWAIT);
    operate("-2", id, 0, -2, IPC_NOWAIT);
    say_values(id);
    remove_set(id);
}

static void timed(void)
{
    struct sembuf down = { 0, -1, 0 }, down_now = { 0, -1, IPC_NOWAIT };
    struct timespec none = { 0, 0 }, some = { 0, 50000000 }, before, after;
    struct timespec negative = { -1, 0 }, too_many = { 0, 1000000000 };
    int id = make_set(row_key(0), 1, 0600);
    TRY("none", semtimedop(id, &down, 1, &none));
    clock_gettime(CLOCK_MONOTONIC, &before);
    TRY("50 ms", semtimedop(id, &down, 1, &some));
    clock_gettime(CLOCK_MONOTONIC, &after);
    long waited_ms = (after.tv_sec - before.tv_sec) * 1000;
    waited_ms += (after.tv_nsec - before.tv_nsec) / 1000000;
    say(" waited %s", waited_ms >= 50 && waited_ms < 15000 ? "about that" : "another time");
    TRY("nowait", semtimedop(id, &down_now, 1, &some));
    TRY("negative", semtimedop(id, &down, 1, &negative));
    TRY("too many ns", semtimedop(id, &down, 1, &too_many));
    TRY("bad", semtimedop(id, &down, 1, BAD));
    set_value(id, 0, 2);
    TRY("possible, none", semtimedop(id, &down, 1, &none));
    TRY("possible, null", semtimedop(id, &down, 1, NULL));
    TRY("possible, negative", semtimedop(id, &down, 1, &negative));
    say_values(id);
    remove_set(id);
}

static void operations_e2big(void)
{
    static struct sembuf many[MANY];
    struct seminfo info;
    int id = make_set(row_key(0), 1, 0600);
    semctl(0, 0, IPC_INFO, (union semun){ .info = &info });
    int most = info.semopm;
    if (most >= MANY) {
        say(" semopm is more than this case can hold");
        remove_set(id);
        return;
    }
    for (int i = 0; i < most + 1; i++)
        many[i].sem_op = 1;
    TRY("most", semop(id, many, (size_t)most));
    TRY("one more", semop(id, many, (size_t)most + 1));
    TRY("huge", semop(id, many, (size_t)-1));
    TRY("none", semop(id, many, 0));
    say_values(id);
    remove_set(id);
}

static void efbig(void)
{
    struct sembuf second_is_far[] = { { 0, 1, 0 }, { 2, 1, 0 } };
    int id = make_set(row_key(0), 2, 0600);
    operate("2", id, 2, 1, 0);
    operate("65535", id, 65535, 1, IPC_NOWAIT);
    TRY("second", semop(id, second_is_far, 2));
    say_values(id);
    remove_set(id);
}

static void erange(void)
{
    int id = make_set(row_key(0), 1, 0600);
    set_value(id, 0, 32767);
    operate("+1", id, 0, 1, 0);
    set_value(id, 0, 32768);
    set_value(id, 0, -1);
    set_value(id, 0, 0);
    operate("+32767", id, 0, 32767, 0);
    operate("-32768", id, 0, -32768, IPC_NOWAIT);
    say_values(id);
    remove_set(id);
}

/* The sum of adjustments of one process is bounded as well. */
static void erange_of_undo(void)
{
    int id = make_set(row_key(0), 1, 0600);
    operate("+32767 undo", id, 0, 32767, SEM_UNDO);
    operate("-32767", id, 0, -32767, 0);
    operate("+1 undo", id, 0, 1, SEM_UNDO);
    operate("+2 undo", id, 0, 2, SEM_UNDO);
    say_values(id);
    remove_set(id);
}

static void setall_erange(void)
{
    unsigned short values[] = { 1, 32768 };
    int id = make_set(row_key(0), 2, 0600);
    TRY("setall", semctl(id, 0, SETALL, (union semun){ .array = values }));
    say_values(id);
    values[1] = 32767;
    TRY("setall", semctl(id, 0, SETALL, (union semun){ .array = values }));
    say_values(id);
    remove_set(id);
}

static void operate_einval(void)
{
    struct sembuf up = { 0, 1, 0 };
    int id = make_set(row_key(0), 1, 0600);
    TRY("id -1", semop(-1, &up, 1));
    TRY("unknown id", semop(INT_MAX, &up, 1));
    TRY("no operation", semop(id, &up, 0));
    TRY("no operation, bad", semop(id, BAD, 0));
    remove_set(id);
    TRY("removed", semop(id, &up, 1));
}

static void operate_efault(void)
{
    int id = make_set(row_key(0), 1, 0600);
    TRY("null", semop(id, NULL, 1));
    TRY("bad", semop(id, BAD, 1));
    TRY("bad, bad id", semop(-1, BAD, 1));
    TRY("bad, too many", semop(id, BAD, 100000));
    remove_set(id);
}

static void operate_eacces(void)
{
    int id = make_set(row_key(0), 1, 0644);
    if (become(NOBODY)) {
        operate("alter", id, 0, 1, 0);
        operate("wait for zero", id, 0, 0, IPC_NOWAIT);
        TRY("getval", semctl(id, 0, GETVAL));
        set_value(id, 0, 1);
    }
}

static void read_eacces(void)
{
    unsigned short values[1] = { 4 };
    struct semid_ds ds;
    int id = make_set(row_key(0), 1, 0622);
    if (!become(NOBODY))
        return;
    operate("alter", id, 0, 1, 0);
    operate("wait for zero", id, 0, 0, IPC_NOWAIT);
    TRY("getval", semctl(id, 0, GETVAL));
    TRY("getpid", semctl(id, 0, GETPID));
    TRY("getncnt", semctl(id, 0, GETNCNT));
    TRY("getzcnt", semctl(id, 0, GETZCNT));
    TRY("getall", semctl(id, 0, GETALL, (union semun){ .array = values }));
    TRY("stat", semctl(id, 0, IPC_STAT, (union semun){ .buf = &ds }));
    TRY("setall", semctl(id, 0, SETALL, (union semun){ .array = values }));
}

static void values(void)
{
    unsigned short given[] = { 4, 5, 6 }, got[3] = { 0 };
    int id = make_set(row_key(0), 3, 0600);
    TRY("setall", semctl(id, 0, SETALL, (union semun){ .array = given }));
    say_state("stat", id);
    TRY("getall", semctl(id, 0, GETALL, (union semun){ .array = got }));
    say(" %d:%d:%d", got[0], got[1], got[2]);
    set_value(id, 1, 9);
    TRY("getval", semctl(id, 1, GETVAL));
    TRY("getval 3", semctl(id, 3, GETVAL));
    TRY("getval -1", semctl(id, -1, GETVAL));
    TRY("setval 3", semctl(id, 3, SETVAL, (union semun){ .val = 1 }));
    TRY("setval -1", semctl(id, -1, SETVAL, (union semun){ .val = 1 }));
    TRY("getncnt 3", semctl(id, 3, GETNCNT));
    TRY("getzcnt 3", semctl(id, 3, GETZCNT));
    TRY("getpid 3", semctl(id, 3, GETPID));
    remove_set(id);
}

static void great_set(void)
{
    static unsigned short given[1000], got[1000];
    int id = make_set(row_key(0), 1000, 0600);
    for (int i = 0; i < 1000; i++)
        given[i] = (unsigned short)(i * 3);
    TRY("setall", semctl(id, 0, SETALL, (union semun){ .array = given }));
    TRY("getall", semctl(id, 0, GETALL, (union semun){ .array = got }));
    say(" %s", memcmp(given, got, sizeof given) == 0 ? "equal" : "changed");
    operate("last", id, 999, -2997, IPC_NOWAIT);
    TRY("getval", semctl(id, 999, GETVAL));
    remove_set(id);
}

static void last_pid(void)
{
    int id = make_set(row_key(0), 2, 0600);
    say_pid("new", semctl(id, 0, GETPID), 0);
    operate("+1", id, 0, 1, 0);
    say_pid("me", semctl(id, 0, GETPID), 0);
    pid_t child = fork();
    if (child == 0) {
        struct sembuf up = { 0, 1, 0 };
        _exit(semop(id, &up, 1) != 0);
    }
    waitpid(child, NULL, 0);
    say_pid("child", semctl(id, 0, GETPID), child);
    set_value(id, 1, 3);
    say_pid("after setval", semctl(id, 1, GETPID), child);
    remove_set(id);
}

static void ctl_efault(void)
{
    int id = make_set(row_key(0), 1, 0600);
    TRY("stat", semctl(id, 0, IPC_STAT, (union semun){ .buf = BAD }));
    TRY("set", semctl(id, 0, IPC_SET, (union semun){ .buf = BAD }));
    TRY("getall", semctl(id, 0, GETALL, (union semun){ .array = BAD }));
    TRY("setall", semctl(id, 0, SETALL, (union semun){ .array = BAD }));
    TRY("info", semctl(0, 0, IPC_INFO, (union semun){ .info = BAD }));
    TRY("sem_info", semctl(0, 0, SEM_INFO, (union semun){ .info = BAD }));
    TRY("stat, bad id", semctl(-1, 0, IPC_STAT, (union semun){ .buf = BAD }));
    TRY("set, bad id", semctl(-1, 0, IPC_SET, (union semun){ .buf = BAD }));
    say_values(id);
    remove_set(id);
}

static void ctl_einval(void)
{
    struct semid_ds ds;
    union semun buf = { .buf = &ds };
    int id = make_set(row_key(0), 1, 0600);
    TRY("command 99", semctl(id, 0, 99, buf));
    TRY("command -1", semctl(id, 0, -1, buf));
    TRY("id -1", semctl(-1, 0, IPC_STAT, buf));
    TRY("unknown id", semctl(INT_MAX, 0, GETVAL));
    TRY("rmid -1", semctl(-1, 0, IPC_RMID));
    TRY("SEM_STAT -1", semctl(-1, 0, SEM_STAT, buf));
    TRY("SEM_STAT far", semctl(32767, 0, SEM_STAT, buf));
    TRY("SEM_STAT_ANY far", semctl(32767, 0, SEM_STAT_ANY, buf));
    remove_set(id);
    TRY("removed", semctl(id, 0, IPC_STAT, buf));
    TRY("removed twice", semctl(id, 0, IPC_RMID));
    TRY("removed value", semctl(id, 0, GETVAL));
}

static void set_state(void)
{
    struct semid_ds ds;
    union semun buf = { .buf = &ds };
    int id = make_set(row_key(0), 1, 0600);
    semctl(id, 0, IPC_STAT, buf);
    ds.sem_perm.mode = 0177751;
    ds.sem_perm.cuid = 77;
    ds.sem_nsems = 77;
    TRY("set", semctl(id, 0, IPC_SET, buf));
    say_state("stat", id);
    remove_set(id);
}

static void set_owner(void)
{
    struct semid_ds ds;
    union semun buf = { .buf = &ds };
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int id = make_set(row_key(0), 1, 0600);
    semctl(id, 0, IPC_STAT, buf);
    ds.sem_perm.uid = ds.sem_perm.gid = NOBODY;
    TRY("set", semctl(id, 0, IPC_SET, buf));
    say_state("stat", id);
    become(NOBODY);
    operate("+1", id, 0, 1, 0);
    ds.sem_perm.mode = 0;
    TRY("set by owner", semctl(id, 0, IPC_SET, buf));
    operate("+1", id, 0, 1, 0);
    remove_set(id);
}

static void set_eperm(void)
{
    struct semid_ds ds;
    union semun buf = { .buf = &ds };
    int id = make_set(row_key(0), 1, 0666);
    if (become(NOBODY)) {
        TRY("stat", semctl(id, 0, IPC_STAT, buf));
        TRY("set", semctl(id, 0, IPC_SET, buf));
        TRY("rmid", semctl(id, 0, IPC_RMID));
    }
}

static void info(void)
{
    struct seminfo info;
    memset(&info, 0, sizeof info);
    int highest = semctl(0, 0, IPC_INFO, (union semun){ .info = &info });
    say(" %s semmsl=%d", highest >= 0 ? "ok" : errno_name(errno), info.semmsl);
    say(" semopm=%d semume=%d", info.semopm, info.semume);
    say(" semvmx=%d semaem=%d", info.semvmx, info.semaem);
}

static void info_use(void)
{
    struct seminfo before, with, after;
    semctl(0, 0, SEM_INFO, (union semun){ .info = &before });
    int id = make_set(row_key(0), 3, 0600);
    TRY_ID("get", semget(row_key(0), 0, get_flag()));
    semctl(0, 0, SEM_INFO, (union semun){ .info = &with });
    remove_set(id);
    semctl(0, 0, SEM_INFO, (union semun){ .info = &after });
    say(" sets+%d semaphores+%d", with.semusz - before.semusz, with.semaem - before.semaem);
    say(" sets+%d semaphores+%d", after.semusz - before.semusz, after.semaem - before.semaem);
}

/* Walks the indexes as ipcs(1) does, and says how often our set was met. */
static void walk(const char *what, int command, int id)
{
    struct semid_ds ds;
    struct seminfo info;
    int met = 0, refused = 0;
    int highest = semctl(0, 0, SEM_INFO, (union semun){ .info = &info });
    for (int index = 0; index <= highest; index++) {
        int found = semctl(index, 0, command, (union semun){ .buf = &ds });
        if (found < 0 && errno == EACCES)
            refused++;
        if (found != id)
            continue;
        met++;
        say(" %s:%s nsems=%lu", what, ds.sem_perm.__key == row_key(0) ? "my key" : "another key",
            (unsigned long)ds.sem_nsems);
    }
    say(" met=%d refused=%d", met, refused);
}

static void stat_by_index(void)
{
    int id = make_set(row_key(0), 2, 0622);
    walk("stat", SEM_STAT, id);
    walk("any", SEM_STAT_ANY, id);
    if (become(NOBODY)) {
        walk("stat", SEM_STAT, id);
        walk("any", SEM_STAT_ANY, id);
    }
}

static const struct row ROWS[] = {
    { "get_new", "semget IPC_CREAT mode", get_new },
    { "get_existing", "semget IPC_CREAT EINVAL", get_existing },
    { "get_eexist", "semget IPC_EXCL EEXIST", get_eexist },
    { "get_enoent", "semget ENOENT", get_enoent },
    { "get_einval", "semget EINVAL", get_einval },
    { "get_private", "semget IPC_PRIVATE", get_private },
    { "get_eacces", "semget EACCES", get_eacces },
    { "get_other_creator", "semget mode", get_other_creator },
    { "get_enospc", "semget ENOSPC", get_enospc },
    { "add_and_take", "semop sem_op>0 sem_op<0 sem_op=0", add_and_take },
    { "several_at_once", "semop several", several_at_once },
    { "eagain", "semop IPC_NOWAIT EAGAIN", eagain },
    { "timed", "semtimedop EAGAIN EINVAL EFAULT", timed },
    { "operations_e2big", "semop E2BIG", operations_e2big },
    { "efbig", "semop EFBIG", efbig },
    { "erange", "semop semctl ERANGE", erange },
    { "erange_of_undo", "semop SEM_UNDO ERANGE", erange_of_undo },
    { "setall_erange", "semctl SETALL ERANGE", setall_erange },
    { "operate_einval", "semop EINVAL", operate_einval },
    { "operate_efault", "semop EFAULT", operate_efault },
    { "operate_eacces", "semop semctl SETVAL EACCES", operate_eacces },
    { "read_eacces", "semctl GETVAL GETPID GETNCNT GETZCNT GETALL IPC_STAT EACCES", read_eacces },
    { "values", "semctl GETALL SETALL GETVAL SETVAL EINVAL", values },
    { "great_set", "semctl GETALL SETALL", great_set },
    { "last_pid", "semctl GETPID", last_pid },
    { "ctl_efault", "semctl EFAULT", ctl_efault },
    { "ctl_einval", "semctl EINVAL", ctl_einval },
    { "set_state", "semctl IPC_SET", set_state },
    { "set_owner", "semctl IPC_SET", set_owner },
    { "set_eperm", "semctl IPC_SET IPC_RMID EPERM", set_eperm },
    { "info", "semctl IPC_INFO", info },
    { "info_use", "semctl SEM_INFO", info_use },
    { "stat_by_index", "semctl SEM_STAT SEM_STAT_ANY EACCES", stat_by_index },
};

int main(int argc, char **argv)
{
    return run_rows(ROWS, sizeof ROWS / sizeof *ROWS, argc, argv);
}
