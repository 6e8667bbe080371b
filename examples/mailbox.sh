#!/bin/sh
# A mailbox server from start to removal, with nothing but nc. Usage: mailbox.sh [PORT]
# Uses the framed write, so that no pause is needed between two requests.
set -eu
port=${1:-7777}
host=127.0.0.1

put() { # MAILBOX TEXT
	length=$(printf %s "$2" | wc -c)
	printf 'w %d %d\n%sq\n' "$1" "$length" "$2" | nc "$host" "$port" | grep -qx "ok $length"
}

get() { # MAILBOX
	printf 'r %d\nq\n' "$1" | nc "$host" "$port"
}

dipc 4 4 "$port" 4 # Returns when the server is ready.
trap 'dipcrm "$port"' EXIT

put 1 "$(date -u +%A), and all is well"
echo "mailbox 1: $(get 1)"

counter() { # Two clients may read at once, but only one of them should count.
	for _ in 1 2 3; do
		put 2 "$(($(get 2) + 1))"
	done
}
put 2 0
counter
echo "mailbox 2: $(get 2)"
