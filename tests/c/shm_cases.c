/*
 * shmget(2) and shmctl(2): one row for each flag, command and errno. What a program does with an
 * attachment stands in shm_map_cases.c. SHM_HUGETLB, SHM_NORESERVE and ENFILE differ by design or
 * cannot be provoked without harm; EIDRM is a race inside the kernel.
 */
#define _GNU_SOURCE
#include "cases.h"

#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void *const BAD = (void *)8;

static void remove_segment(int id) { TRY("rmid", shmctl(id, IPC_RMID, NULL)); }

static void say_nattch(int id)
{
    struct shmid_ds ds;
    if (shmctl(id, IPC_STAT, &ds) < 0)
        say(" nattch %s", errno_name(errno));
    else
        say(" nattch=%lu", (unsigned long)ds.shm_nattch);
}

static void say_state(const char *what, int id)
{
    struct shmid_ds ds;
    memset(&ds, 0, sizeof ds);
    if (TRY(what, shmctl(id, IPC_STAT, &ds)) < 0)
        return;
    say(" mode=%o uid=%d gid=%d cuid=%d cgid=%d segsz=%lu", ds.shm_perm.mode, ds.shm_perm.uid,
        ds.shm_perm.gid, ds.shm_perm.cuid, ds.shm_perm.cgid, (unsigned long)ds.shm_segsz);
    say(" key %s", ds.shm_perm.__key == row_key(0)  ? "mine"
                   : ds.shm_perm.__key == IPC_PRIVATE ? "private"
                                                       : "another");
    say(" nattch=%lu", (unsigned long)ds.shm_nattch);
    say_time("atime", ds.shm_atime);
    say_time("dtime", ds.shm_dtime);
    say_time("ctime", ds.shm_ctime);
    say_pid("lpid", ds.shm_lpid, 0);
}

static char *attach(const char *what, int id, int flags)
{
    errno = 0;
    char *address = shmat(id, NULL, flags);
    report(what, address == (char *)-1 ? -1 : 0);
    return address;
}

static void get_new(void)
{
    int id = TRY_ID("get", make_segment(row_key(0), 5000, 0640));
    say_state("stat", id);
    remove_segment(id);
}

static void get_sizes(void)
{
    static const size_t sizes[] = { 1, PAGE - 1, PAGE, PAGE + 1, 1 << 20, 100 << 20 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct shmid_ds ds = { 0 };
        int id = TRY_ID("get", make_segment(row_key(0), sizes[i], 0600));
        TRY("stat", shmctl(id, IPC_STAT, &ds));
        say(" segsz=%lu", (unsigned long)ds.shm_segsz);
        remove_segment(id);
    }
}

static void get_existing(void)
{
    int flag = get_flag(), id = TRY_ID("make", make_segment(row_key(0), 5000, 0600));
    say(" 0 %s", shmget(row_key(0), 0, flag) == id ? "same" : "different");
    say(" 5000 %s", shmget(row_key(0), 5000, flag) == id ? "same" : "different");
    say(" 1 %s", shmget(row_key(0), 1, IPC_CREAT | 0600 | flag) == id ? "same" : "different");
    say(" 0 creat %s", shmget(row_key(0), 0, IPC_CREAT | flag) == id ? "same" : "different");
    TRY_ID("excl-alone", shmget(row_key(0), 5000, IPC_EXCL | 0600 | flag));
    remove_segment(id);
    TRY_ID("gone", shmget(row_key(0), 5000, flag));
}

/* More than there is, though its last page has room. */
static void get_more(void)
{
    int flag = get_flag(), id = TRY_ID("make", make_segment(row_key(0), 5000, 0600));
    TRY_ID("5001", shmget(row_key(0), 5001, flag));
    TRY_ID("5001 creat", shmget(row_key(0), 5001, IPC_CREAT | 0600 | flag));
    TRY_ID("8192", shmget(row_key(0), 8192, flag));
    TRY_ID("most", shmget(row_key(0), SIZE_MAX, flag));
    TRY_ID("most creat", shmget(row_key(0), SIZE_MAX, IPC_CREAT | flag));
    remove_segment(id);
}

