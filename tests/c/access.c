/* What peers may do with memory, as kvferry_register has said, between two engines of this process. */
#include "check.h"

enum { PART = 64 << 10, LENGTH = PART - 100 };

/* The parts of the target's memory, each registered for one thing. */
enum { NOTHING, READABLE, WRITABLE, BOTH, PARTS };

static const int flags[PARTS] = {KVFERRY_ACCESS_NONE, KVFERRY_ACCESS_REMOTE_READ, KVFERRY_ACCESS_REMOTE_WRITE,
                                 KVFERRY_ACCESS_REMOTE_READ | KVFERRY_ACCESS_REMOTE_WRITE};

static unsigned char near[PART], far[PARTS][PART], near_before[PART], far_before[PARTS][PART];
static transfer_engine_t initiator, target;

static buffer_entry_t range(unsigned char *memory, size_t length)
{
    buffer_entry_t entry;

    entry.addr = memory;
    entry.length = length;
    return entry;
}

static int allowed(int opcode, int part)
{
    return flags[part] & (opcode == OPCODE_READ ? KVFERRY_ACCESS_REMOTE_READ : KVFERRY_ACCESS_REMOTE_WRITE);
}

/* One transfer of one part: it moves all of its bytes, or none and says why. */
static void check_part(transfer_engine_t engine, segment_id_t segment, int opcode, int part)
{
    unsigned char *there = far[part] + 50;
    batch_id_t batch;
    char reason[512];

    fill(near, PART, 1);
    fill(far[0], PARTS * PART, 2);
    memcpy(near_before, near, sizeof near);
    memcpy(far_before, far, sizeof far);
    batch = start(engine, opcode, near, segment, there, LENGTH);
    if (allowed(opcode, part)) {
        CHECK_EQUAL(outcome(engine, batch, 0), STATUS_COMPLETED);
        CHECK(memcmp(near, there, LENGTH) == 0);
    } else {
        CHECK_EQUAL(outcome(engine, batch, 0), STATUS_FAILED);
        CHECK(memcmp(near, near_before, sizeof near) == 0);
        CHECK(memcmp(far, far_before, sizeof far) == 0);
        CHECK_EQUAL(kvferry_batch_error(engine, batch, reason, sizeof reason), 0);
        if (part != NOTHING) {
            CHECK(strstr(reason, opcode == OPCODE_READ ? "does not let peers read it" : "does not let peers write it") != NULL);
        }
    }
    CHECK_EQUAL(freeBatchID(engine, batch), 0);
}

static void test_transfers_do_what_the_flags_say(transfer_engine_t engine, segment_id_t segment)
{
    int part;

    for (part = 0; part < PARTS; part++) {
        check_part(engine, segment, OPCODE_WRITE, part);
        check_part(engine, segment, OPCODE_READ, part);
    }
}

static void test_flags_that_do_not_exist_register_nothing(void)
{
    static unsigned char other[100];
    const int unknown[] = {4, 7, 256, -1};
    buffer_entry_t entry = range(other, sizeof other);
    size_t i;

    for (i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        CHECK_EQUAL(kvferry_register(target, &entry, 1, "*", unknown[i]), -1);
        CHECK(strstr(kvferry_last_error(), "flags that do not exist") != NULL);
        CHECK_EQUAL(unregisterLocalMemory(target, other), -3);
    }
}

static void test_ranges_are_registered_all_or_none(void)
{
    static unsigned char other[300];
    buffer_entry_t entries[2];

    entries[0] = range(other, 100);
    entries[1] = range(other + 99, 100);
    CHECK_EQUAL(kvferry_register(target, entries, 2, "*", KVFERRY_ACCESS_REMOTE_READ), -7);
    CHECK_EQUAL(unregisterLocalMemory(target, other), -3);
    entries[1] = range(other + 100, 100);
    CHECK_EQUAL(kvferry_register(target, entries, 2, "*", KVFERRY_ACCESS_REMOTE_READ), 0);
    CHECK_EQUAL(unregisterLocalMemory(target, other), 0);
    CHECK_EQUAL(unregisterLocalMemory(target, other + 100), 0);
}

static void test_memory_is_registered_again_for_something_else(segment_id_t peer)
{
    buffer_entry_t entry = range(far[READABLE], PART);

    CHECK_EQUAL(kvferry_register(target, &entry, 1, "*", KVFERRY_ACCESS_REMOTE_WRITE), -7);
    check_part(initiator, peer, OPCODE_WRITE, READABLE);
    CHECK_EQUAL(unregisterLocalMemory(target, far[READABLE]), 0);
    CHECK_EQUAL(kvferry_register(target, &entry, 1, "*", KVFERRY_ACCESS_REMOTE_WRITE), 0);
    CHECK_EQUAL(move(initiator, OPCODE_WRITE, near, peer, far[READABLE], PART), STATUS_COMPLETED);
    CHECK_EQUAL(move(initiator, OPCODE_READ, near, peer, far[READABLE], PART), STATUS_FAILED);
}

int main(void)
{
    buffer_entry_t entry = range(near, sizeof near);
    segment_id_t peer;
    int part;

    initiator = make_engine();
    target = make_engine();
    CHECK_EQUAL(kvferry_register(initiator, &entry, 1, "*", KVFERRY_ACCESS_NONE), 0); /* local memory needs no flag */
    for (part = 0; part < PARTS; part++) {
        entry = range(far[part], PART);
        CHECK_EQUAL(kvferry_register(target, &entry, 1, "cpu:0", flags[part]), 0);
    }
    peer = open_peer(initiator, target);
    test_transfers_do_what_the_flags_say(initiator, peer);
    test_transfers_do_what_the_flags_say(target, LOCAL_SEGMENT);
    test_flags_that_do_not_exist_register_nothing();
    test_ranges_are_registered_all_or_none();
    test_memory_is_registered_again_for_something_else(peer);
    destroyTransferEngine(initiator);
    destroyTransferEngine(target);
    return 0;
}
