/*
 * A client of the mailbox server: reads a mailbox to standard output, or writes standard input (or
 * a text) into one. Binary-safe: it uses the framed requests.
 *
 *     mailbox_client HOST PORT r N
 *     mailbox_client HOST PORT w N [TEXT]
 */
#define _POSIX_C_SOURCE 200809L
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONTENT_MAX = 64 << 20, LINE_MAX_BYTES = 256 };

static void fail(const char *what)
{
	fprintf(stderr, "mailbox_client: %s\n", what);
	exit(EXIT_FAILURE);
}

static FILE *connect_to(const char *host, const char *port)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
	int failure = getaddrinfo(host, port, &hints, &found);
	if (failure)
		fail(gai_strerror(failure));
	int fd = -1;
	for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
		fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
		if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen)) {
			close(fd);
			fd = -1;
		}
	}
	freeaddrinfo(found);
	FILE *server = fd < 0 ? NULL : fdopen(fd, "r+");
	if (!server)
		fail("cannot connect");
	return server;
}

/* The length behind "ok"; anything else is the server's complaint. */
static size_t answered(FILE *server)
{
	char line[LINE_MAX_BYTES];
	unsigned long length;
	if (fflush(server) || !fgets(line, sizeof line, server))
		fail("the server has gone");
	line[strcspn(line, "\n")] = '\0';
	if (sscanf(line, "ok %lu", &length) != 1 || length > CONTENT_MAX)
		fail(line);
	return length;
}

static void read_mailbox(FILE *server, unsigned long number)
{
	fprintf(server, "r %lu %d\n", number, CONTENT_MAX);
	for (size_t left = answered(server); left > 0; left--) {
		int byte = getc(server);
		if (byte == EOF)
			fail("the server has gone");
		putchar(byte);
	}
	if (fflush(stdout))
		fail("cannot write the output");
}

/* All of standard input: the length must be known before the first byte is sent. */
static char *whole_input(size_t *length)
{
	char *content = malloc(CONTENT_MAX);
	if (!content)
		fail("no memory");
	*length = fread(content, 1, CONTENT_MAX, stdin);
	if (ferror(stdin) || !feof(stdin))
		fail("cannot read the input, or it is too long");
	return content;
}

static void write_mailbox(FILE *server, unsigned long number, const char *text, size_t length)
{
	fprintf(server, "w %lu %zu\n", number, length);
	fwrite(text, 1, length, server);
	answered(server);
}

int main(int argc, char **argv)
{
	char what = argc >= 5 && strlen(argv[3]) == 1 ? argv[3][0] : '?';
	if (!(what == 'r' && argc == 5) && !(what == 'w' && argc <= 6))
		fail("usage: mailbox_client HOST PORT r N | w N [TEXT]");
	FILE *server = connect_to(argv[1], argv[2]);
	unsigned long number = strtoul(argv[4], NULL, 10);
	if (what == 'r') {
		read_mailbox(server, number);
	} else if (argc == 6) {
		write_mailbox(server, number, argv[5], strlen(argv[5]));
	} else {
		size_t length;
		char *content = whole_input(&length);
		write_mailbox(server, number, content, length);
		free(content);
	}
	fclose(server);
	return EXIT_SUCCESS;
}
