/*
 * Creates objects on its node for cases that run on another: so the object has its home here, and
 * everything the case itself does is remote.
 *
 * One packet, "kind key count flags(octal) uid", is one request; the answer is the id or -errno.
 * It ends when its standard input does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        die("socket");
    strcpy(address.sun_path, path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 64) < 0)
        die("listen");
    chmod(path, 0777);
    return fd;
}

static int make(const char *request)
{
    char kind[16];
    int key, flags, uid, id;
    long count;
    if (sscanf(request, "%15s %d %ld %o %d", kind, &key, &count, (unsigned *)&flags, &uid) != 5)
        return -EPROTO;
    if (geteuid() == 0 && uid != 0)
        if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
            return -errno;
    if (strcmp(kind, "queue") == 0)
        id = msgget(key, flags | IPC_CREAT);
    else if (strcmp(kind, "set") == 0)
        id = semget(key, (int)count, flags | IPC_CREAT);
    else
        id = shmget(key, (size_t)count, flags | IPC_CREAT);
    return id < 0 ? -errno : id;
}

static void serve(int fd)
{
    char text[128];
    ssize_t length = recv(fd, text, sizeof text - 1, 0);
    if (length > 0) {
        text[length] = 0;
        int size = snprintf(text, sizeof text, "%d", make(text));
        send(fd, text, (size_t)size, MSG_NOSIGNAL);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    struct pollfd watched[2] = { { .fd = 0, .events = POLLIN }, { .events = POLLIN } };
    signal(SIGCHLD, SIG_IGN);
    watched[1].fd = listen_at(argv[1]);
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (poll(watched, 2, -1) < 0 && errno != EINTR)
            die("poll");
        if (watched[0].revents)
            return 0;
        if (!watched[1].revents)
            continue;
        int fd = accept4(watched[1].fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        if (fork() == 0) {
            serve(fd);
            _exit(0);
        }
        close(fd);
    }
}
