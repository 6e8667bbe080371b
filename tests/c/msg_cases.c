/*
 * msgget(2), msgop(2) and msgctl(2): one row for each flag, command and errno that does not need
 * a process to wait (those are in msg_wait_cases.c). ENOMEM cannot be provoked without harm.
 */
#define _GNU_SOURCE
#include "cases.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TEXT_BYTES = 65536 };

struct message {
    long type;
    char text[TEXT_BYTES];
};

static struct message out, in;

static void *const BAD = (void *)8;

static long put(const char *what, int id, long type, const char *text, int flags)
{
    out.type = type;
    strcpy(out.text, text);
    return TRY(what, msgsnd(id, &out, strlen(text), flags));
}

static long take(const char *what, int id, size_t size, long type, int flags)
{
    memset(&in, 0, sizeof in);
    long length = TRY(what, msgrcv(id, &in, size, type, flags));
    if (length >= 0)
        say("[%ld:%.40s]", in.type, in.text);
    return length;
}

static void say_count(int id)
{
    struct msqid_ds ds;
    if (msgctl(id, IPC_STAT, &ds) == 0)
        say(" qnum=%lu cbytes=%lu", (unsigned long)ds.msg_qnum, (unsigned long)ds.__msg_cbytes);
    else
        say(" stat %s", errno_name(errno));
}

static void remove_queue(int id) { TRY("rmid", msgctl(id, IPC_RMID, NULL)); }

static void get_new(void)
{
    struct msqid_ds ds;
    int id = TRY_ID("get", make_queue(row_key(0), 0640));
    TRY("stat", msgctl(id, IPC_STAT, &ds));
    say(" key %s", ds.msg_perm.__key == row_key(0) ? "mine" : "wrong");
    say(" mode=%o uid=%d gid=%d cuid=%d cgid=%d", ds.msg_perm.mode, ds.msg_perm.uid,
        ds.msg_perm.gid, ds.msg_perm.cuid, ds.msg_perm.cgid);
    say(" qnum=%lu cbytes=%lu", (unsigned long)ds.msg_qnum, (unsigned long)ds.__msg_cbytes);
    say(" qbytes=%lu", (unsigned long)ds.msg_qbytes);
    say_pid("lspid", ds.msg_lspid, 0);
    say_pid("lrpid", ds.msg_lrpid, 0);
    say_time("stime", ds.msg_stime);
    say_time("rtime", ds.msg_rtime);
    say_time("ctime", ds.msg_ctime);
    remove_queue(id);
}

static void get_existing(void)
{
    int id = TRY_ID("make", make_queue(row_key(0), 0600));
    int creat = IPC_CREAT | 0600 | get_flag();
    say(" again %s", msgget(row_key(0), get_flag()) == id ? "same" : "different");
    say(" creat %s", msgget(row_key(0), creat) == id ? "same" : "different");
    TRY_ID("excl-alone", msgget(row_key(0), IPC_EXCL | 0600 | get_flag()));
    remove_queue(id);
    TRY_ID("gone", msgget(row_key(0), get_flag()));
}

static void get_eexist(void)
{
    int id = TRY_ID("make", make_queue(row_key(0), 0600));
    TRY_ID("excl", msgget(row_key(0), IPC_CREAT | IPC_EXCL | 0600 | get_flag()));
    TRY_ID("excl-make", make_queue(row_key(0), IPC_EXCL | 0600));
    remove_queue(id);
    id = TRY_ID("excl-new", make_queue(row_key(0), IPC_EXCL | 0600));
    remove_queue(id);
}

static void get_enoent(void)
{
    TRY_ID("get", msgget(row_key(0), get_flag()));
    TRY_ID("mode", msgget(row_key(0), 0777 | get_flag()));
    TRY_ID("excl", msgget(row_key(0), IPC_EXCL | 0777 | get_flag()));
}

