/*
 * enableGracefulShutdown: what a signal does after it. argv[1] is "default" or "destroyed" (the program must die of
 * the signal argv[2]), "handler", "ignored" or "child" (it must live on).
 */
#include "check.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned char near[4096], far[4096];
static volatile sig_atomic_t handled;

static void count(int number)
{
    (void)number;
    handled++;
}

static void wait_for_handler(int calls)
{
    double began = now();

    while (handled < calls) {
        struct timespec pause = {0, 1000000};

        nanosleep(&pause, NULL);
        CHECK(now() - began < 30);
    }
}

/* The program's own handler runs once for each signal, and the engine goes on. */
static void check_handler(transfer_engine_t engine, int number)
{
    signal(number, count);
    enableGracefulShutdown(engine);
    enableGracefulShutdown(engine);
    CHECK(kill(getpid(), number) == 0);
    wait_for_handler(1);
    CHECK(kill(getpid(), number) == 0);
    wait_for_handler(2);
    CHECK_EQUAL(handled, 2);
}

static void check_ignored(transfer_engine_t engine, int number)
{
    struct sigaction action;

    signal(number, SIG_IGN);
    enableGracefulShutdown(engine);
    CHECK(sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN);
    CHECK(kill(getpid(), number) == 0);
}

/* A forked child dies of the signal, and the parent does not hear of it. */
static void check_child(transfer_engine_t engine, int number)
{
    struct timespec pause = {0, 300000000};
    pid_t child;
    int ended;

    signal(number, count);
    enableGracefulShutdown(engine);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        signal(number, SIG_DFL);
        kill(getpid(), number);
        _exit(0);
    }
    CHECK(waitpid(child, &ended, 0) == child);
    CHECK(WIFSIGNALED(ended) && WTERMSIG(ended) == number);

    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        kill(getpid(), number);
        _exit(handled == 1 ? 0 : 1);
    }
    CHECK(waitpid(child, &ended, 0) == child);
    CHECK_EQUAL(ended, 0);
    nanosleep(&pause, NULL);
    CHECK_EQUAL(handled, 0);
}

int main(int argc, char **argv)
{
    transfer_engine_t engine = make_engine(), target = make_engine();
    int number;

    CHECK_EQUAL(argc, 3);
    number = atoi(argv[2]);
    if (strcmp(argv[1], "handler") == 0) {
        check_handler(engine, number);
    } else if (strcmp(argv[1], "ignored") == 0) {
        check_ignored(engine, number);
    } else if (strcmp(argv[1], "child") == 0) {
        check_child(engine, number);
    } else {
        enableGracefulShutdown(engine);
        if (strcmp(argv[1], "destroyed") == 0) {
            destroyTransferEngine(engine);
        }
        kill(getpid(), number);
        sleep(50);
    }
    CHECK_EQUAL(registerLocalMemory(target, far, sizeof far, "*", 1), 0);
    CHECK_EQUAL(move(engine, OPCODE_WRITE, near, open_peer(engine, target), far, sizeof far), STATUS_COMPLETED);
    return 0;
}