static void get_eexist(void)
{
    int flags = IPC_CREAT | IPC_EXCL | 0600;
    int id = TRY_ID("make", make_segment(row_key(0), PAGE, 0600));
    TRY_ID("excl", shmget(row_key(0), PAGE, flags | get_flag()));
    TRY_ID("excl more", shmget(row_key(0), 9 * PAGE, flags | get_flag()));
    TRY_ID("excl 0", shmget(row_key(0), 0, flags | get_flag()));
    TRY_ID("excl-make", make_segment(row_key(0), PAGE, IPC_EXCL | 0600));
    remove_segment(id);
    id = TRY_ID("excl-new", make_segment(row_key(0), PAGE, IPC_EXCL | 0600));
    remove_segment(id);
}

static void get_enoent(void)
{
    TRY_ID("get", shmget(row_key(0), PAGE, get_flag()));
    TRY_ID("0", shmget(row_key(0), 0, get_flag()));
    TRY_ID("most", shmget(row_key(0), SIZE_MAX, get_flag()));
    TRY_ID("excl", shmget(row_key(0), PAGE, IPC_EXCL | get_flag()));
}

static void get_einval(void)
{
    TRY_ID("0", make_segment(row_key(0), 0, 0600));
    TRY_ID("0 here", shmget(row_key(0), 0, IPC_CREAT | 0600 | get_flag()));
    TRY_ID("0 private", make_segment(IPC_PRIVATE, 0, 0600));
    TRY_ID("most", shmget(row_key(0), SIZE_MAX, IPC_CREAT | 0600 | get_flag()));
    TRY_ID("nothing came of it", shmget(row_key(0), 0, get_flag()));
}

/* No machine has a pebibyte to promise. */
static void get_enomem(void)
{
    TRY_ID("2^50", make_segment(row_key(0), (size_t)1 << 50, 0600));
    TRY_ID("nothing came of it", shmget(row_key(0), 0, get_flag()));
}

static void get_private(void)
{
    struct shmid_ds ds = { 0 };
    int one = TRY_ID("one", make_segment(IPC_PRIVATE, PAGE, 0600));
    int two = TRY_ID("two", make_segment(IPC_PRIVATE, PAGE, IPC_EXCL | 0600));
    say(" %s", one == two ? "same" : "different");
    char *at_one = attach("attach", one, 0), *at_two = attach("attach", two, 0);
    if (at_one != (char *)-1 && at_two != (char *)-1) {
        strcpy(at_one, "one");
        strcpy(at_two, "two");
        say(" %s %s", at_one, at_two);
    }
    TRY("stat", shmctl(one, IPC_STAT, &ds));
    say(" key=%d", (int)ds.shm_perm.__key);
    remove_segment(one);
    remove_segment(two);
}

static void get_eacces(void)
{
    int id = TRY_ID("make", make_segment(row_key(0), PAGE, 0604));
    if (become(NOBODY)) {
        TRY_ID("none", shmget(row_key(0), PAGE, get_flag()));
        TRY_ID("read", shmget(row_key(0), PAGE, 0004 | get_flag()));
        TRY_ID("read as owner", shmget(row_key(0), PAGE, 0400 | get_flag()));
        TRY_ID("write", shmget(row_key(0), PAGE, 0002 | get_flag()));
        TRY_ID("write, more", shmget(row_key(0), 2 * PAGE, 0002 | get_flag()));
        TRY_ID("read, more", shmget(row_key(0), 2 * PAGE, 0004 | get_flag()));
        TRY_ID("creat", shmget(row_key(0), PAGE, IPC_CREAT | 0666 | get_flag()));
        TRY_ID("excl", shmget(row_key(0), PAGE, IPC_CREAT | IPC_EXCL | 0666 | get_flag()));
        TRY("rmid", shmctl(id, IPC_RMID, NULL));
    }
}