static void get_private(void)
{
    int one = TRY_ID("one", make_queue(IPC_PRIVATE, 0600));
    int two = TRY_ID("two", make_queue(IPC_PRIVATE, 0600));
    struct msqid_ds ds;
    say(" %s", one == two ? "same" : "different");
    TRY("stat", msgctl(one, IPC_STAT, &ds));
    say(" key=%d", ds.msg_perm.__key);
    put("put", one, 1, "one", 0);
    take("other", two, 16, 0, IPC_NOWAIT);
    take("same", one, 16, 0, IPC_NOWAIT);
    remove_queue(one);
    remove_queue(two);
}

static void get_eacces(void)
{
    int id = TRY_ID("make", make_queue(row_key(0), 0604));
    if (become(NOBODY)) {
        TRY_ID("none", msgget(row_key(0), get_flag()));
        TRY_ID("read", msgget(row_key(0), 0004 | get_flag()));
        TRY_ID("write", msgget(row_key(0), 0002 | get_flag()));
        TRY_ID("owner-write", msgget(row_key(0), 0200 | get_flag()));
        TRY_ID("creat", msgget(row_key(0), IPC_CREAT | 0666 | get_flag()));
        TRY("rmid", msgctl(id, IPC_RMID, NULL));
    }
}

static void get_other_creator(void)
{
    struct msqid_ds ds;
    int id = make_queue_as(geteuid() == 0 ? NOBODY : geteuid(), row_key(0), 0600);
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    TRY("stat", msgctl(id, IPC_STAT, &ds));
    say(" uid=%d gid=%d", ds.msg_perm.uid, ds.msg_perm.gid);
    say(" cuid=%d cgid=%d mode=%o", ds.msg_perm.cuid, ds.msg_perm.cgid, ds.msg_perm.mode);
    remove_queue(id);
}

static void get_enospc(void)
{
    int ids[64], made = 0, limit = object_limit();
    if (limit == 0 || limit > 64) {
        say(" not tried");
        return;
    }
    while (made < limit && (ids[made] = make_queue(IPC_PRIVATE, 0600)) >= 0)
        made++;
    say(" made=%d", made);
    TRY_ID("next", make_queue(IPC_PRIVATE, 0600));
    TRY_ID("next-key", make_queue(row_key(0), 0600));
    for (int i = 0; i < made; i++)
        msgctl(ids[i], IPC_RMID, NULL);
    int id = TRY_ID("after", make_queue(row_key(0), 0600));
    remove_queue(id);
}

static void send_receive(void)
{
    int id = make_queue(row_key(0), 0600);
    put("put", id, 7, "hello", 0);
    say_count(id);
    take("take", id, 5, 0, 0);
    say_count(id);
    remove_queue(id);
}

static void pids_and_times(void)
{
    struct msqid_ds ds;
    int id = make_queue(row_key(0), 0600);
    put("put", id, 1, "x", 0);
    msgctl(id, IPC_STAT, &ds);
    say_pid("lspid", ds.msg_lspid, 0);
    say_pid("lrpid", ds.msg_lrpid, 0);
    say_time("stime", ds.msg_stime);
    say_time("rtime", ds.msg_rtime);
    pid_t child = fork();
    if (child == 0)
        _exit(msgrcv(id, &in, 1, 0, 0) != 1);
    waitpid(child, NULL, 0);
    msgctl(id, IPC_STAT, &ds);
    say_pid("lspid", ds.msg_lspid, child);
    say_pid("lrpid", ds.msg_lrpid, child);
    say_time("rtime", ds.msg_rtime);
    remove_queue(id);
}

static void type_positive(void)
{
    int id = make_queue(row_key(0), 0600);
    put("a", id, 3, "three", 0);
    put("b", id, 1, "one", 0);
    put("c", id, 3, "three again", 0);
    put("d", id, LONG_MAX, "greatest", 0);
    take("one", id, 64, 1, 0);
    take("three", id, 64, 3, 0);
    take("three", id, 64, 3, 0);
    take("three", id, 64, 3, IPC_NOWAIT);
    take("greatest", id, 64, LONG_MAX, 0);
    remove_queue(id);
}

static void type_zero(void)
{
    int id = make_queue(row_key(0), 0600);
    put("a", id, 3, "three", 0);
    put("b", id, 1, "one", 0);
    put("c", id, 2, "two", 0);
    for (int i = 0; i < 3; i++)
        take("first", id, 64, 0, 0);
    remove_queue(id);
}

