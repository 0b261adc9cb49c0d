/* Transfers that kvferry_start starts, and how their ends are announced. */
#include "check.h"

#include <poll.h>
#include <unistd.h>

enum { SIZE = 1 << 16, LIMIT = 20000 };

static unsigned char near[SIZE], far[SIZE];

/* A WRITE of both arrays' first bytes to the peer of that name. */
static kvferry_transfer_t transfer_to(const char *name, const uint64_t *local, const uint64_t *remote, const uint64_t *length)
{
    kvferry_transfer_t t;

    memset(&t, 0, sizeof t);
    t.segment = name;
    t.opcode = OPCODE_WRITE;
    t.local = local;
    t.remote = remote;
    t.lengths = length;
    t.count = 1;
    t.announce = 1;
    return t;
}

/* Whether the descriptor becomes readable within so many milliseconds. */
static int readable(int fd, int timeout_ms)
{
    struct pollfd polled;

    polled.fd = fd;
    polled.events = POLLIN;
    return poll(&polled, 1, timeout_ms) == 1;
}

/* Takes announcements until one of that batch comes. */
static void await(transfer_engine_t engine, int fd, batch_id_t batch)
{
    batch_id_t ended = INVALID_BATCH;

    while (ended != batch) {
        CHECK(readable(fd, LIMIT));
        CHECK(kvferry_completions_next(engine, &ended, 1) >= 0);
    }
}

static void test_ends_are_announced_by_a_descriptor(void)
{
    transfer_engine_t initiator = make_engine(), target = make_engine();
    uint64_t local = (uint64_t)(uintptr_t)near, remote = (uint64_t)(uintptr_t)far, length = SIZE;
    char name[128], text[256];
    kvferry_transfer_t t = transfer_to(name, &local, &remote, &length);
    kvferry_progress_t progress;
    kvferry_failure_t failure;
    kvferry_outcome_t outcome;
    batch_id_t batch, ended[4];
    notify_msg_t *messages;
    int fd, other, size;

    fill(near, sizeof near, 1);
    CHECK_EQUAL(getLocalIpAndPort(target, name, sizeof name), 0);
    CHECK_EQUAL(registerLocalMemory(target, far, sizeof far, "cpu:0", 1), 0);
    fd = kvferry_completions_fd(initiator);
    other = kvferry_completions_fd(target);
    CHECK(fd >= 0 && other >= 0);
    CHECK_EQUAL(kvferry_completions_next(initiator, ended, 4), 1); /* messages may have come before */
    CHECK_EQUAL(kvferry_completions_next(target, ended, 4), 1);
    CHECK(!readable(fd, 0));

    t.notify_name = "request 7";
    t.notify_text = "is there";
    CHECK_EQUAL(kvferry_start(initiator, &t, sizeof t, &batch), 0); /* it opens the segment, too */
    await(initiator, fd, batch);
    CHECK(!readable(fd, 0));
    CHECK(memcmp(near, far, SIZE) == 0);
    CHECK_EQUAL(kvferry_batch_progress(initiator, batch, &progress), 0);
    CHECK(progress.moved == SIZE && progress.total == SIZE && progress.nanoseconds > 0);
    CHECK_EQUAL(kvferry_batch_failure(initiator, batch, &failure, sizeof failure, text, sizeof text), 0);
    CHECK(failure.reason == KVFERRY_REASON_NONE && text[0] == '\0');
    CHECK_EQUAL(kvferry_batch_outcome(initiator, batch, &outcome, sizeof outcome), 0);
    CHECK(outcome.began > 0 && outcome.ended >= outcome.began && outcome.requests == 1);
    CHECK(outcome.paths == KVFERRY_PATH_TCP || outcome.paths == KVFERRY_PATH_HOST || outcome.paths == KVFERRY_PATH_LOCAL);
    CHECK_EQUAL(kvferry_batch_outcome(initiator, batch, &outcome, sizeof outcome.began), 0);
    CHECK_EQUAL(kvferry_batch_outcome(initiator, batch, NULL, 0), -1);
    CHECK_EQUAL(kvferry_batch_discard(initiator, batch), 0);

    CHECK(readable(other, LIMIT));
    CHECK_EQUAL(kvferry_completions_next(target, ended, 4), 1);
    CHECK(ended[0] == INVALID_BATCH);
    messages = getNotifsFromEngine(target, &size);
    CHECK_EQUAL(size, 1);
    CHECK_EQUAL(freeNotifsMsgBuf(messages, size), 0);

    remote += SIZE;
    CHECK_EQUAL(kvferry_start(initiator, &t, sizeof t, &batch), 0);
    await(initiator, fd, batch);
    CHECK_EQUAL(kvferry_batch_failure(initiator, batch, &failure, sizeof failure, text, sizeof text), 0);
    CHECK(failure.reason == KVFERRY_REASON_REJECTED && failure.request == 0 && failure.opcode == OPCODE_WRITE);
    CHECK(failure.local == local && failure.remote == remote && failure.length == SIZE && strlen(text) > 0);
    CHECK_EQUAL(kvferry_batch_failure(initiator, batch, &failure, sizeof failure.reason, NULL, 0), 0);
    CHECK_EQUAL(kvferry_batch_failure(initiator, batch, NULL, 0, NULL, 0), -1);
    CHECK_EQUAL(kvferry_batch_progress(initiator, batch, NULL), -1);
    CHECK_EQUAL(kvferry_batch_discard(initiator, batch), 0);

    destroyTransferEngine(target);
    CHECK(readable(other, 0));
    CHECK_EQUAL(kvferry_completions_next(target, ended, 4), -1);
    destroyTransferEngine(initiator);
    close(fd);
    close(other);
}

