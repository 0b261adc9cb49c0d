/* A peer of which nothing comes but its descriptor: it takes connections on its data port and never reads from them. */
#ifndef STUCK_PEER_H
#define STUCK_PEER_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

#define STUCK_BASE ((unsigned char *)(uintptr_t)0x100000)
#define STUCK_SIZE ((uint64_t)1 << 32)

static char stuck_name[64];
static int stuck_data_port;

static inline int stuck_listen(int *port)
{
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(listener >= 0);
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(listen(listener, 64) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    *port = ntohs(address.sin_port);
    return listener;
}

static inline void stuck_read(int connection, void *out, size_t length)
{
    size_t done = 0;

    while (done < length) {
        ssize_t got = read(connection, (char *)out + done, length - done);

        CHECK(got > 0);
        done += (size_t)got;
    }
}

/* Answers every handshake with the descriptor. */
static inline void *stuck_answer(void *argument)
{
    int listener = *(int *)argument;

    for (;;) {
        char frame[1024], body[700];
        unsigned char request_body[65536];
        uint64_t length;
        int connection = accept(listener, NULL, NULL);

        CHECK(connection >= 0);
        stuck_read(connection, &length, 8);
        CHECK(length > 0 && length <= sizeof request_body);
        stuck_read(connection, request_body, length);
        snprintf(body, sizeof body,
                 "{\"name\":\"%s\",\"protocol\":\"tcp\",\"tcp_data_port\":%d,\"tcp_proto_version\":2,"
                 "\"tcp_data_host\":\"127.0.0.1\","
                 "\"buffers\":[{\"name\":\"cpu:0\",\"addr\":%llu,\"length\":%llu}]}",
                 stuck_name, stuck_data_port, (unsigned long long)(uintptr_t)STUCK_BASE,
                 (unsigned long long)STUCK_SIZE);
        length = strlen(body) + 1;
        memcpy(frame, &length, 8);
        frame[8] = (char)request_body[0];
        memcpy(frame + 9, body, strlen(body));
        CHECK(write(connection, frame, 9 + strlen(body)) > 0);
        close(connection);
    }
    return NULL;
}

/* Starts the peer, and leaves its name in stuck_name. */
static inline void start_stuck_peer(void)
{
    static int listener;
    pthread_t thread;
    int port;

    stuck_listen(&stuck_data_port);
    listener = stuck_listen(&port);
    snprintf(stuck_name, sizeof stuck_name, "127.0.0.1:%d", port);
    CHECK(pthread_create(&thread, NULL, stuck_answer, &listener) == 0);
    CHECK(pthread_detach(thread) == 0);
}

#endif