static void type_negative(void)
{
    int id = make_queue(row_key(0), 0600);
    put("a", id, 5, "five", 0);
    put("b", id, 3, "three", 0);
    put("c", id, 4, "four", 0);
    put("d", id, 3, "three again", 0);
    take("to 2", id, 64, -2, IPC_NOWAIT);
    for (int i = 0; i < 4; i++)
        take("to 4", id, 64, -4, IPC_NOWAIT);
    take("least", id, 64, LONG_MIN, IPC_NOWAIT);
    remove_queue(id);
}

static void flag_except(void)
{
    int id = make_queue(row_key(0), 0600);
    put("a", id, 1, "one", 0);
    put("b", id, 2, "two", 0);
    put("c", id, 1, "one again", 0);
    take("not 1", id, 64, 1, MSG_EXCEPT | IPC_NOWAIT);
    take("not 1", id, 64, 1, MSG_EXCEPT | IPC_NOWAIT);
    take("not 9", id, 64, 9, MSG_EXCEPT | IPC_NOWAIT);
    put("d", id, 2, "two", 0);
    take("any", id, 64, 0, MSG_EXCEPT | IPC_NOWAIT);
    take("to 2", id, 64, -2, MSG_EXCEPT | IPC_NOWAIT);
    remove_queue(id);
}

static void flag_copy(void)
{
    struct msqid_ds ds;
    int id = make_queue(row_key(0), 0600);
    put("a", id, 1, "first", 0);
    put("b", id, 2, "second", 0);
    take("copy 0", id, 64, 0, MSG_COPY | IPC_NOWAIT);
    take("copy 1", id, 64, 1, MSG_COPY | IPC_NOWAIT);
    take("copy 2", id, 64, 2, MSG_COPY | IPC_NOWAIT);
    take("copy -1", id, 64, -1, MSG_COPY | IPC_NOWAIT);
    take("copy small", id, 3, 0, MSG_COPY | IPC_NOWAIT);
    take("copy cut", id, 3, 0, MSG_COPY | IPC_NOWAIT | MSG_NOERROR);
    take("copy waiting", id, 64, 0, MSG_COPY);
    take("copy except", id, 64, 0, MSG_COPY | IPC_NOWAIT | MSG_EXCEPT);
    say_count(id);
    msgctl(id, IPC_STAT, &ds);
    say_pid("lrpid", ds.msg_lrpid, 0);
    remove_queue(id);
}

static void flag_noerror(void)
{
    int id = make_queue(row_key(0), 0600);
    put("a", id, 1, "longer than that", 0);
    put("b", id, 1, "longer than nothing", 0);
    put("c", id, 1, "fits", 0);
    take("cut", id, 6, 0, MSG_NOERROR);
    take("nothing", id, 0, 0, MSG_NOERROR);
    take("fits", id, 4, 0, MSG_NOERROR);
    say_count(id);
    remove_queue(id);
}

static void e2big(void)
{
    int id = make_queue(row_key(0), 0600);
    put("a", id, 1, "four", 0);
    put("b", id, 2, "ok", 0);
    take("small", id, 3, 0, 0);
    take("nothing", id, 0, 0, 0);
    take("nowait", id, 3, 0, IPC_NOWAIT);
    take("by type", id, 3, 2, 0);
    say_count(id);
    take("enough", id, 4, 0, 0);
    remove_queue(id);
}

static void enomsg(void)
{
    int id = make_queue(row_key(0), 0600);
    take("empty", id, 64, 0, IPC_NOWAIT);
    put("a", id, 2, "two", 0);
    take("other type", id, 64, 1, IPC_NOWAIT);
    take("lower", id, 64, -1, IPC_NOWAIT);
    take("except", id, 64, 2, IPC_NOWAIT | MSG_EXCEPT);
    remove_queue(id);
}

