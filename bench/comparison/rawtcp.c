/*
 * What the kernel gives a plain C program that moves the same blocks: a header, a payload and a status frame for each
 * request, one thread for each end of a connection, and nothing else.
 *
 *   rawtcp serve ADDRESS SIZE [WAY [BUFFER]]
 *       serves SIZE bytes of memory; prints its port, and runs until standard input closes
 *   rawtcp move ADDRESS PORT write|read BLOCK COUNT LANES DEPTH SECONDS [WAY [BUFFER [TOGETHER]]]
 *       moves COUNT scattered blocks of BLOCK bytes again and again over LANES connections, DEPTH requests in flight on
 *       each (at most 64), and prints a line of JSON: seconds, bytes, seconds of processor time of both ends, for
 *       one request in flight on one lane microseconds (p50, p99; else 0), system calls of both ends, and how many
 *       sends without a copy were notified of, and copied by the kernel all the same
 *
 * WAY is how this end has the kernel move bytes, see ways.h (plain: calls that block). BUFFER is how many bytes may
 * wait to be sent on a connection (0: the kernel chooses). A lane hands over TOGETHER requests at a time (1), of which
 * DEPTH is a multiple.
 */
#define _POSIX_C_SOURCE 200809L
#define _DEFAULT_SOURCE
#include "ways.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <time.h>

enum { OP_WRITE, OP_READ, OP_USED };
enum { MOST_LANES = 64, MOST_TIMES = 1 << 20 };
enum { MOST_LENT = 16 }; /* sends without a copy of a target that have not ended */

struct header {
    uint64_t op, offset, length;
};

/* What this process has used. */
struct used {
    uint64_t cpu; /* nanoseconds */
    struct took took;
};

/* Of this process, for all of its connections */
static char *memory;
static size_t memory_size;
static enum way way;
static int buffer;

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

static struct used used(void)
{
    struct used u;
    u.cpu = cpu();
    u.took = took;
    return u;
}

static void allocate(size_t size)
{
    char *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED)
        die("mmap");
    memset(m, 1, size);
    memory = m;
    memory_size = size;
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

/* What is sent in front of a payload: the status, which is 0, and where it was asked for what was used. */
struct answer {
    uint64_t status;
    struct used used;
};

static size_t prepare(struct answer *a, const struct header *h)
{
    if (h->op != OP_USED)
        return sizeof a->status;
    a->used = used();
    return sizeof *a;
}

static void serve_by_calls(struct connection *c)
{
    static struct answer zero; /* for sends that may still read it when the next answer is made */
    struct answer a = zero;
    struct header h;
    while (get(c, &h, sizeof h)) {
        struct iovec parts[2];
        parts[0].iov_len = prepare(&a, &h);
        parts[0].iov_base = h.op == OP_READ ? &zero : &a;
        parts[1].iov_base = memory + h.offset;
        parts[1].iov_len = h.length;
        if (h.op == OP_WRITE && !get(c, memory + h.offset, h.length))
            return;
        if (h.op == OP_READ ? !put(c, parts, 2, c->way == ZEROCOPY ? MSG_ZEROCOPY : 0) : !put(c, parts, 1, 0))
            return;
        if (!wait_returned(c, c->lent - MOST_LENT))
            return;
    }
}

static void serve_by_ring(struct connection *c)
{
    struct answer a;
    struct header h;
    a.status = 0;
    queue_get(c, &h, sizeof h, 0);
    while (run_queued(c, c->lent - MOST_LENT)) {
        struct iovec parts[2];
        if (h.op == OP_WRITE)
            queue_get(c, memory + h.offset, h.length, 1);
        parts[0].iov_base = &a;
        parts[0].iov_len = prepare(&a, &h);
        parts[1].iov_base = memory + h.offset;
        parts[1].iov_len = h.length;
        queue_put(c, parts, h.op == OP_READ ? 2 : 1, h.op == OP_READ, 1);
        queue_get(c, &h, sizeof h, 0);
    }
}

static void *session(void *argument)
{
    struct connection *c = malloc(sizeof *c);
    if (c == NULL)
        die("malloc");
    open_way(c, way, buffer, (int)(intptr_t)argument, memory, memory_size);
    if (by_ring(c))
        serve_by_ring(c);
    else
        serve_by_calls(c);
    close_way(c);
    free(c);
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

    allocate(size);
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
    pthread_barrier_t ready; /* all lanes are connected */
    struct sockaddr_in target;
    uint64_t op, block, count;
    int lanes, depth, together;
    double seconds;
};

