/*
 * Senders and receivers of numbered messages, to see that each arrives once.
 *
 *   traffic send KEY SENDER COUNT PAUSE   COUNT messages, of the types 1 to 3 in turn, and a pause
 *                                     of PAUSE microseconds before each
 *   traffic receive KEY FILE          until a message of the type 100; records each in FILE
 *   traffic drain KEY FILE            what is in the queue now
 *   traffic stop KEY COUNT            so many messages of the type 100
 *
 * One record is one line "SENDER TYPE NUMBER" and one write(2), so that a receiver that is killed
 * has recorded everything but perhaps the message it had just got.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <unistd.h>

#define IPC_DIPC 00010000

enum { TYPES = 3, STOP = 100 };

struct message {
    long type;
    struct {
        int sender;
        int number;
        char padding[24];
    } text;
};

static int fail(const char *what)
{
    fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
    return 1;
}

static int send_all(int queue, int sender, int count, int pause)
{
    struct message message = { .text.sender = sender };
    for (int i = 0; i < count; i++) {
        if (pause > 0)
            usleep((useconds_t)pause);
        message.type = 1 + i % TYPES;
        message.text.number = i / TYPES;
        if (msgsnd(queue, &message, sizeof message.text, 0) < 0)
            return fail("msgsnd");
    }
    return 0;
}

static int stop(int queue, int count)
{
    struct message message = { .type = STOP };
    for (int i = 0; i < count; i++)
        if (msgsnd(queue, &message, sizeof message.text, 0) < 0)
            return fail("msgsnd");
    return 0;
}

static int receive_all(int queue, const char *path, int flags)
{
    struct message message;
    char line[64];
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file < 0)
        return fail(path);
    puts("ready");
    fflush(stdout);
    for (;;) {
        ssize_t length = msgrcv(queue, &message, sizeof message.text, 0, flags);
        if (length < 0)
            return errno == ENOMSG ? 0 : fail("msgrcv");
        if (length != sizeof message.text)
            return fail("a message of another length");
        if (message.type == STOP && flags == 0)
            return 0;
        if (message.type == STOP)
            continue;
        int size = snprintf(line, sizeof line, "%d %ld %d\n", message.text.sender, message.type,
                            message.text.number);
        if (write(file, line, (size_t)size) != size)
            return fail(path);
    }
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    int queue = msgget(atoi(argv[2]), IPC_DIPC | 0600);
    if (queue < 0)
        return fail("msgget");
    if (strcmp(argv[1], "send") == 0 && argc == 6)
        return send_all(queue, atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
    if (strcmp(argv[1], "receive") == 0)
        return receive_all(queue, argv[3], 0);
    if (strcmp(argv[1], "drain") == 0)
        return receive_all(queue, argv[3], IPC_NOWAIT);
    if (strcmp(argv[1], "stop") == 0)
        return stop(queue, atoi(argv[3]));
    return 2;
}