static void eagain_full(void)
{
    int id = make_queue(row_key(0), 0600), sent = 0;
    out.type = 1;
    while (sent < 1000 && msgsnd(id, &out, 512, IPC_NOWAIT) == 0)
        sent++;
    say(" sent=%d", sent);
    TRY("full", msgsnd(id, &out, 512, IPC_NOWAIT));
    TRY("one byte", msgsnd(id, &out, 1, IPC_NOWAIT));
    TRY("no bytes", msgsnd(id, &out, 0, IPC_NOWAIT));
    TRY("take", msgrcv(id, &in, 512, 0, 0));
    TRY("room", msgsnd(id, &out, 512, IPC_NOWAIT));
    say_count(id);
    remove_queue(id);
}

static void zero_length(void)
{
    int id = make_queue(row_key(0), 0600);
    put("put", id, 4, "", 0);
    say_count(id);
    take("take", id, 64, 0, 0);
    put("put", id, 4, "", 0);
    take("into nothing", id, 0, 4, 0);
    remove_queue(id);
}

/* A count of messages is bounded by msg_qbytes too. */
static void zero_length_many(void)
{
    struct msqid_ds ds;
    int id = make_queue(row_key(0), 0600), sent = 0;
    msgctl(id, IPC_STAT, &ds);
    ds.msg_qbytes = 20;
    TRY("set", msgctl(id, IPC_SET, &ds));
    out.type = 1;
    while (sent < 100 && msgsnd(id, &out, 0, IPC_NOWAIT) == 0)
        sent++;
    say(" sent=%d", sent);
    remove_queue(id);
}

static void greatest_message(void)
{
    struct msginfo info;
    int id = make_queue(row_key(0), 0600);
    TRY("info", msgctl(0, IPC_INFO, (struct msqid_ds *)&info) < 0 ? -1 : 0);
    size_t size = (size_t)info.msgmax;
    if (size > TEXT_BYTES - 1) {
        say(" msgmax is more than this case can hold");
        return;
    }
    out.type = 1;
    for (size_t i = 0; i < size; i++)
        out.text[i] = (char)(i * 7 + i / 256);
    TRY("put", msgsnd(id, &out, size, 0));
    TRY("take", msgrcv(id, &in, TEXT_BYTES, 0, 0));
    say(" %s", memcmp(out.text, in.text, size) == 0 ? "equal" : "changed");
    TRY("more", msgsnd(id, &out, size + 1, 0));
    TRY("more nowait", msgsnd(id, &out, size + 1, IPC_NOWAIT));
    say_count(id);
    remove_queue(id);
}

static void send_einval(void)
{
    int id = make_queue(row_key(0), 0600);
    put("type 0", id, 0, "x", 0);
    put("type -1", id, -1, "x", 0);
    put("type least", id, LONG_MIN, "x", 0);
    out.type = 1;
    TRY("size -1", msgsnd(id, &out, (size_t)-1, 0));
    TRY("size huge", msgsnd(id, &out, (size_t)LONG_MAX, 0));
    TRY("size 4G", msgsnd(id, &out, (size_t)1 << 32, 0));
    TRY("id -1", msgsnd(-1, &out, 1, 0));
    TRY("id least", msgsnd(INT_MIN, &out, 1, 0));
    TRY("unknown id", msgsnd(INT_MAX, &out, 1, 0));
    say_count(id);
    remove_queue(id);
    TRY("removed id", msgsnd(id, &out, 1, 0));
}

static void receive_einval(void)
{
    int id = make_queue(row_key(0), 0600);
    put("put", id, 1, "12345", 0);
    TRY("size -1", msgrcv(id, &in, (size_t)-1, 0, 0));
    TRY("size least", msgrcv(id, &in, (size_t)LONG_MIN, 0, 0));
    TRY("id -1", msgrcv(-1, &in, 1, 0, 0));
    TRY("unknown id", msgrcv(INT_MAX, &in, 1, 0, 0));
    say_count(id);
    take("size great", id, (size_t)1 << 30, 0, 0);
    remove_queue(id);
    TRY("removed id", msgrcv(id, &in, 1, 0, 0));
}

