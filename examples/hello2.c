/*
 * hello2 sends one message to hello1, which made the queue and waits: here, or on another machine
 * of the cluster.
 */
#include <errno.h>
#include <linux/dipc.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>

#define QUEUE_KEY 40
#define QUEUE_FLAGS (IPC_DIPC | IPC_EXCL | 0777)

struct message {
    long mtype;
    char mtext[512];
};

int main(void)
{
    struct message message = { .mtype = 10, .mtext = "Hello, Distributed Programming!" };
    int queue = msgget(QUEUE_KEY, QUEUE_FLAGS);
    if (queue < 0) {
        fprintf(stderr, "Hello2: msgget() failed BECAUSE %s\n", strerror(errno));
        return 20;
    }
    if (msgsnd(queue, &message, sizeof message.mtext, 0) < 0) {
        fprintf(stderr, "Hello2: msgsnd() failed BECAUSE %s\n", strerror(errno));
        return 20;
    }
    return 0;
}