static void test_a_transfer_without_ranges_opens_the_segment_or_sends_a_message(void)
{
    transfer_engine_t initiator = make_engine(), target = make_engine();
    char name[128];
    kvferry_transfer_t t = transfer_to(name, NULL, NULL, NULL);
    kvferry_failure_t failure;
    batch_id_t batch;

    t.count = 0;
    t.announce = 0;
    CHECK_EQUAL(getLocalIpAndPort(target, name, sizeof name), 0);
    CHECK_EQUAL(kvferry_start(initiator, &t, sizeof t, &batch), 0);
    CHECK_EQUAL(kvferry_batch_wait(initiator, batch, LIMIT), 0);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
    t.notify_name = t.notify_text = "hello";
    destroyTransferEngine(target);
    CHECK_EQUAL(kvferry_start(initiator, &t, sizeof t, &batch), 0);
    CHECK_EQUAL(kvferry_batch_wait(initiator, batch, LIMIT), KVFERRY_ERR_FAILED);
    CHECK_EQUAL(kvferry_batch_failure(initiator, batch, &failure, sizeof failure, NULL, 0), 0);
    CHECK(failure.reason == KVFERRY_REASON_CONNECTION && failure.request == UINT64_MAX);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
    destroyTransferEngine(initiator);
}

static void test_what_cannot_be_started_is_refused(void)
{
    transfer_engine_t engine = make_engine();
    uint64_t number = 1;
    kvferry_transfer_t t = transfer_to("127.0.0.1:1", &number, &number, &number);
    batch_id_t batch = 5;

    CHECK_EQUAL(kvferry_start(engine, NULL, sizeof t, &batch), -1);
    CHECK(batch == INVALID_BATCH);
    CHECK_EQUAL(kvferry_start(engine, &t, sizeof t, NULL), -1);
    CHECK_EQUAL(kvferry_start(engine, &t, 0, &batch), -1);
    CHECK_EQUAL(kvferry_start(engine, &t, sizeof(void *), &batch), -1); /* of the pointer, which is a mistake */
    CHECK(strstr(kvferry_last_error(), "bytes") != NULL);
    t.local = NULL;
    CHECK_EQUAL(kvferry_start(engine, &t, sizeof t, &batch), -1);
    t.local = &number;
    t.plan = (kvferry_plan_t)engine;
    CHECK_EQUAL(kvferry_start(engine, &t, sizeof t, &batch), -1);
    t.plan = NULL;
    t.opcode = 7;
    CHECK_EQUAL(kvferry_start(engine, &t, sizeof t, &batch), -1);
    t.opcode = OPCODE_READ;
    t.notify_name = "without a text";
    CHECK_EQUAL(kvferry_start(engine, &t, sizeof t, &batch), -1);
    t.notify_name = NULL;
    t.stream_kind = "abacus";
    CHECK(kvferry_start(engine, &t, sizeof t, &batch) < 0);
    CHECK(strstr(kvferry_last_error(), "abacus") != NULL);
    CHECK_EQUAL(kvferry_completions_next(engine, NULL, 1), -1);
    destroyTransferEngine(engine);
}

static void test_an_engine_takes_settings_of_its_own(void)
{
    static const char settings[] = "KVFERRY_MAX_SESSIONS=9\0MC_TRANSFER_TIMEOUT=77";
    kvferry_call_t call = kvferry_start_engine_with("P2PHANDSHAKE", "127.0.0.1", "", settings, sizeof settings);
    uint64_t number;
    transfer_engine_t engine;

    CHECK_EQUAL(kvferry_call_wait(call, LIMIT, &number), 0);
    engine = (transfer_engine_t)(uintptr_t)number;
    CHECK_EQUAL(kvferry_transfer_timeout_ms(engine), 77000);
    destroyTransferEngine(engine);
    CHECK(kvferry_start_engine_with("P2PHANDSHAKE", "127.0.0.1", "", "KVFERRY_NONE=1", sizeof "KVFERRY_NONE=1") == NULL);
    CHECK(strstr(kvferry_last_error(), "KVFERRY_NONE") != NULL);
    CHECK(kvferry_start_engine_with("P2PHANDSHAKE", "127.0.0.1", "", NULL, 5) == NULL);
}

int main(void)
{
    test_ends_are_announced_by_a_descriptor();
    test_a_transfer_without_ranges_opens_the_segment_or_sends_a_message();
    test_what_cannot_be_started_is_refused();
    test_an_engine_takes_settings_of_its_own();
    return 0;
}