static void send_efault(void)
{
    int id = make_queue(row_key(0), 0600);
    TRY("null", msgsnd(id, NULL, 1, 0));
    TRY("bad", msgsnd(id, BAD, 1, 0));
    TRY("bad, no text", msgsnd(id, BAD, 0, 0));
    TRY("bad, bad id", msgsnd(-1, BAD, 1, 0));
    TRY("bad, bad size", msgsnd(id, BAD, (size_t)-1, 0));
    say_count(id);
    remove_queue(id);
}

static void receive_efault(void)
{
    int id = make_queue(row_key(0), 0600);
    TRY("empty", msgrcv(id, BAD, 8, 0, IPC_NOWAIT));
    TRY("bad id", msgrcv(-1, BAD, 8, 0, IPC_NOWAIT));
    put("put", id, 1, "taken", 0);
    TRY("bad", msgrcv(id, BAD, 8, 0, 0));
    say_count(id);
    remove_queue(id);
}

static void send_eacces(void)
{
    int id = make_queue(row_key(0), 0644);
    if (become(NOBODY)) {
        put("put", id, 1, "x", 0);
        take("take", id, 8, 0, IPC_NOWAIT);
        say_count(id);
    }
}

static void receive_eacces(void)
{
    int id = make_queue(row_key(0), 0622);
    if (become(NOBODY)) {
        put("put", id, 1, "x", 0);
        take("take", id, 8, 0, IPC_NOWAIT);
        say_count(id);
    }
}

static void owner_bits(void)
{
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int id = make_queue_as(NOBODY, row_key(0), 0200);
    become(NOBODY);
    put("put", id, 1, "x", 0);
    take("take", id, 8, 0, IPC_NOWAIT);
    TRY_ID("get 0200", msgget(row_key(0), 0200 | get_flag()));
    TRY_ID("get 0400", msgget(row_key(0), 0400 | get_flag()));
    remove_queue(id);
}

static void stat_eacces(void)
{
    struct msqid_ds ds;
    int id = make_queue(row_key(0), 0622);
    if (become(NOBODY)) {
        TRY("stat", msgctl(id, IPC_STAT, &ds));
        TRY("set", msgctl(id, IPC_SET, &ds));
        TRY("rmid", msgctl(id, IPC_RMID, NULL));
        TRY("set bad", msgctl(id, IPC_SET, BAD));
    }
}

static void ctl_efault(void)
{
    int id = make_queue(row_key(0), 0600);
    TRY("stat", msgctl(id, IPC_STAT, BAD));
    TRY("set", msgctl(id, IPC_SET, BAD));
    TRY("stat, bad id", msgctl(-1, IPC_STAT, BAD));
    TRY("set, bad id", msgctl(-1, IPC_SET, BAD));
    TRY("info", msgctl(0, IPC_INFO, BAD));
    TRY("msg_info", msgctl(0, MSG_INFO, BAD));
    TRY("rmid", msgctl(id, IPC_RMID, BAD));
}

static void ctl_einval(void)
{
    struct msqid_ds ds;
    int id = make_queue(row_key(0), 0600);
    TRY("command 99", msgctl(id, 99, &ds));
    TRY("command -1", msgctl(id, -1, &ds));
    TRY("id -1", msgctl(-1, IPC_STAT, &ds));
    TRY("unknown id", msgctl(INT_MAX, IPC_STAT, &ds));
    TRY("rmid -1", msgctl(-1, IPC_RMID, NULL));
    TRY("MSG_STAT -1", msgctl(-1, MSG_STAT, &ds));
    TRY("MSG_STAT far", msgctl(32767, MSG_STAT, &ds));
    TRY("MSG_STAT_ANY far", msgctl(32767, MSG_STAT_ANY, &ds));
    remove_queue(id);
    TRY("removed", msgctl(id, IPC_STAT, &ds));
    TRY("removed twice", msgctl(id, IPC_RMID, NULL));
}

