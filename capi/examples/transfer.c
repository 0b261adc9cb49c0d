/*
 * A target and an initiator in one program: the initiator writes a block into the target's memory and reads it back.
 * In real life each is a process of its own, and the target's name and address reach the initiator by some other way.
 *
 *   cc transfer.c $(pkg-config --cflags --libs transfer_engine) -o transfer && ./transfer
 */
#include <stdio.h>
#include <string.h>

#include <transfer_engine_c.h>
#include <transfer_engine_ext.h>

enum { SIZE = 1 << 20 };

static unsigned char source[SIZE], cache[SIZE], copy[SIZE];

/* Moves SIZE bytes between local memory and the segment, and waits for them. 0 when they have arrived. */
static int move(transfer_engine_t engine, int opcode, void *local, segment_id_t target, uint64_t remote)
{
    transfer_request_t request;
    batch_id_t batch = allocateBatchID(engine, 1);
    int code;

    request.opcode = opcode;
    request.source = local;
    request.target_id = target;
    request.target_offset = remote;
    request.length = SIZE;
    code = submitTransfer(engine, batch, &request, 1);
    if (code == 0) {
        code = kvferry_batch_wait(engine, batch, 10000);
    }
    if (code != 0) {
        fprintf(stderr, "transfer failed: %s\n", kvferry_last_error());
    }
    kvferry_batch_discard(engine, batch);
    return code;
}

int main(void)
{
    transfer_engine_t target = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 1);
    transfer_engine_t initiator = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 1);
    char name[256];
    segment_id_t segment;
    int failed;
    size_t i;

    for (i = 0; i < SIZE; i++) {
        source[i] = (unsigned char)(i * 7 + i / 256);
    }
    failed = target == NULL || initiator == NULL || registerLocalMemory(target, cache, SIZE, "cpu:0", 1) != 0 ||
             getLocalIpAndPort(target, name, sizeof name) != 0;
    if (failed) {
        fprintf(stderr, "setting up failed: %s\n", kvferry_last_error());
        return 1;
    }

    segment = openSegment(initiator, name);
    if (segment < 0) {
        fprintf(stderr, "opening %s failed: %s\n", name, kvferry_last_error());
        return 1;
    }
    failed = move(initiator, OPCODE_WRITE, source, segment, (uint64_t)(uintptr_t)cache) != 0 ||
             move(initiator, OPCODE_READ, copy, segment, (uint64_t)(uintptr_t)cache) != 0 ||
             memcmp(source, cache, SIZE) != 0 || memcmp(source, copy, SIZE) != 0;

    destroyTransferEngine(initiator);
    destroyTransferEngine(target);
    puts(failed ? "something went wrong" : "1 MiB written and read back, every byte checked");
    return failed;
}