struct lane {
    struct work *work;
    int number;
    struct connection connection;
    struct header headers[MOST_DEPTH]; /* of requests, by their turn */
    uint32_t lent[MOST_DEPTH];         /* sends without a copy that have been made by then */
    uint64_t sent, done;               /* requests */
    float *times;                      /* seconds of each request, where one is in flight at a time, on one lane */
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

/* The request of a lane's turn, as lanes take turns. */
static uint64_t request_of(const struct lane *l, uint64_t turn)
{
    return (uint64_t)l->number + turn * (uint64_t)l->work->lanes;
}

static struct header *header_of(struct lane *l, uint64_t turn)
{
    struct header *h = &l->headers[turn % MOST_DEPTH];
    h->op = l->work->op;
    h->offset = offset(l->work, request_of(l, turn), 1);
    h->length = l->work->block;
    return h;
}

static char *block_of(const struct lane *l, uint64_t turn)
{
    return memory + offset(l->work, request_of(l, turn), 0);
}

/* The parts of so many requests that are next: how many parts. */
static size_t requests(struct lane *l, unsigned sends, struct iovec *parts)
{
    struct iovec *p = parts;
    uint64_t turn;
    for (turn = l->sent; turn < l->sent + sends; turn++) {
        p->iov_base = header_of(l, turn);
        p++->iov_len = sizeof(struct header);
        if (l->work->op != OP_WRITE)
            continue;
        p->iov_base = block_of(l, turn);
        p++->iov_len = l->work->block;
    }
    return (size_t)(p - parts);
}

/* Sends so many requests, and takes the answers of the oldest ones. */
static void exchange_by_calls(struct lane *l, unsigned sends, unsigned answers)
{
    struct connection *c = &l->connection;
    int writing = l->work->op == OP_WRITE;
    struct iovec parts[2 * MOST_DEPTH];
    uint64_t statuses[MOST_DEPTH], turn;

    if (!put(c, parts, requests(l, sends, parts), writing && c->way == ZEROCOPY ? MSG_ZEROCOPY : 0))
        die("send");
    for (turn = l->sent; turn < l->sent + sends; turn++)
        l->lent[turn % MOST_DEPTH] = c->lent;
    if (writing && answers > 0 && !get(c, statuses, answers * sizeof *statuses))
        die("recv");
    for (turn = l->done; !writing && turn < l->done + answers; turn++)
        if (!get(c, statuses, sizeof *statuses) || !get(c, block_of(l, turn), l->work->block))
            die("recv");
    if (answers > 0 && !wait_returned(c, l->lent[(l->done + answers - 1) % MOST_DEPTH]))
        die("notification");
}

/* The same. */
static void exchange_by_ring(struct lane *l, unsigned sends, unsigned answers)
{
    struct connection *c = &l->connection;
    int writing = l->work->op == OP_WRITE;
    struct iovec parts[2 * MOST_DEPTH];
    uint64_t statuses[MOST_DEPTH], turn;

    if (sends > 0)
        queue_put(c, parts, requests(l, sends, parts), writing, 0);
    if (writing && answers > 0)
        queue_get(c, statuses, answers * sizeof *statuses, 0);
    for (turn = l->done; !writing && turn < l->done + answers; turn++) {
        queue_get(c, statuses, sizeof *statuses, 1);
        queue_get(c, block_of(l, turn), l->work->block, turn + 1 < l->done + answers);
    }
    if (!run_queued(c, writing && c->way == URING_ZEROCOPY ? (uint32_t)(l->done + answers) : 0))
        die("io_uring");
}

static void *run_lane(void *argument)
{
    struct lane *l = argument;
    struct work *w = l->work;
    void (*exchange)(struct lane *, unsigned, unsigned) = exchange_by_calls;
    unsigned together = (unsigned)w->together;
    double end, start;

    open_way(&l->connection, way, buffer, connected(w), memory, memory_size);
    if (by_ring(&l->connection))
        exchange = exchange_by_ring;
    pthread_barrier_wait(&w->ready);
    end = now() + w->seconds;
    do {
        unsigned answers = l->sent - l->done + together < (unsigned)w->depth ? 0 : together;
        start = now();
        exchange(l, together, answers);
        if (l->times != NULL && l->done < MOST_TIMES)
            l->times[l->done] = (float)(now() - start);
        l->sent += together;
        l->done += answers;
    } while (now() < end);
    for (; l->done < l->sent; l->done += together)
        exchange(l, 0, together);
    return NULL;
}

/* What both ends have used. c is a plain connection. */
static struct used both_used(struct connection *c)
{
    struct header h = {OP_USED, 0, 0};
    struct iovec part;
    uint64_t status;
    struct used there, here = used();
    part.iov_base = &h;
    part.iov_len = sizeof h;
    if (!put(c, &part, 1, 0) || !get(c, &status, sizeof status) || !get(c, &there, sizeof there))
        die("recv");
    here.cpu += there.cpu;
    here.took.calls += there.took.calls;
    here.took.notices += there.took.notices;
    here.took.copied += there.took.copied;
    return here;
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

static int move(struct work *w)
{
    static struct lane lanes[MOST_LANES];
    static struct connection asking;
    float *times = malloc(MOST_TIMES * sizeof *times);
    uint64_t done = 0, timed;
    struct used before, after;
    double start, seconds;
    int i;

    if (times == NULL)
        die("malloc");
    if (pthread_barrier_init(&w->ready, NULL, (unsigned)w->lanes + 1) != 0)
        die("pthread_barrier_init");
    allocate(2 * w->block * w->count);
    open_way(&asking, PLAIN, 0, connected(w), memory, memory_size);
    for (i = 0; i < w->lanes; i++) {
        lanes[i].work = w;
        lanes[i].number = i;
        lanes[i].times = w->depth == 1 && w->lanes == 1 ? times : NULL;
    }
    for (i = 0; i < w->lanes; i++)
        if (pthread_create(&lanes[i].thread, NULL, run_lane, &lanes[i]) != 0)
            die("pthread_create");
    before = both_used(&asking);
    start = now();
    pthread_barrier_wait(&w->ready);
    for (i = 0; i < w->lanes; i++) {
        pthread_join(lanes[i].thread, NULL);
        done += lanes[i].done;
    }
    seconds = now() - start;
    after = both_used(&asking);
    timed = lanes[0].times == NULL ? 0 : done < MOST_TIMES ? done : MOST_TIMES;
    qsort(times, timed, sizeof *times, by_value);
    printf("{\"seconds\": %.6f, \"bytes\": %.0f, \"cpu\": %.6f, \"p50\": %.2f, \"p99\": %.2f, \"calls\": %.0f, "
           "\"notices\": %.0f, \"copied\": %.0f}\n",
           seconds, (double)done * (double)w->block, (double)(after.cpu - before.cpu) * 1e-9,
           percentile(times, timed, 0.5), percentile(times, timed, 0.99),
           (double)(after.took.calls - before.took.calls),
           (double)(after.took.notices - before.took.notices), (double)(after.took.copied - before.took.copied));
    return 0;
}

static int usage(void)
{
    fprintf(stderr, "rawtcp serve ADDRESS SIZE [WAY [BUFFER]]\n"
                    "rawtcp move ADDRESS PORT write|read BLOCK COUNT LANES DEPTH SECONDS [WAY [BUFFER [TOGETHER]]]\n"
                    "WAY is plain, poll, zerocopy, uring or uring-zerocopy\n");
    return 2;
}

/* 0 where there is no such way. */
static int choose_way(const char *name)
{
    for (way = 0; way < WAYS; way++)
        if (strcmp(name, way_names[way]) == 0)
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    struct work w;
    if (argc >= 4 && argc <= 6 && strcmp(argv[1], "serve") == 0 && choose_way(argc > 4 ? argv[4] : "plain")) {
        buffer = argc > 5 ? atoi(argv[5]) : 0;
        return serve(argv[2], strtoull(argv[3], NULL, 10));
    }
    if (argc < 10 || argc > 13 || strcmp(argv[1], "move") != 0 || !choose_way(argc > 10 ? argv[10] : "plain"))
        return usage();
    w.target = place(argv[2], argv[3]);
    w.op = strcmp(argv[4], "read") == 0 ? OP_READ : OP_WRITE;
    w.block = strtoull(argv[5], NULL, 10);
    w.count = strtoull(argv[6], NULL, 10);
    w.lanes = atoi(argv[7]);
    w.depth = atoi(argv[8]);
    w.seconds = atof(argv[9]);
    buffer = argc > 11 ? atoi(argv[11]) : 0;
    w.together = argc > 12 ? atoi(argv[12]) : 1;
    if (w.block == 0 || w.count == 0 || w.lanes < 1 || w.lanes > MOST_LANES || w.depth < 1 || w.depth > MOST_DEPTH ||
        w.together < 1 || w.depth % w.together != 0)
        return usage();
    return move(&w);
}
