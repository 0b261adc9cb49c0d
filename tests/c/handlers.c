/* Handlers that the program changes just when the library has looked at them stay as the program has set them. */
#include "check.h"

#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

/* What the program does while the library changes the action of a signal: it sets these, one at each of its calls. */
static struct sigaction changes[3];
static volatile int watched, left;
static volatile sig_atomic_t calls[4];

static int real_sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    static int (*real)(int, const struct sigaction *, struct sigaction *);

    if (real == NULL) {
        *(void **)&real = dlsym(RTLD_NEXT, "sigaction");
    }
    return real(number, action, old);
}

/* The library's calls come here, too. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    int result = real_sigaction(number, action, old);

    if (number == watched && left > 0) {
        left--;
        CHECK(real_sigaction(number, &changes[left], NULL) == 0);
    }
    return result;
}

static void first(int number)
{
    calls[0] += number != 0;
}

static void second(int number)
{
    calls[1] += number != 0;
}

static void third(int number)
{
    calls[2] += number != 0;
}

static void fourth(int number)
{
    calls[3] += number != 0;
}

static struct sigaction action(void (*handler)(int), int flags, int masked)
{
    struct sigaction a;

    memset(&a, 0, sizeof a);
    a.sa_handler = handler;
    a.sa_flags = flags;
    sigemptyset(&a.sa_mask);
    if (masked != 0) {
        sigaddset(&a.sa_mask, masked);
    }
    return a;
}

/* From now on the program changes the signal's action at the next calls of the library, so often. */
static void change(int number, int times)
{
    left = times;
    watched = number;
}

static void check_action(int number, void (*handler)(int), int flags, int masked)
{
    struct sigaction current;

    CHECK(real_sigaction(number, NULL, &current) == 0);
    CHECK(current.sa_handler == handler);
    CHECK_EQUAL(current.sa_flags & (SA_ONSTACK | SA_RESTART | SA_NODEFER), flags);
    CHECK_EQUAL(sigismember(&current.sa_mask, SIGHUP), masked == SIGHUP);
}

/* Calls the library once it looks at handlers again. */
static void have_handlers_tended(transfer_engine_t engine)
{
    struct timespec pause = {0, 100000000};

    nanosleep(&pause, NULL);
    CHECK_EQUAL(discoverTopology(engine), 0);
}

static void test_changes_while_a_handler_is_moved_to_the_alternate_stack(transfer_engine_t engine)
{
    struct sigaction before = action(first, 0, 0);
    int times;

    /* The last change that is made is changes[0]: its handler, its flags, and its mask count. */
    changes[2] = action(second, 0, 0);
    changes[1] = action(third, SA_RESTART, 0);
    changes[0] = action(fourth, SA_RESTART | SA_NODEFER, SIGHUP);
    for (times = 1; times <= 3; times++) {
        CHECK(real_sigaction(SIGUSR2, &before, NULL) == 0);
        change(SIGUSR2, times);
        have_handlers_tended(engine);
        CHECK_EQUAL(left, 0);
        check_action(SIGUSR2, fourth, SA_RESTART | SA_NODEFER, SIGHUP);
        have_handlers_tended(engine);
        check_action(SIGUSR2, fourth, SA_ONSTACK | SA_RESTART | SA_NODEFER, SIGHUP);
    }
    changes[0] = action(first, 0, SIGHUP); /* the mask alone */
    CHECK(real_sigaction(SIGUSR2, &before, NULL) == 0);
    change(SIGUSR2, 1);
    have_handlers_tended(engine);
    check_action(SIGUSR2, first, 0, SIGHUP);
}

static void wait_for_call(int which)
{
    double began = now();

    while (calls[which] == 0) {
        struct timespec pause = {0, 1000000};

        nanosleep(&pause, NULL);
        CHECK(now() - began < 30);
    }
}

static void test_a_change_while_a_graceful_shutdown_is_set_up(transfer_engine_t engine)
{
    struct sigaction before = action(first, 0, 0);

    changes[0] = action(second, 0, 0);
    CHECK(real_sigaction(SIGTERM, &before, NULL) == 0);
    have_handlers_tended(engine);
    change(SIGTERM, 1);
    enableGracefulShutdown(engine);
    CHECK_EQUAL(left, 0);
    CHECK(kill(getpid(), SIGTERM) == 0);
    wait_for_call(1); /* the handler that the program has set last, after the metadata was withdrawn */
    CHECK_EQUAL(calls[0], 0);
}

static void test_a_change_while_a_graceful_shutdown_puts_the_handler_back(transfer_engine_t engine)
{
    struct sigaction before = action(first, 0, 0), current;
    double began = now();

    changes[0] = action(third, SA_ONSTACK, 0);
    CHECK(real_sigaction(SIGINT, &before, NULL) == 0);
    enableGracefulShutdown(engine);
    change(SIGINT, 1);
    CHECK(kill(getpid(), SIGINT) == 0);
    do {
        CHECK(now() - began < 30);
        CHECK(real_sigaction(SIGINT, NULL, &current) == 0);
    } while (left > 0 || current.sa_handler != third);
    have_handlers_tended(engine);
    check_action(SIGINT, third, SA_ONSTACK, 0);
}

int main(void)
{
    transfer_engine_t engine = make_engine();

    test_changes_while_a_handler_is_moved_to_the_alternate_stack(engine);
    test_a_change_while_a_graceful_shutdown_is_set_up(engine);
    test_a_change_while_a_graceful_shutdown_puts_the_handler_back(engine);
    destroyTransferEngine(engine);
    return 0;
}
