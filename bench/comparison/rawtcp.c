/*
 * What the kernel gives a plain C program that moves the same blocks: a header, a payload and a status frame for each
 * request, blocking calls, one thread for each end of a connection, and nothing else.
 *
 *   rawtcp serve ADDRESS SIZE
 *       serves SIZE bytes of memory; prints its port, and runs until standard input closes
 *   rawtcp move ADDRESS PORT write|read BLOCK COUNT LANES DEPTH SECONDS
 *       moves COUNT scattered blocks of BLOCK bytes again and again over LANES connections, DEPTH requests in flight on
 *       each, and prints a line of JSON: seconds, bytes, seconds of processor time of both ends, and for
 *       one request in flight on one lane microseconds (p50, p99; else 0)
 */
#define _POSIX_C_SOURCE 200809L
#define _DEFAULT_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OP_WRITE, OP_READ, OP_CPU };
enum { MOST_LANES = 64, MOST_TIMES = 1 << 20 };

struct header {
    uint64_t op, offset, length;
};

static char *memory; /* of this process, for all of its connections */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Nanoseconds of processor time that this process has used. */
static uint64_t cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* 0 when the other end has closed. */
static int get(int s, void *to, size_t n)
{
    char *p = to;
    while (n > 0) {
        ssize_t k = recv(s, p, n, 0);
        if (k <= 0)
            return 0;
        p += k;
        n -= (size_t)k;
    }
    return 1;
}

/* A frame and the payload behind it, in as few calls as the socket allows. */
static int put(int s, const void *frame, size_t size, const char *payload, size_t length)
{
    const char *f = frame;
    while (size + length > 0) {
        struct iovec v[2];
        v[0].iov_base = (void *)(uintptr_t)f;
        v[0].iov_len = size;
        v[1].iov_base = (void *)(uintptr_t)payload;
        v[1].iov_len = length;
        struct msghdr m;
        memset(&m, 0, sizeof m);
        m.msg_iov = v;
        m.msg_iovlen = 2;
        ssize_t k = sendmsg(s, &m, MSG_NOSIGNAL);
        if (k < 0)
            return 0;
        size_t sent = (size_t)k, of_frame = sent < size ? sent : size;
        f += of_frame;
        size -= of_frame;
        payload += sent - of_frame;
        length -= sent - of_frame;
    }
    return 1;
}

static char *allocate(size_t size)
{
    char *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED)
        die("mmap");
    memset(m, 1, size);
    return m;
}

static void no_delay(int s)
{
    int one = 1;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static struct sockaddr_in place(const char *address, const char *port)
{
    struct sockaddr_in a;
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    a.sin_port = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, address, &a.sin_addr) != 1) {
        fprintf(stderr, "rawtcp: %s is no address\n", address);
        exit(1);
    }
    return a;
}

/* The target */

static void *session(void *argument)
{
    int s = (int)(intptr_t)argument;
    struct header h;
    while (get(s, &h, sizeof h)) {
        uint64_t status = h.op == OP_CPU ? cpu() : 0;
        if (h.op == OP_WRITE && !get(s, memory + h.offset, h.length))
            break;
        if (!put(s, &status, sizeof status, memory + h.offset, h.op == OP_READ ? h.length : 0))
            break;
    }
    close(s);
    return NULL;
}

static void *accept_all(void *argument)
{
    int listener = *(int *)argument;
    for (;;) {
        int s = accept(listener, NULL, NULL);
        pthread_t t;
        if (s < 0)
            continue;
        no_delay(s);
        if (pthread_create(&t, NULL, session, (void *)(intptr_t)s) != 0)
            die("pthread_create");
        pthread_detach(t);
    }
    return NULL;
}

static int serve(const char *address, size_t size)
{
    static int listener;
    struct sockaddr_in a = place(address, "0");
    socklen_t n = sizeof a;
    pthread_t t;
    char byte;

    memory = allocate(size);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&a, n) != 0 || listen(listener, MOST_LANES) != 0 ||
        getsockname(listener, (struct sockaddr *)&a, &n) != 0)
        die("listen");
    printf("%d\n", ntohs(a.sin_port));
    fflush(stdout);
    if (pthread_create(&t, NULL, accept_all, &listener) != 0)
        die("pthread_create");
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    return 0;
}

/* The initiator */

struct work {
    struct sockaddr_in target;
    uint64_t op, block, count;
    int lanes, depth;
    double seconds;
};

struct lane {
    const struct work *work;
    int socket, number;
    uint64_t done; /* requests */
    float *times;  /* seconds of each request, where one is in flight at a time, on one lane */
    pthread_t thread;
};

static int connected(const struct work *w)
{
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (s < 0 || connect(s, (const struct sockaddr *)&w->target, sizeof w->target) != 0)
        die("connect");
    no_delay(s);
    return s;
}

