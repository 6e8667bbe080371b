/*
 * hello1 makes a message queue, waits for one message, prints it and removes the queue.
 *
 * Start it first, then hello2 on another machine of the cluster. IPC_DIPC in the flags of msgget(2)
 * is all that makes it a distributed program; without libdipc the two meet on one machine.
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
    struct message message;
    int status = 0;
    int queue = msgget(QUEUE_KEY, QUEUE_FLAGS | IPC_CREAT);
    if (queue < 0) {
        fprintf(stderr, "Hello1: msgget() failed BECAUSE %s\n", strerror(errno));
        return 20;
    }
    fprintf(stderr, "Hello1: waiting to receive a message...\n");
    if (msgrcv(queue, &message, sizeof message.mtext, 0, 0) < 0) {
        fprintf(stderr, "Hello1: msgrcv() failed BECAUSE %s\n", strerror(errno));
        status = 20;
    } else {
        fprintf(stderr, "Hello1: Received '%.*s'\n", (int)sizeof message.mtext, message.mtext);
    }
    msgctl(queue, IPC_RMID, NULL);
    return status;
}