static void get_other_creator(void)
{
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int id = make_segment_as(NOBODY, row_key(0), PAGE, 0600);
    say_state("stat", id);
    remove_segment(id);
}

static void get_enospc(void)
{
    int ids[64], made = 0, limit = object_limit();
    if (limit == 0 || limit > 64) {
        say(" not tried");
        return;
    }
    while (made < limit && (ids[made] = make_segment(IPC_PRIVATE, PAGE, 0600)) >= 0)
        made++;
    say(" made=%d", made);
    TRY_ID("next", make_segment(IPC_PRIVATE, PAGE, 0600));
    TRY_ID("next-key", make_segment(row_key(0), PAGE, 0600));
    TRY_ID("next-key, 0", make_segment(row_key(0), 0, 0600));
    for (int i = 0; i < made; i++)
        shmctl(ids[i], IPC_RMID, NULL);
    remove_segment(TRY_ID("after", make_segment(row_key(0), PAGE, 0600)));
}

/* A removed segment that somebody has attached keeps its data and loses its key. */
static void key_is_free_after_rmid(void)
{
    int old = make_segment(row_key(0), PAGE, 0600);
    char *at = attach("attach", old, 0);
    if (at == (char *)-1)
        return;
    strcpy(at, "old");
    remove_segment(old);
    say_state("stat", old);
    TRY_ID("get", shmget(row_key(0), 0, get_flag()));
    int new = TRY_ID("excl", make_segment(row_key(0), 2 * PAGE, IPC_EXCL | 0600));
    say(" %s", old == new ? "same" : "different");
    char *other = attach("attach new", new, 0);
    if (other != (char *)-1)
        say(" old=%s new=%s", at, other);
    char *again = attach("attach old", old, 0);
    if (again != (char *)-1)
        say(" again=%s", again);
    say_nattch(old);
    remove_segment(old);
    TRY("detach", shmdt(at));
    TRY("detach", shmdt(again));
    TRY("stat", shmctl(old, IPC_STAT, &(struct shmid_ds){ 0 }));
    attach("deleted", old, 0);
    say_nattch(new);
    remove_segment(new);
}

static void stat_of_attachments(void)
{
    int id = make_segment(row_key(0), 5000, 0600);
    say_state("new", id);
    char *at = attach("attach", id, 0);
    say_state("attached", id);
    TRY("detach", shmdt(at));
    say_state("detached", id);
    remove_segment(id);
}

/* Who attached or detached last; a child's end detaches. */
static void last_pid(void)
{
    struct shmid_ds ds = { 0 };
    int status, id = make_segment(row_key(0), PAGE, 0600);
    char *at = attach("attach", id, 0);
    pid_t child = fork();
    if (child == 0) {
        shmat(id, NULL, 0);
        _exit(0);
    }
    waitpid(child, &status, 0);
    TRY("stat", shmctl(id, IPC_STAT, &ds));
    say_pid("after its end", ds.shm_lpid, child);
    say(" cpid %s", ds.shm_cpid > 0 ? "set" : "not set");
    say_time("dtime", ds.shm_dtime);
    TRY("detach", shmdt(at));
    TRY("stat", shmctl(id, IPC_STAT, &ds));
    say_pid("after my detach", ds.shm_lpid, child);
    remove_segment(id);
}

