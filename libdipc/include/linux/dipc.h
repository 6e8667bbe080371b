/*
 * linux/dipc.h: what a program says to make its System V IPC distributed.
 *
 * IPC_DIPC in the flags of msgget, semget or shmget is all: everything else is System V IPC as it
 * always was. Where dipcd does not run, or without libdipc, the flag is harmless and the object is
 * this machine's own. (Without libdipc today's kernels read it as SHM_NORESERVE in shmget.)
 *
 * The values are those of <linux/ipc.h> and of the original DIPC, whose programs repeat the first
 * definition; both must stay as they are written here.
 */
#ifndef _LINUX_DIPC_H
#define _LINUX_DIPC_H

/* Make it distributed. */
#ifndef IPC_DIPC
#define IPC_DIPC 00010000
#endif

/* The original's kernels marked an object with this on the machine that is its home. Reserved. */
#ifndef IPC_OWN
#define IPC_OWN 00020000
#endif

/*
 * Signals to the processes of a node that becomes a reader or the writer of a part of a segment,
 * when dipc.conf says "inhibit_shm_signal = no". They are real-time signals of the kernel's
 * numbers, so that the same program means the same ones on every node and with every C library
 * (SIGRTMIN is 34 with glibc, 35 with musl); si_addr is where that part begins in the process.
 */
#define DIPC_SIG_READER 50
#define DIPC_SIG_WRITER 51

#endif
