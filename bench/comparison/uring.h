/* A ring of io_uring for one thread, by system calls alone: what ways.h needs of it, and nothing else. */
#include <errno.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What headers of Linux before 6.2 lack. A kernel that does not know it refuses with EINVAL. */
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#ifndef IORING_RECVSEND_FIXED_BUF
#define IORING_RECVSEND_FIXED_BUF (1U << 2)
#endif
#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif
#ifndef IORING_CQE_F_NOTIF
#define IORING_CQE_F_NOTIF (1U << 3)
#endif

enum { RING_SEND_ZC = 47 }; /* IORING_OP_SEND_ZC */
enum { RING_ENTRIES = 256 };

struct ring {
    int descriptor;
    unsigned queued, tail, sq_mask, cq_mask; /* queued: the kernel was not told yet */
    unsigned *sq_tail, *cq_head, *cq_tail;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
};

/* 0, or -1 with errno. The calling thread alone may use the ring. */
static int ring_open(struct ring *r)
{
    struct io_uring_params p;
    size_t size, least;
    unsigned *array, i;
    char *m;

    memset(r, 0, sizeof *r);
    memset(&p, 0, sizeof p);
    p.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE;
    p.cq_entries = 4 * RING_ENTRIES;
    r->descriptor = (int)syscall(SYS_io_uring_setup, RING_ENTRIES, &p);
    if (r->descriptor < 0)
        return -1;
    size = p.cq_off.cqes + p.cq_entries * sizeof *r->cqes; /* both rings are in one mapping */
    least = p.sq_off.array + p.sq_entries * sizeof *array;
    size = size > least ? size : least;
    m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, r->descriptor, IORING_OFF_SQ_RING);
    r->sqes = mmap(NULL, p.sq_entries * sizeof *r->sqes, PROT_READ | PROT_WRITE, MAP_SHARED, r->descriptor,
                   IORING_OFF_SQES);
    if (m == MAP_FAILED || (void *)r->sqes == MAP_FAILED)
        return -1;
    array = (unsigned *)(void *)(m + p.sq_off.array);
    for (i = 0; i < p.sq_entries; i++)
        array[i] = i;
    r->sq_mask = p.sq_entries - 1;
    r->cq_mask = p.cq_entries - 1;
    r->sq_tail = (unsigned *)(void *)(m + p.sq_off.tail);
    r->cq_head = (unsigned *)(void *)(m + p.cq_off.head);
    r->cq_tail = (unsigned *)(void *)(m + p.cq_off.tail);
    r->cqes = (struct io_uring_cqe *)(void *)(m + p.cq_off.cqes);
    return 0;
}

/* Its mappings last as long as the process. */
static void ring_close(struct ring *r)
{
    close(r->descriptor);
}

/* Makes memory buffer 0 of the ring, which pins it: 0, or -1 with errno. */
static int ring_register(struct ring *r, void *base, size_t size)
{
    struct iovec v;
    v.iov_base = base;
    v.iov_len = size;
    return (int)syscall(SYS_io_uring_register, r->descriptor, IORING_REGISTER_BUFFERS, &v, 1);
}

/* A request that the next ring_enter passes on. */
static struct io_uring_sqe *ring_queue(struct ring *r, int operation, int socket, const void *what, uint64_t size)
{
    struct io_uring_sqe *e = &r->sqes[r->tail++ & r->sq_mask];
    memset(e, 0, sizeof *e);
    e->opcode = (uint8_t)operation;
    e->fd = socket;
    e->addr = (uint64_t)(uintptr_t)what;
    e->len = (uint32_t)size;
    r->queued++;
    return e;
}

/* Passes on what is queued, and waits for so many completions: 0, or -1 with errno. */
static int ring_enter(struct ring *r, unsigned wait)
{
    __atomic_store_n(r->sq_tail, r->tail, __ATOMIC_RELEASE);
    for (;;) {
        long n = syscall(SYS_io_uring_enter, r->descriptor, r->queued, wait, IORING_ENTER_GETEVENTS, NULL, 0);
        if (n >= 0)
            r->queued -= (unsigned)n;
        if (n >= 0 ? r->queued == 0 : errno != EINTR)
            return n < 0 ? -1 : 0;
    }
}

/* The next completion, copied to *e; 0 where there is none. */
static int ring_take(struct ring *r, struct io_uring_cqe *e)
{
    unsigned head = *r->cq_head;
    if (head == __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE))
        return 0;
    memcpy(e, &r->cqes[head & r->cq_mask], sizeof *e);
    __atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
    return 1;
}