static void set_mode(void)
{
    struct msqid_ds ds;
    int id = make_queue(row_key(0), 0600);
    msgctl(id, IPC_STAT, &ds);
    ds.msg_perm.mode = 0177751;
    ds.msg_qbytes = 4096;
    ds.msg_perm.cuid = 77;
    ds.msg_perm.__key = 77;
    TRY("set", msgctl(id, IPC_SET, &ds));
    memset(&ds, 0, sizeof ds);
    TRY("stat", msgctl(id, IPC_STAT, &ds));
    say(" mode=%o qbytes=%lu", ds.msg_perm.mode, (unsigned long)ds.msg_qbytes);
    say(" cuid=%d", ds.msg_perm.cuid);
    say(" key %s", ds.msg_perm.__key == row_key(0) ? "mine" : "wrong");
    say_time("ctime", ds.msg_ctime);
    remove_queue(id);
}

static void set_owner(void)
{
    struct msqid_ds ds;
    int id = make_queue(row_key(0), 0600);
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    msgctl(id, IPC_STAT, &ds);
    ds.msg_perm.uid = NOBODY;
    ds.msg_perm.gid = NOBODY;
    TRY("set", msgctl(id, IPC_SET, &ds));
    TRY("stat", msgctl(id, IPC_STAT, &ds));
    say(" uid=%d gid=%d cuid=%d", ds.msg_perm.uid, ds.msg_perm.gid, ds.msg_perm.cuid);
    become(NOBODY);
    put("put", id, 1, "owner", 0);
    take("take", id, 8, 0, IPC_NOWAIT);
    ds.msg_perm.mode = 0;
    TRY("set by owner", msgctl(id, IPC_SET, &ds));
    put("put", id, 1, "owner", 0);
    TRY("stat", msgctl(id, IPC_STAT, &ds));
    remove_queue(id);
}

static void set_eperm(void)
{
    struct msqid_ds ds;
    int id = make_queue(row_key(0), 0666);
    if (become(NOBODY)) {
        TRY("stat", msgctl(id, IPC_STAT, &ds));
        TRY("set", msgctl(id, IPC_SET, &ds));
        TRY("rmid", msgctl(id, IPC_RMID, NULL));
    }
}

static void set_qbytes(void)
{
    struct msqid_ds ds;
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    int id = make_queue_as(NOBODY, row_key(0), 0600);
    msgctl(id, IPC_STAT, &ds);
    unsigned long usual = ds.msg_qbytes;
    ds.msg_qbytes = usual * 2;
    TRY("more, root", msgctl(id, IPC_SET, &ds));
    become(NOBODY);
    TRY("same, nobody", msgctl(id, IPC_SET, &ds));
    ds.msg_qbytes = usual;
    TRY("usual, nobody", msgctl(id, IPC_SET, &ds));
    ds.msg_qbytes = usual + 1;
    TRY("more, nobody", msgctl(id, IPC_SET, &ds));
    ds.msg_qbytes = 100;
    TRY("less, nobody", msgctl(id, IPC_SET, &ds));
    msgctl(id, IPC_STAT, &ds);
    say(" qbytes=%lu", (unsigned long)ds.msg_qbytes);
    out.type = 1;
    TRY("100", msgsnd(id, &out, 100, IPC_NOWAIT));
    TRY("101", msgsnd(id, &out, 101, IPC_NOWAIT));
    remove_queue(id);
}

static void info(void)
{
    struct msginfo info;
    memset(&info, 0, sizeof info);
    int highest = msgctl(0, IPC_INFO, (struct msqid_ds *)&info);
    say(" %s msgmax=%d msgmnb=%d msgssz=%d", highest >= 0 ? "ok" : errno_name(errno), info.msgmax,
        info.msgmnb, info.msgssz);
    say(" msgpool=%d msgmap=%d msgtql=%d", info.msgpool, info.msgmap, info.msgtql);
}

static void info_use(void)
{
    struct msginfo before, with, after;
    int first = msgctl(0, MSG_INFO, (struct msqid_ds *)&before);
    int id = make_queue(row_key(0), 0600);
    TRY_ID("get", msgget(row_key(0), get_flag()));
    put("a", id, 1, "12345", 0);
    put("b", id, 1, "123", 0);
    int second = msgctl(0, MSG_INFO, (struct msqid_ds *)&with);
    say(" %s queues+%d messages+%d bytes+%d", first >= 0 && second >= 0 ? "ok" : "failed",
        with.msgpool - before.msgpool, with.msgmap - before.msgmap, with.msgtql - before.msgtql);
    remove_queue(id);
    msgctl(0, MSG_INFO, (struct msqid_ds *)&after);
    say(" queues+%d messages+%d", after.msgpool - before.msgpool, after.msgmap - before.msgmap);
}