static void ctl_einval(void)
{
    struct shmid_ds ds;
    int id = make_segment(row_key(0), PAGE, 0600);
    TRY("command 99", shmctl(id, 99, &ds));
    TRY("command -1", shmctl(id, -1, &ds));
    TRY("id -1", shmctl(-1, IPC_STAT, &ds));
    TRY("unknown id", shmctl(INT_MAX, IPC_STAT, &ds));
    TRY("unknown id set", shmctl(INT_MAX, IPC_SET, &ds));
    TRY("unknown id lock", shmctl(INT_MAX, SHM_LOCK, NULL));
    TRY("rmid -1", shmctl(-1, IPC_RMID, NULL));
    TRY("lock -1", shmctl(-1, SHM_LOCK, NULL));
    TRY("SHM_STAT -1", shmctl(-1, SHM_STAT, &ds));
    TRY("SHM_STAT far", shmctl(32767, SHM_STAT, &ds));
    TRY("SHM_STAT_ANY far", shmctl(32767, SHM_STAT_ANY, &ds));
    TRY("info -1", shmctl(-1, IPC_INFO, &ds));
    remove_segment(id);
    TRY("removed", shmctl(id, IPC_STAT, &ds));
    TRY("removed twice", shmctl(id, IPC_RMID, NULL));
    TRY("removed lock", shmctl(id, SHM_LOCK, NULL));
    TRY("removed set", shmctl(id, IPC_SET, &ds));
}

static void ctl_efault(void)
{
    int id = make_segment(row_key(0), PAGE, 0600);
    TRY("stat", shmctl(id, IPC_STAT, BAD));
    TRY("stat null", shmctl(id, IPC_STAT, NULL));
    TRY("set", shmctl(id, IPC_SET, BAD));
    TRY("info", shmctl(0, IPC_INFO, BAD));
    TRY("shm_info", shmctl(0, SHM_INFO, BAD));
    TRY("stat, bad id", shmctl(-1, IPC_STAT, BAD));
    TRY("set, bad id", shmctl(-1, IPC_SET, BAD));
    TRY("lock", shmctl(id, SHM_LOCK, BAD));
    TRY("unlock", shmctl(id, SHM_UNLOCK, BAD));
    TRY("rmid", shmctl(id, IPC_RMID, BAD));
}

static void ctl_eacces(void)
{
    struct shmid_ds ds;
    int id = make_segment(row_key(0), PAGE, 0622);
    if (!become(NOBODY))
        return;
    TRY("stat", shmctl(id, IPC_STAT, &ds));
    TRY("stat bad", shmctl(id, IPC_STAT, BAD));
}

static void set_state(void)
{
    struct shmid_ds ds;
    int id = make_segment(row_key(0), PAGE, 0600);
    shmctl(id, IPC_STAT, &ds);
    ds.shm_perm.mode = 0177751;
    ds.shm_perm.cuid = 77;
    ds.shm_segsz = 77;
    ds.shm_nattch = 77;
    ds.shm_cpid = 77;
    TRY("set", shmctl(id, IPC_SET, &ds));
    say_state("stat", id);
    remove_segment(id);
}

static void set_owner(void)
{
    struct shmid_ds ds;
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int id = make_segment(row_key(0), PAGE, 0600);
    shmctl(id, IPC_STAT, &ds);
    ds.shm_perm.uid = ds.shm_perm.gid = NOBODY;
    TRY("set", shmctl(id, IPC_SET, &ds));
    say_state("stat", id);
    become(NOBODY);
    char *at = attach("attach", id, 0);
    ds.shm_perm.mode = 0;
    TRY("set by owner", shmctl(id, IPC_SET, &ds));
    attach("attach", id, 0);
    TRY("detach", shmdt(at));
    TRY("stat", shmctl(id, IPC_STAT, &ds));
    remove_segment(id);
}

static void set_eperm(void)
{
    struct shmid_ds ds;
    int id = make_segment(row_key(0), PAGE, 0666);
    if (become(NOBODY)) {
        TRY("stat", shmctl(id, IPC_STAT, &ds));
        TRY("set", shmctl(id, IPC_SET, &ds));
        TRY("set bad", shmctl(id, IPC_SET, BAD));
        TRY("rmid", shmctl(id, IPC_RMID, NULL));
        TRY("lock", shmctl(id, SHM_LOCK, NULL));
        TRY("unlock", shmctl(id, SHM_UNLOCK, NULL));
        attach("attach", id, 0);
    }
}

