/*
 * delaylink NAMESPACE ADDRESS NAMESPACE ADDRESS DELAY_US [MBIT_PER_S [LOSE_ONE_IN]]: joins two network namespaces, given
 * as files like /proc/PID/ns/net, by a pair of TUN devices called dl0, with so many microseconds of delay each way. The
 * network is ADDRESS/24. It needs root, prints "up", and runs until standard input closes. A number on a line of standard
 * input is a port of TCP: packets to it are lost from then on. A negative one is a size in bytes: longer packets are lost.
 *
 * MBIT_PER_S bounds the rate of each way; 0 is no bound. Of LOSE_ONE_IN long packets one is lost; 0 is none.
 *
 * Each way has a thread that reads packets into a ring, with the time at which each is due, and one that writes them
 * when they are due. A full ring holds up the reader, and the device's queue then drops, as a network does.
 */
#define _GNU_SOURCE /* setns */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 4096, MTU = 65000, QUEUE = 4000 };

struct packet {
    long due; /* nanoseconds */
    ssize_t length;
    char *bytes;
};

struct way {
    int in, out;
    long free;     /* nanoseconds: when the link has sent what was read so far */
    unsigned seen; /* long packets */
    unsigned head, tail; /* packets read, packets written */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct packet ring[SLOTS];
};

enum { LONG = 500 }; /* bytes: packets with payload */

static long delay;            /* nanoseconds */
static long rate, lose;       /* Mbit/s, and of how many packets one is lost; 0 is none */
static int closed_port;       /* of TCP; 0 is none; two kinds of threads use it */
static int longest = MTU;     /* bytes of a packet; likewise */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* Whether a packet is lost on the way. */
static int is_lost(struct way *w, const struct packet *p)
{
    const unsigned char *b = (const unsigned char *)p->bytes;
    int header = (b[0] & 15) * 4, closed = __atomic_load_n(&closed_port, __ATOMIC_RELAXED);
    if (b[0] >> 4 == 4 && b[9] == IPPROTO_TCP && p->length > header + 4 && b[header + 2] * 256 + b[header + 3] == closed)
        return 1;
    if (p->length > __atomic_load_n(&longest, __ATOMIC_RELAXED))
        return 1;
    return lose > 0 && p->length > LONG && ++w->seen % (unsigned long)lose == 0;
}

/* When a packet arrives that is read now: after the packets before it, at the rate of the link. */
static long arrival(struct way *w, const struct packet *p)
{
    long start = now();
    if (rate > 0) {
        start = w->free = (w->free > start ? w->free : start) + p->length * 8000L / rate;
    }
    return start + delay;
}

static void *read_packets(void *argument)
{
    struct way *w = argument;
    for (;;) {
        struct packet *p = &w->ring[w->head % SLOTS];
        pthread_mutex_lock(&w->mutex);
        while (w->head - w->tail >= SLOTS)
            pthread_cond_wait(&w->changed, &w->mutex);
        pthread_mutex_unlock(&w->mutex);
        p->length = read(w->in, p->bytes, MTU);
        if (p->length < 0 && errno != EINTR)
            die("dl0");
        if (p->length <= 0)
            continue;
        if (is_lost(w, p))
            continue;
        p->due = arrival(w, p);
        pthread_mutex_lock(&w->mutex);
        w->head++;
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->mutex);
    }
    return NULL;
}

static void wait_until(long due)
{
    struct timespec t;
    t.tv_sec = due / 1000000000L;
    t.tv_nsec = due % 1000000000L;
    if (due > now())
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void *write_packets(void *argument)
{
    struct way *w = argument;
    prctl(PR_SET_TIMERSLACK, 1000L); /* nanoseconds that the kernel may oversleep */
    for (;;) {
        struct packet *p = &w->ring[w->tail % SLOTS];
        pthread_mutex_lock(&w->mutex);
        while (w->head == w->tail)
            pthread_cond_wait(&w->changed, &w->mutex);
        pthread_mutex_unlock(&w->mutex);
        wait_until(p->due);
        if (write(w->out, p->bytes, (size_t)p->length) < 0 && errno != EIO)
            perror("delaylink: write");
        pthread_mutex_lock(&w->mutex);
        w->tail++;
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->mutex);
    }
    return NULL;
}

static struct ifreq interface(const char *name)
{
    struct ifreq r;
    memset(&r, 0, sizeof r);
    snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
    return r;
}

static void set_address(int s, unsigned long request, const char *text)
{
    struct ifreq r = interface("dl0");
    struct sockaddr_in a;
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    if (inet_pton(AF_INET, text, &a.sin_addr) != 1)
        die(text);
    memcpy(&r.ifr_addr, &a, sizeof a);
    if (ioctl(s, request, &r) != 0)
        die("an address for dl0");
}

static void set_up(int s, const char *name)
{
    struct ifreq r = interface(name);
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(s, SIOCSIFFLAGS, &r) != 0)
        die(name);
}

/* A TUN device in a namespace. */
static int tun(const char *namespace, const char *address)
{
    struct ifreq r = interface("dl0");
    int file = open(namespace, O_RDONLY), device, s;
    if (file < 0 || setns(file, CLONE_NEWNET) != 0)
        die(namespace);
    close(file);
    device = open("/dev/net/tun", O_RDWR);
    r.ifr_flags = IFF_TUN | IFF_NO_PI;
    if (device < 0 || ioctl(device, TUNSETIFF, &r) != 0)
        die("/dev/net/tun");
    s = socket(AF_INET, SOCK_DGRAM, 0);
    set_address(s, SIOCSIFADDR, address);
    set_address(s, SIOCSIFNETMASK, "255.255.255.0");
    r.ifr_mtu = MTU;
    if (ioctl(s, SIOCSIFMTU, &r) != 0)
        die("the MTU of dl0");
    r.ifr_qlen = QUEUE;
    if (ioctl(s, SIOCSIFTXQLEN, &r) != 0)
        die("the queue of dl0");
    set_up(s, "dl0");
    set_up(s, "lo");
    close(s);
    return device;
}

static void start(struct way *w, int in, int out)
{
    pthread_t thread;
    int i;
    w->in = in;
    w->out = out;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->changed, NULL);
    for (i = 0; i < SLOTS; i++)
        if ((w->ring[i].bytes = malloc(MTU)) == NULL)
            die("malloc");
    if (pthread_create(&thread, NULL, read_packets, w) != 0 || pthread_create(&thread, NULL, write_packets, w) != 0)
        die("pthread_create");
}

int main(int argc, char **argv)
{
    static struct way there, back;
    int a, b;
    char line[32];
    if (argc < 6 || argc > 8) {
        fprintf(stderr, "delaylink NAMESPACE ADDRESS NAMESPACE ADDRESS DELAY_US [MBIT_PER_S [LOSE_ONE_IN]]\n");
        return 2;
    }
    delay = atol(argv[5]) * 1000;
    rate = argc > 6 ? atol(argv[6]) : 0;
    lose = argc > 7 ? atol(argv[7]) : 0;
    a = tun(argv[1], argv[2]);
    b = tun(argv[3], argv[4]);
    start(&there, a, b);
    start(&back, b, a);
    puts("up");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        int number = atoi(line);
        if (number < 0)
            __atomic_store_n(&longest, -number, __ATOMIC_RELAXED);
        else
            __atomic_store_n(&closed_port, number, __ATOMIC_RELAXED);
    }
    return 0;
}