/* Walks the indexes as ipcs(1) does, and says how often our queue was met. */
static void walk(const char *what, int command, int id)
{
    struct msqid_ds ds;
    struct msginfo info;
    int met = 0, refused = 0, messages = 0;
    int highest = msgctl(0, MSG_INFO, (struct msqid_ds *)&info);
    for (int index = 0; index <= highest; index++) {
        int found = msgctl(index, command, &ds);
        if (found < 0 && errno == EACCES)
            refused++;
        if (found != id)
            continue;
        met++;
        messages += (int)ds.msg_qnum;
        say(" %s:%s", what, ds.msg_perm.__key == row_key(0) ? "my key" : "another key");
    }
    say(" met=%d refused=%d messages=%d", met, refused, messages);
}

static void stat_by_index(void)
{
    int id = make_queue(row_key(0), 0622);
    put("put", id, 1, "x", 0);
    walk("stat", MSG_STAT, id);
    walk("any", MSG_STAT_ANY, id);
    if (become(NOBODY)) {
        walk("stat", MSG_STAT, id);
        walk("any", MSG_STAT_ANY, id);
    }
}

static void fork_inherits(void)
{
    int id = make_queue(row_key(0), 0600);
    put("put", id, 1, "before", 0);
    pid_t child = fork();
    if (child == 0) {
        long length = msgrcv(id, &in, 64, 0, 0);
        out.type = 2;
        strcpy(out.text, "from the child");
        _exit(length != 6 || msgsnd(id, &out, 14, 0) != 0);
    }
    int status;
    waitpid(child, &status, 0);
    say(" child=%d", WEXITSTATUS(status));
    take("take", id, 64, 2, IPC_NOWAIT);
    remove_queue(id);
}

static void exec_keeps_ids(void)
{
    char number[16];
    int id = make_queue(row_key(0), 0600), status;
    put("put", id, 1, "before", 0);
    snprintf(number, sizeof number, "%d", id);
    pid_t child = fork();
    if (child == 0) {
        take("warm", id, 64, 0, IPC_NOWAIT);
        execl("/proc/self/exe", "msg_cases", "--after-exec", number, NULL);
        _exit(9);
    }
    waitpid(child, &status, 0);
    say(" child=%d", WEXITSTATUS(status));
    take("take", id, 64, 2, IPC_NOWAIT);
    remove_queue(id);
}

static int after_exec(int id)
{
    out.type = 2;
    strcpy(out.text, "after exec");
    return msgsnd(id, &out, 10, 0) != 0;
}

static void *send_in_thread(void *argument)
{
    int id = *(int *)argument;
    out.type = 3;
    strcpy(out.text, "thread");
    return msgsnd(id, &out, 6, 0) == 0 ? argument : NULL;
}

static void threads(void)
{
    struct msqid_ds ds;
    pthread_t thread;
    void *result;
    int id = make_queue(row_key(0), 0600);
    pthread_create(&thread, NULL, send_in_thread, &id);
    pthread_join(thread, &result);
    say(" thread %s", result ? "sent" : "failed");
    take("take", id, 64, 0, IPC_NOWAIT);
    msgctl(id, IPC_STAT, &ds);
    say_pid("lspid", ds.msg_lspid, 0);
    remove_queue(id);
}

static void changed_account(void)
{
    int id = make_queue(row_key(0), 0600);
    if (geteuid() != 0) {
        say(" needs root");
        return;
    }
    put("root", id, 1, "x", 0);
    if (seteuid(NOBODY) < 0)
        say(" seteuid failed");
    put("nobody", id, 1, "x", 0);
    take("nobody", id, 8, 0, IPC_NOWAIT);
    if (seteuid(0) < 0)
        say(" seteuid failed");
    take("root", id, 8, 0, IPC_NOWAIT);
    remove_queue(id);
}