/* What IPC_SET leaves of the mode's other bits. */
static void set_keeps_dest(void)
{
    struct shmid_ds ds;
    int id = make_segment(row_key(0), PAGE, 0600);
    char *at = attach("attach", id, 0);
    remove_segment(id);
    shmctl(id, IPC_STAT, &ds);
    ds.shm_perm.mode = 0640;
    TRY("set", shmctl(id, IPC_SET, &ds));
    say_state("stat", id);
    TRY("detach", shmdt(at));
    TRY("stat", shmctl(id, IPC_STAT, &ds));
}

static void lock(void)
{
    struct shmid_ds ds;
    int id = make_segment(row_key(0), 2 * PAGE, 0600);
    TRY("lock", shmctl(id, SHM_LOCK, NULL));
    say_state("stat", id);
    TRY("lock again", shmctl(id, SHM_LOCK, NULL));
    char *at = attach("attach", id, 0);
    if (at != (char *)-1)
        strcpy(at, "locked");
    shmctl(id, IPC_STAT, &ds);
    TRY("set", shmctl(id, IPC_SET, &ds));
    TRY("unlock", shmctl(id, SHM_UNLOCK, NULL));
    say_state("stat", id);
    TRY("unlock again", shmctl(id, SHM_UNLOCK, NULL));
    remove_segment(id);
    TRY("lock removed", shmctl(id, SHM_LOCK, NULL));
    say_state("stat", id);
}

static void lock_eperm(void)
{
    struct rlimit none = { 0, 0 };
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int id = make_segment_as(NOBODY, row_key(0), PAGE, 0666);
    if (!become(NOBODY))
        return;
    TRY("lock own", shmctl(id, SHM_LOCK, NULL));
    TRY("unlock own", shmctl(id, SHM_UNLOCK, NULL));
    setrlimit(RLIMIT_MEMLOCK, &none);
    TRY("lock without a limit", shmctl(id, SHM_LOCK, NULL));
    TRY("unlock without a limit", shmctl(id, SHM_UNLOCK, NULL));
    remove_segment(id);
}

static void lock_enomem(void)
{
    struct rlimit few = { PAGE, PAGE };
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int id = make_segment_as(NOBODY, row_key(0), 64 * PAGE, 0666);
    if (!become(NOBODY))
        return;
    setrlimit(RLIMIT_MEMLOCK, &few);
    TRY("lock more than the limit", shmctl(id, SHM_LOCK, NULL));
    say_state("stat", id);
    remove_segment(id);
}

static void rmid_eperm(void)
{
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int mine = make_segment_as(NOBODY, row_key(0), PAGE, 0600);
    int others = make_segment_as(DAEMON, row_key(1), PAGE, 0666);
    if (become(NOBODY)) {
        remove_segment(others);
        remove_segment(mine);
    }
}

static void info(void)
{
    struct shminfo info;
    memset(&info, 0, sizeof info);
    int highest = shmctl(0, IPC_INFO, (void *)&info);
    say(" %s shmmax=%lu", highest >= 0 ? "ok" : errno_name(errno), (unsigned long)info.shmmax);
    say(" shmmin=%lu shmall=%lu", (unsigned long)info.shmmin, (unsigned long)info.shmall);
    say(" shmseg %s", info.shmseg == info.shmmni ? "as shmmni" : "another");
}

static void info_use(void)
{
    struct shm_info before, with, after;
    shmctl(0, SHM_INFO, (void *)&before);
    int id = make_segment(row_key(0), 2 * PAGE + 1, 0600);
    TRY_ID("get", shmget(row_key(0), 0, get_flag()));
    shmctl(0, SHM_INFO, (void *)&with);
    remove_segment(id);
    shmctl(0, SHM_INFO, (void *)&after);
    say(" segments+%d pages+%lu", with.used_ids - before.used_ids, with.shm_tot - before.shm_tot);
    say(" segments+%d pages+%lu", after.used_ids - before.used_ids, after.shm_tot - before.shm_tot);
    say(" swapped %lu %lu %lu", after.shm_swp, after.swap_attempts, after.swap_successes);
}

