/*
 * The ways in which rawtcp.c has the kernel move bytes, and what each took:
 *
 *   plain           sendmsg and recv that block
 *   poll            the same calls, none of which blocks, and poll
 *   zerocopy        as poll, and with MSG_ZEROCOPY for payloads
 *   uring           io_uring: what a lane sends and receives next, in one system call
 *   uring-zerocopy  the same, where payloads are sent from registered memory, without a copy
 *
 * A payload that is sent without a copy belongs to the kernel until it notifies of the end.
 */
#include "uring.h"
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <linux/errqueue.h> /* needs struct timespec */

enum way { PLAIN, POLL, ZEROCOPY, URING, URING_ZEROCOPY, WAYS };
enum { MOST_DEPTH = 64 };

static const char *const way_names[WAYS] = {"plain", "poll", "zerocopy", "uring", "uring-zerocopy"};

/* What the connections of this process took. */
static struct took {
    uint64_t calls;           /* of the system, for bytes and notifications */
    uint64_t notices, copied; /* sends that the kernel notified of, and those of them that it copied all the same */
} took;

struct connection {
    int socket;
    enum way way;
    uint32_t lent, returned; /* sends without a copy, and how many of them have ended */
    unsigned running;        /* operations of the ring that are to complete */
    int failed;
    struct ring ring;
    struct msghdr message; /* that the ring sends, of these */
    struct iovec parts[2 * MOST_DEPTH];
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void add(uint64_t *count, uint64_t n)
{
    __atomic_fetch_add(count, n, __ATOMIC_RELAXED);
}

static int by_ring(const struct connection *c)
{
    return c->way == URING || c->way == URING_ZEROCOPY;
}

/* By the thread that will use the connection. memory is what its payloads are sent from. buffer is how many bytes may
 * wait to be sent; 0 lets the kernel choose. */
static void open_way(struct connection *c, enum way way, int buffer, int s, void *memory, size_t size)
{
    int one = 1;
    memset(c, 0, sizeof *c);
    c->socket = s;
    c->way = way;
    if (way == ZEROCOPY && setsockopt(s, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) != 0)
        die("SO_ZEROCOPY");
    if (buffer > 0 && setsockopt(s, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer) != 0)
        die("SO_SNDBUF");
    if (by_ring(c) && ring_open(&c->ring) != 0)
        die("io_uring_setup");
    if (way == URING_ZEROCOPY && ring_register(&c->ring, memory, size) != 0)
        die("io_uring_register");
}

static void close_way(struct connection *c)
{
    close(c->socket);
    if (by_ring(c))
        ring_close(&c->ring);
}

/* Takes one notification, of one or more sends, from the socket's queue: 0 with errno where there is none. */
static int take_notice(struct connection *c)
{
    char control[128];
    struct msghdr m;
    struct cmsghdr *h;
    struct sock_extended_err e;
    uint32_t sends;

    memset(&m, 0, sizeof m);
    m.msg_control = control;
    m.msg_controllen = sizeof control;
    add(&took.calls, 1);
    if (recvmsg(c->socket, &m, MSG_ERRQUEUE) < 0)
        return 0;
    h = CMSG_FIRSTHDR(&m);
    if (h == NULL)
        return 1;
    memcpy(&e, CMSG_DATA(h), sizeof e);
    if (e.ee_origin != SO_EE_ORIGIN_ZEROCOPY)
        return 1;
    sends = e.ee_data - e.ee_info + 1;
    c->returned += sends;
    add(&took.notices, sends);
    add(&took.copied, e.ee_code & SO_EE_CODE_ZEROCOPY_COPIED ? sends : 0);
    return 1;
}

/* Waits for one of the events where a call would have had to block: 0 where it failed for another reason. Notifications
 * are taken, as a socket that has some does not let poll sleep. */
static int ready(struct connection *c, short events)
{
    struct pollfd p;
    if (errno != EAGAIN)
        return 0;
    p.fd = c->socket;
    p.events = events;
    add(&took.calls, 1);
    if (poll(&p, 1, -1) < 0)
        return 0;
    if (p.revents & POLLERR && !take_notice(c) && errno != EAGAIN)
        return 0;
    return !(p.revents & POLLHUP);
}

/* These return 0 when the other end has closed. */

static int get(struct connection *c, void *to, size_t n)
{
    char *p = to;
    while (n > 0) {
        ssize_t k = recv(c->socket, p, n, c->way == PLAIN ? 0 : MSG_DONTWAIT);
        add(&took.calls, 1);
        if (k == 0 || (k < 0 && !ready(c, POLLIN)))
            return 0;
        if (k < 0)
            continue;
        p += k;
        n -= (size_t)k;
    }
    return 1;
}

/* All of the parts, in as few calls as the socket allows. It changes them. */
static int put(struct connection *c, struct iovec *parts, size_t count, int flags)
{
    flags |= c->way == PLAIN ? MSG_NOSIGNAL : MSG_NOSIGNAL | MSG_DONTWAIT;
    while (count > 0) {
        struct msghdr m;
        ssize_t k;
        size_t left;
        memset(&m, 0, sizeof m);
        m.msg_iov = parts;
        m.msg_iovlen = count;
        k = sendmsg(c->socket, &m, flags);
        add(&took.calls, 1);
        if (k < 0 && !ready(c, POLLOUT))
            return 0;
        if (k < 0)
            continue;
        c->lent += (flags & MSG_ZEROCOPY) != 0;
        for (left = (size_t)k; count > 0 && left >= parts->iov_len; parts++, count--)
            left -= parts->iov_len;
        if (count > 0) {
            parts->iov_base = (char *)parts->iov_base + left;
            parts->iov_len -= left;
        }
    }
    return 1;
}

/* Waits until the first so many sends without a copy have ended. */
static int wait_returned(struct connection *c, uint32_t lent)
{
    while ((int32_t)(lent - c->returned) > 0)
        if (!take_notice(c) && !ready(c, 0))
            return 0;
    return 1;
}

/* Operations of a ring. Those that are linked to the next one run one after the other. */

static struct io_uring_sqe *queue(struct connection *c, int operation, const void *what, size_t size, int linked)
{
    struct io_uring_sqe *e = ring_queue(&c->ring, operation, c->socket, what, size);
    e->user_data = size; /* what the operation is to move */
    e->msg_flags = MSG_NOSIGNAL | MSG_WAITALL;
    e->flags = linked ? IOSQE_IO_LINK : 0;
    c->running++;
    return e;
}

static void queue_get(struct connection *c, void *to, size_t n, int linked)
{
    queue(c, IORING_OP_RECV, to, n, linked);
}

/* Frames, each with a payload behind it where payloads is set. No other may be queued until it is
 * done. */
static void queue_put(struct connection *c, const struct iovec *parts, size_t count, int payloads, int linked)
{
    size_t i, size = 0;
    if (!payloads || c->way != URING_ZEROCOPY) {
        for (i = 0; i < count; i++)
            size += parts[i].iov_len;
        memcpy(c->parts, parts, count * sizeof *parts);
        memset(&c->message, 0, sizeof c->message);
        c->message.msg_iov = c->parts;
        c->message.msg_iovlen = count;
        queue(c, IORING_OP_SENDMSG, &c->message, 1, linked)->user_data = size;
        return;
    }
    for (i = 0; i < count; i += 2) {
        queue(c, IORING_OP_SEND, parts[i].iov_base, parts[i].iov_len, 1)->msg_flags |= MSG_MORE;
        queue(c, RING_SEND_ZC, parts[i + 1].iov_base, parts[i + 1].iov_len, linked || i + 2 < count)->ioprio =
            IORING_RECVSEND_FIXED_BUF | IORING_SEND_ZC_REPORT_USAGE;
    }
}

static void completed(struct connection *c, const struct io_uring_cqe *e)
{
    if (e->flags & IORING_CQE_F_NOTIF) {
        c->returned++;
        add(&took.notices, 1);
        add(&took.copied, (uint32_t)e->res & IORING_NOTIF_USAGE_ZC_COPIED ? 1 : 0);
        return;
    }
    c->lent += (e->flags & IORING_CQE_F_MORE) != 0;
    c->running--;
    if (e->res >= 0 && (uint64_t)e->res == e->user_data)
        return;
    c->failed = 1;
    if (e->res < 0 && e->res != -ECANCELED && e->res != -ECONNRESET && e->res != -EPIPE)
        fprintf(stderr, "rawtcp: io_uring: %s\n", strerror(-e->res));
}

/* Runs what is queued to its end, and waits until the first so many sends without a copy have ended. */
static int run_queued(struct connection *c, uint32_t lent)
{
    while (!c->failed && (c->running > 0 || (int32_t)(lent - c->returned) > 0)) {
        struct io_uring_cqe e;
        add(&took.calls, 1);
        if (ring_enter(&c->ring, c->running > 0 ? c->running : 1) != 0)
            die("io_uring_enter");
        while (ring_take(&c->ring, &e))
            completed(c, &e);
    }
    return !c->failed;
}