static void order(void)
{
    char text[8];
    int id = make_queue(row_key(0), 0600), right = 1;
    for (int i = 0; i < 60; i++) {
        out.type = 1 + i % 3;
        int length = snprintf(out.text, sizeof text, "%d", i);
        if (msgsnd(id, &out, (size_t)length + 1, 0) < 0)
            say(" msgsnd %s", errno_name(errno));
    }
    for (int i = 0; i < 60; i++) {
        if (msgrcv(id, &in, sizeof text, 1 + i / 20, IPC_NOWAIT) < 0)
            say(" msgrcv %s", errno_name(errno));
        right &= atoi(in.text) == i / 20 + i % 20 * 3;
    }
    say(" %s", right ? "in order" : "out of order");
    remove_queue(id);
}

static const struct row ROWS[] = {
    { "get_new", "msgget IPC_CREAT mode", get_new },
    { "get_existing", "msgget IPC_CREAT", get_existing },
    { "get_eexist", "msgget IPC_EXCL EEXIST", get_eexist },
    { "get_enoent", "msgget ENOENT", get_enoent },
    { "get_private", "msgget IPC_PRIVATE", get_private },
    { "get_eacces", "msgget EACCES", get_eacces },
    { "get_other_creator", "msgget mode", get_other_creator },
    { "get_enospc", "msgget ENOSPC", get_enospc },
    { "send_receive", "msgsnd msgrcv", send_receive },
    { "pids_and_times", "msgctl IPC_STAT", pids_and_times },
    { "type_positive", "msgrcv type>0", type_positive },
    { "type_zero", "msgrcv type=0", type_zero },
    { "type_negative", "msgrcv type<0", type_negative },
    { "flag_except", "msgrcv MSG_EXCEPT", flag_except },
    { "flag_copy", "msgrcv MSG_COPY EINVAL ENOMSG", flag_copy },
    { "flag_noerror", "msgrcv MSG_NOERROR", flag_noerror },
    { "e2big", "msgrcv E2BIG", e2big },
    { "enomsg", "msgrcv IPC_NOWAIT ENOMSG", enomsg },
    { "eagain_full", "msgsnd IPC_NOWAIT EAGAIN", eagain_full },
    { "zero_length", "msgsnd msgrcv", zero_length },
    { "zero_length_many", "msgsnd EAGAIN", zero_length_many },
    { "greatest_message", "msgsnd EINVAL", greatest_message },
    { "send_einval", "msgsnd EINVAL", send_einval },
    { "receive_einval", "msgrcv EINVAL", receive_einval },
    { "send_efault", "msgsnd EFAULT", send_efault },
    { "receive_efault", "msgrcv EFAULT", receive_efault },
    { "send_eacces", "msgsnd EACCES", send_eacces },
    { "receive_eacces", "msgrcv EACCES", receive_eacces },
    { "owner_bits", "msgrcv EACCES", owner_bits },
    { "stat_eacces", "msgctl IPC_STAT EACCES", stat_eacces },
    { "ctl_efault", "msgctl EFAULT", ctl_efault },
    { "ctl_einval", "msgctl EINVAL", ctl_einval },
    { "set_mode", "msgctl IPC_SET", set_mode },
    { "set_owner", "msgctl IPC_SET", set_owner },
    { "set_eperm", "msgctl IPC_SET IPC_RMID EPERM", set_eperm },
    { "set_qbytes", "msgctl IPC_SET EPERM", set_qbytes },
    { "info", "msgctl IPC_INFO", info },
    { "info_use", "msgctl MSG_INFO", info_use },
    { "stat_by_index", "msgctl MSG_STAT MSG_STAT_ANY EACCES", stat_by_index },
    { "fork_inherits", "msgrcv msgsnd", fork_inherits },
    { "exec_keeps_ids", "msgsnd", exec_keeps_ids },
    { "threads", "msgsnd", threads },
    { "changed_account", "msgsnd msgrcv EACCES", changed_account },
    { "order", "msgrcv type>0", order },
};

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--after-exec") == 0)
        return after_exec(atoi(argv[2]));
    return run_rows(ROWS, sizeof ROWS / sizeof *ROWS, argc, argv);
}