/* Walks the indexes as ipcs(1) does, and says how often our segment was met. */
static void walk(const char *what, int command, int id)
{
    struct shmid_ds ds;
    struct shm_info info;
    int met = 0, refused = 0;
    int highest = shmctl(0, SHM_INFO, (void *)&info);
    for (int index = 0; index <= highest; index++) {
        int found = shmctl(index, command, &ds);
        if (found < 0 && errno == EACCES)
            refused++;
        if (found != id)
            continue;
        met++;
        say(" %s:%s segsz=%lu", what, ds.shm_perm.__key == row_key(0) ? "my key" : "another key",
            (unsigned long)ds.shm_segsz);
    }
    say(" met=%d refused=%d", met, refused);
}

static void stat_by_index(void)
{
    int id = make_segment(row_key(0), 2 * PAGE, 0622);
    walk("stat", SHM_STAT, id);
    walk("any", SHM_STAT_ANY, id);
    if (become(NOBODY)) {
        walk("stat", SHM_STAT, id);
        walk("any", SHM_STAT_ANY, id);
    }
}

static const struct row ROWS[] = {
    { "get_new", "shmget IPC_CREAT mode shmctl IPC_STAT", get_new },
    { "get_sizes", "shmget IPC_CREAT", get_sizes },
    { "get_existing", "shmget IPC_CREAT", get_existing },
    { "get_more", "shmget EINVAL", get_more },
    { "get_eexist", "shmget IPC_EXCL EEXIST", get_eexist },
    { "get_enoent", "shmget ENOENT", get_enoent },
    { "get_einval", "shmget EINVAL", get_einval },
    { "get_enomem", "shmget ENOMEM", get_enomem },
    { "get_private", "shmget IPC_PRIVATE", get_private },
    { "get_eacces", "shmget EACCES", get_eacces },
    { "get_other_creator", "shmget mode", get_other_creator },
    { "get_enospc", "shmget ENOSPC", get_enospc },
    { "key_is_free_after_rmid", "shmctl IPC_RMID shmat EINVAL", key_is_free_after_rmid },
    { "stat_of_attachments", "shmctl IPC_STAT", stat_of_attachments },
    { "last_pid", "shmctl IPC_STAT", last_pid },
    { "ctl_einval", "shmctl EINVAL", ctl_einval },
    { "ctl_efault", "shmctl EFAULT", ctl_efault },
    { "ctl_eacces", "shmctl IPC_STAT EACCES", ctl_eacces },
    { "set_state", "shmctl IPC_SET", set_state },
    { "set_owner", "shmctl IPC_SET", set_owner },
    { "set_eperm", "shmctl IPC_SET IPC_RMID EPERM", set_eperm },
    { "set_keeps_dest", "shmctl IPC_SET IPC_RMID", set_keeps_dest },
    { "lock", "shmctl SHM_LOCK SHM_UNLOCK", lock },
    { "lock_eperm", "shmctl SHM_LOCK SHM_UNLOCK EPERM", lock_eperm },
    { "lock_enomem", "shmctl SHM_LOCK ENOMEM", lock_enomem },
    { "rmid_eperm", "shmctl IPC_RMID EPERM", rmid_eperm },
    { "info", "shmctl IPC_INFO", info },
    { "info_use", "shmctl SHM_INFO", info_use },
    { "stat_by_index", "shmctl SHM_STAT SHM_STAT_ANY EACCES", stat_by_index },
};

int main(int argc, char **argv)
{
    return run_rows(ROWS, sizeof ROWS / sizeof *ROWS, argc, argv);
}