/* The blocks of one side: every other one; on the target in another order. */
static uint64_t offset(const struct work *w, uint64_t request, int remote)
{
    uint64_t slot = request % w->count;
    if (remote)
        slot = (slot * 29 + 5) % w->count; /* each once, as count is no multiple of 29 */
    return 2 * slot * w->block;
}

static void send_one(const struct work *w, int s, uint64_t request)
{
    struct header h;
    h.op = w->op;
    h.offset = offset(w, request, 1);
    h.length = w->block;
    if (!put(s, &h, sizeof h, memory + offset(w, request, 0), w->op == OP_WRITE ? w->block : 0))
        die("send");
}

static void finish_one(const struct work *w, int s, uint64_t request)
{
    uint64_t status;
    if (!get(s, &status, sizeof status))
        die("recv");
    if (w->op == OP_READ && !get(s, memory + offset(w, request, 0), w->block))
        die("recv");
}

static void *run_lane(void *argument)
{
    struct lane *l = argument;
    const struct work *w = l->work;
    uint64_t sent = (uint64_t)l->number, next = sent; /* lanes take turns */
    uint64_t step = (uint64_t)w->lanes;
    int flying = 0;
    double end = now() + w->seconds, start;
    while ((start = now()) < end) {
        send_one(w, l->socket, sent);
        sent += step;
        if (++flying < w->depth)
            continue;
        finish_one(w, l->socket, next);
        if (l->times != NULL && l->done < MOST_TIMES)
            l->times[l->done] = (float)(now() - start);
        next += step;
        flying--;
        l->done++;
    }
    for (; flying > 0; flying--, next += step, l->done++)
        finish_one(w, l->socket, next);
    return NULL;
}

static uint64_t target_cpu(int s)
{
    struct header h = {OP_CPU, 0, 0};
    uint64_t answer;
    if (!put(s, &h, sizeof h, NULL, 0) || !get(s, &answer, sizeof answer))
        die("recv");
    return answer;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Microseconds within which this part of sorted times lies. */
static double percentile(const float *times, uint64_t n, double part)
{
    return n > 0 ? (double)times[(uint64_t)(part * (double)(n - 1))] * 1e6 : 0;
}

static int move(const struct work *w)
{
    static struct lane lanes[MOST_LANES];
    float *times = malloc(MOST_TIMES * sizeof *times);
    uint64_t done = 0, timed, used, here;
    double start, seconds;
    int asking = connected(w), i;

    if (times == NULL)
        die("malloc");
    memory = allocate(2 * w->block * w->count);
    for (i = 0; i < w->lanes; i++) {
        lanes[i].work = w;
        lanes[i].number = i;
        lanes[i].times = w->depth == 1 && w->lanes == 1 ? times : NULL;
        lanes[i].socket = connected(w);
    }
    used = target_cpu(asking);
    here = cpu();
    start = now();
    for (i = 0; i < w->lanes; i++)
        if (pthread_create(&lanes[i].thread, NULL, run_lane, &lanes[i]) != 0)
            die("pthread_create");
    for (i = 0; i < w->lanes; i++) {
        pthread_join(lanes[i].thread, NULL);
        done += lanes[i].done;
    }
    seconds = now() - start;
    used = target_cpu(asking) - used + cpu() - here;
    timed = lanes[0].times == NULL ? 0 : done < MOST_TIMES ? done : MOST_TIMES;
    qsort(times, timed, sizeof *times, by_value);
    printf("{\"seconds\": %.6f, \"bytes\": %.0f, \"cpu\": %.6f, \"p50\": %.2f, \"p99\": %.2f}\n", seconds,
           (double)done * (double)w->block, (double)used * 1e-9, percentile(times, timed, 0.5),
           percentile(times, timed, 0.99));
    return 0;
}

static int usage(void)
{
    fprintf(stderr, "rawtcp serve ADDRESS SIZE\n"
                    "rawtcp move ADDRESS PORT write|read BLOCK COUNT LANES DEPTH SECONDS\n");
    return 2;
}

int main(int argc, char **argv)
{
    struct work w;
    if (argc == 4 && strcmp(argv[1], "serve") == 0)
        return serve(argv[2], strtoull(argv[3], NULL, 10));
    if (argc != 10 || strcmp(argv[1], "move") != 0)
        return usage();
    w.target = place(argv[2], argv[3]);
    w.op = strcmp(argv[4], "read") == 0 ? OP_READ : OP_WRITE;
    w.block = strtoull(argv[5], NULL, 10);
    w.count = strtoull(argv[6], NULL, 10);
    w.lanes = atoi(argv[7]);
    w.depth = atoi(argv[8]);
    w.seconds = atof(argv[9]);
    if (w.block == 0 || w.count == 0 || w.lanes < 1 || w.lanes > MOST_LANES || w.depth < 1)
        return usage();
    return move(&w);
}
