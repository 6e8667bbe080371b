#!/usr/bin/env python3
"""A chat for two over two mailboxes: each writes into one and reads the other's.

    dipc 2 4 7777 4                      on any machine, once
    ./chat.py localhost 7777 1 2 ann     one person
    ./chat.py localhost 7777 2 1 bob     the other

A mailbox holds what was written last, so a person's mailbox holds the last few lines said, each with
a number: whoever reads it prints the lines that are new. End with an empty line or end of file.
"""

import select
import socket
import sys

LINES_KEPT = 20
LINE_CHARACTERS_MAX = 100  # Twenty lines fit into a mailbox of 4 kbytes in most scripts.
POLL_SECONDS = 0.2


class Mailboxes:
    """The server, through its framed requests."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=10)
        self.stream = self.socket.makefile("rb")

    def read(self, number):
        self.socket.sendall(b"r %d 65536\n" % number)
        return self.stream.read(self._length())

    def write(self, number, content):
        self.socket.sendall(b"w %d %d\n%b" % (number, len(content), content))
        self._length()

    def _length(self):
        line = self.stream.readline().decode(errors="replace")
        if not line.startswith("ok "):
            sys.exit("chat: " + (line.strip() or "the server has gone"))
        return int(line[3:])


def parse(content):
    """The lines of a mailbox, as (number, text)."""
    for line in content.decode(errors="replace").splitlines():
        number, separator, text = line.partition(" ")
        if separator and number.isdigit():
            yield int(number), text


def show_new(mailboxes, number, seen):
    """Prints what the other one has said since line `seen`; the number of the last line."""
    for line, text in parse(mailboxes.read(number)):
        if line > seen:
            print(text, flush=True)
            seen = line
    return seen


def chat(host, port, mine, theirs, name):
    mailboxes = Mailboxes(host, port)
    said = list(parse(mailboxes.read(mine)))
    seen = 0
    while True:
        seen = show_new(mailboxes, theirs, seen)
        typed, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
        if not typed:
            continue
        text = sys.stdin.readline().strip()[:LINE_CHARACTERS_MAX]
        if not text:
            show_new(mailboxes, theirs, seen)
            return
        number = said[-1][0] + 1 if said else 1
        said = (said + [(number, f"{name}: {text}")])[-LINES_KEPT:]
        lines = "".join(f"{number} {text}\n" for number, text in said)
        mailboxes.write(mine, lines.encode())


def main():
    if len(sys.argv) != 6:
        sys.exit("usage: chat.py HOST PORT MY-MAILBOX THEIR-MAILBOX NAME")
    host, port, mine, theirs, name = sys.argv[1:]
    try:
        chat(host, int(port), int(mine), int(theirs), name)
    except (OSError, ValueError) as error:
        sys.exit(f"chat: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
