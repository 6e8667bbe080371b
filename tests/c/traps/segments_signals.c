/*
 * SIGSEGV is the program's own, whoever else needs it to serve memory: handlers set before the
 * first attach and after it, of all sorts, get what is theirs and nothing else, and a program that
 * blocks or ignores the signal can still touch what is attached.
 */
#include "trap.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, PAGES = 16 };

static int segment;
static char *memory;
static char alternate[65536];
static sigjmp_buf escape;
static volatile sig_atomic_t seen, on_alternate, blocked_segv, blocked_usr1;
static void *volatile seen_at;

static int blocked(int number)
{
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    return sigismember(&mask, number);
}

static void look(int number)
{
    char here;
    seen = number;
    on_alternate = &here >= alternate && &here < alternate + sizeof alternate;
    blocked_usr1 = blocked(SIGUSR1);
    blocked_segv += memory[PAGE * 3] == 0; /* a handler may touch what is attached */
}

static void plain(int number)
{
    look(number);
    siglongjmp(escape, 1);
}

static void with_info(int number, siginfo_t *info, void *context)
{
    (void)context;
    seen_at = info->si_addr;
    look(number);
    siglongjmp(escape, 1);
}

/* Touches every page, from wherever the program is. */
static void touch_all(const char *when)
{
    int fresh = segment ? 0 : 1;
    char *own = trap_attach(segment), sum = 0;
    for (int page = 0; page < PAGES; page++) {
        own[page * PAGE + 8]++;
        sum += memory[page * PAGE + 8] == own[page * PAGE + 8];
    }
    CHECK(sum == PAGES && !fresh, "both attachments show the same, %s", when);
    CHECK(shmdt(own) == 0, "shmdt %s", when);
}

/* An access that is the program's own mistake: its handler must see it. */
static void mistake(const char *when, int expected)
{
    static char *wrong;
    if (!wrong)
        wrong = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    seen = on_alternate = blocked_segv = blocked_usr1 = 0;
    if (sigsetjmp(escape, 1) == 0) {
        wrong[5] = 1;
        CHECK(0, "nothing happened, %s", when);
    }
    CHECK(seen == SIGSEGV, "the handler did not run, %s", when);
    CHECK(on_alternate == (expected & 1), "the stack, %s", when);
    CHECK(blocked_usr1 == (expected >> 1 & 1), "the mask in the handler, %s", when);
    if (expected & 4)
        CHECK(seen_at == wrong + 5, "the address, %s", when);
}

static void set(void *handler, int flags, int mask)
{
    struct sigaction action = { .sa_flags = flags }, back;
    if (flags & SA_SIGINFO)
        action.sa_sigaction = (void (*)(int, siginfo_t *, void *))handler;
    else
        action.sa_handler = (void (*)(int))handler;
    if (mask)
        sigaddset(&action.sa_mask, mask);
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0, "sigaction");
    CHECK(sigaction(SIGSEGV, NULL, &back) == 0, "sigaction asks");
    CHECK(back.sa_handler == action.sa_handler && (back.sa_flags & ~0x04000000) == flags,
          "what was set is not what is there: %x", back.sa_flags);
    CHECK(!mask || sigismember(&back.sa_mask, mask), "the mask that was set");
}

static void handlers(void)
{
    mistake("set before the first attach", 1 | 2 | 4);
    touch_all("after a mistake");
    set((void *)plain, 0, 0);
    mistake("plain", 0);
    set((void *)with_info, SA_SIGINFO, SIGUSR1);
    mistake("with info and a mask", 2 | 4);
    set((void *)plain, SA_ONSTACK, SIGSEGV);
    mistake("on the alternate stack", 1);
    touch_all("with a handler that blocks it");
    set((void *)plain, SA_RESETHAND, 0);
    mistake("once", 0);
    struct sigaction back;
    sigaction(SIGSEGV, NULL, &back);
    CHECK(back.sa_handler == SIG_DFL, "it is reset");
    touch_all("after it was reset");
    CHECK(signal(SIGSEGV, plain) == SIG_DFL, "signal returns what was there");
    mistake("by signal", 0);
    CHECK(signal(SIGSEGV, SIG_DFL) == plain, "signal returns the handler");
    struct { void *handler; unsigned long flags, restorer, mask; } raw;
    set((void *)plain, SA_NODEFER, 0);
    CHECK(syscall(SYS_rt_sigaction, SIGSEGV, NULL, &raw, 8) == 0 && raw.handler == (void *)plain,
          "the system call tells the same");
    mistake("without deferring", 0);
}

/* What ends the process must end it with that signal. */
static void ends(const char *how, void (*act)(void))
{
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(SECONDS_MAX);
        act();
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status)
          && WTERMSIG(status) == SIGSEGV, "%s: status %x", how, status);
}

static void by_default(void)
{
    signal(SIGSEGV, SIG_DFL);
    *(volatile int *)0 = memory[0];
}

static void ignored(void)
{
    signal(SIGSEGV, SIG_IGN);
    kill(getpid(), SIGSEGV);
    memory[PAGE * 5]++;
    *(volatile int *)8 = 1;
}

static void sent(void)
{
    signal(SIGSEGV, SIG_DFL);
    memory[PAGE * 6]++;
    raise(SIGSEGV);
}

static volatile sig_atomic_t asked;

static void on_usr1(int number)
{
    (void)number;
    asked = memory[PAGE * 7] + 1; /* with everything blocked */
}

static void masks(void)
{
    sigset_t all, before, after;
    struct sigaction action = { .sa_handler = on_usr1 }, back;
    sigfillset(&all);
    sigfillset(&action.sa_mask);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction of another signal");
    sigaction(SIGUSR1, NULL, &back);
    CHECK(sigismember(&back.sa_mask, SIGSEGV), "its mask is shown as it was set");
    raise(SIGUSR1);
    CHECK(asked > 0, "a handler that blocks everything touched memory");
    pthread_sigmask(SIG_SETMASK, &all, &before);
    touch_all("with everything blocked");
    CHECK(blocked(SIGSEGV), "the mask is shown as it was set");
    sigprocmask(SIG_SETMASK, &before, &after);
    CHECK(sigismember(&after, SIGSEGV) && !blocked(SIGSEGV), "and as it was set again");
    touch_all("with nothing blocked");
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGSEGV);
    sigprocmask(SIG_BLOCK, &one, NULL);
    touch_all("with only that blocked");
    CHECK(blocked(SIGSEGV), "it is shown as blocked");
    sigprocmask(SIG_UNBLOCK, &one, NULL);
    CHECK(!blocked(SIGSEGV), "it is shown as open");
}

int main(void)
{
    alarm(SECONDS_MAX);
    stack_t stack = { .ss_sp = alternate, .ss_size = sizeof alternate };
    sigaltstack(&stack, NULL);
    set((void *)with_info, SA_SIGINFO | SA_ONSTACK, SIGUSR1);
    struct sigaction early = { .sa_handler = on_usr1 };
    sigfillset(&early.sa_mask);
    sigaction(SIGUSR2, &early, NULL);
    segment = trap_segment(PAGES * PAGE);
    memory = trap_attach(segment);
    raise(SIGUSR2);
    CHECK(asked > 0, "a handler from before the first attach touched memory");
    handlers();
    ends("a mistake without a handler", by_default);
    ends("a mistake that is ignored", ignored);
    ends("a signal that was sent", sent);
    signal(SIGSEGV, SIG_DFL);
    masks();
    return trap_end();
}
