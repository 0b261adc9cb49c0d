/* Layouts, plans, and what they move. */
#include "check.h"

enum { TOKENS = 40, HEADS = 4, ROW = 16, BLOCK = 8, BLOCKS = 5 }; /* a row is the bytes of a head of one token */

static unsigned char near[BLOCKS * BLOCK * HEADS * ROW], far[BLOCKS * BLOCK * HEADS * ROW];
static const uint64_t near_blocks[BLOCKS] = {4, 0, 3, 1, 2}, far_blocks[BLOCKS] = {1, 2, 0, 4, 3};

/* A layout of memory with blocks of BLOCK tokens, with strides of a token and of a head. */
static kvferry_layout_t parse(const void *memory, int heads, int token, int head)
{
    char text[400];
    kvferry_layout_t layout;

    snprintf(text, sizeof text,
             "{\"kvferry_layout\":1,\"element_size\":1,\"blocks\":%d,\"block_tokens\":%d,\"layers\":1,\"kv\":1,"
             "\"dim\":%d,\"heads\":[0,%d,%d],\"tensors\":[{\"layer\":0,\"addresses\":[%llu],\"kv\":[0,1],\"dims\":[0,%d],"
             "\"strides\":[0,%d,%d,%d,1]}]}",
             BLOCKS, BLOCK, ROW, heads, HEADS, (unsigned long long)(uintptr_t)memory, ROW, BLOCK * HEADS * ROW, token,
             head);
    layout = kvferry_layout_parse(text, strlen(text));
    CHECK(layout != NULL);
    return layout;
}

static kvferry_place_t place(kvferry_layout_t layout, const uint64_t *blocks)
{
    kvferry_place_t p;

    memset(&p, 0, sizeof p);
    p.layout = layout;
    p.numbers = blocks;
    p.count = BLOCKS;
    p.kind = KVFERRY_BLOCKS;
    return p;
}

/* Where a head of a token is: tokens before heads, or heads before tokens. */
static size_t at(const uint64_t *blocks, int token, int head, int by_token, int by_head)
{
    return (size_t)blocks[token / BLOCK] * BLOCK * HEADS * ROW + (size_t)(token % BLOCK * by_token + head * by_head);
}

static void check_moved(void)
{
    int token, head;

    for (token = 0; token < TOKENS; token++) {
        for (head = 0; head < HEADS; head++) {
            CHECK(memcmp(near + at(near_blocks, token, head, HEADS * ROW, ROW),
                         far + at(far_blocks, token, head, ROW, BLOCK * ROW), ROW) == 0);
        }
    }
}

static void test_a_plan_moves_between_layouts_both_ways(void)
{
    transfer_engine_t initiator = make_engine(), target = make_engine();
    segment_id_t peer;
    kvferry_layout_t mine = parse(near, HEADS, HEADS * ROW, ROW), theirs = parse(far, HEADS, ROW, BLOCK * ROW);
    kvferry_place_t here = place(mine, near_blocks), there = place(theirs, far_blocks);
    kvferry_plan_t push = kvferry_plan_make(&here, 1, &there, 1, TOKENS, 0);
    kvferry_plan_t pull = kvferry_plan_make(&there, 1, &here, 1, TOKENS, 0);
    kvferry_plan_transfer_t transfer;
    batch_id_t batch = 1;
    size_t limit;

    CHECK(push != NULL && pull != NULL);
    CHECK_EQUAL(kvferry_layout_free(mine), 0); /* plans need them no more */
    CHECK_EQUAL(kvferry_layout_free(theirs), 0);
    CHECK_EQUAL(registerLocalMemory(target, far, sizeof far, "cpu:0", 1), 0);
    peer = open_peer(initiator, target);
    CHECK_EQUAL(kvferry_plan_transfers(push), 1);
    CHECK_EQUAL(kvferry_plan_transfer(push, 0, &transfer), 0);
    CHECK(transfer.source == 0 && transfer.destination == 0);
    CHECK_EQUAL(transfer.ranges, TOKENS * HEADS);
    CHECK_EQUAL(transfer.bytes, TOKENS * HEADS * ROW);
    for (limit = 0; limit < 200; limit += 33) { /* all at once, and in parts */
        fill(near, sizeof near, (int)limit);
        memset(far, 0, sizeof far);
        CHECK_EQUAL(kvferry_transfer_plan(initiator, OPCODE_WRITE, peer, push, 0, limit, 20000, &batch), 0);
        CHECK_EQUAL(batch, INVALID_BATCH);
        check_moved();
        memset(near, 0, sizeof near);
        CHECK_EQUAL(kvferry_submit_plan(initiator, OPCODE_READ, peer, pull, 0, limit, &batch), 0);
        CHECK_EQUAL(kvferry_batch_wait(initiator, batch, 20000), 0);
        CHECK_EQUAL(kvferry_batch_bytes(initiator, batch), TOKENS * HEADS * ROW);
        CHECK_EQUAL(freeBatchID(initiator, batch), 0);
        check_moved();
    }
    CHECK_EQUAL(kvferry_submit_plan(initiator, OPCODE_WRITE, peer, push, 1, 0, &batch), -1);
    CHECK_EQUAL(kvferry_submit_plan(initiator, 2, peer, push, 0, 0, &batch), -1);
    CHECK_EQUAL(kvferry_submit_plan(initiator, OPCODE_WRITE, 4711, push, 0, 1, &batch), -1);
    CHECK_EQUAL(kvferry_transfer_plan(initiator, OPCODE_WRITE, peer, NULL, 0, 0, 0, &batch), -1);
    CHECK_EQUAL(kvferry_transfer_plan(initiator, OPCODE_WRITE, peer, push, 0, 0, 0, NULL), -1);
    CHECK_EQUAL(unregisterLocalMemory(target, far), 0);
    CHECK_EQUAL(kvferry_transfer_plan(initiator, OPCODE_WRITE, peer, push, 0, 0, 20000, &batch), KVFERRY_ERR_FAILED);
    CHECK_EQUAL(kvferry_plan_free(push), 0);
    CHECK_EQUAL(kvferry_plan_free(pull), 0);
    CHECK_EQUAL(kvferry_submit_plan(initiator, OPCODE_WRITE, peer, push, 0, 0, &batch), -1);
    CHECK(strstr(kvferry_last_error(), "was freed") != NULL);
    destroyTransferEngine(initiator);
    destroyTransferEngine(target);
}

static void test_what_is_no_plan_is_refused(void)
{
    kvferry_layout_t layout = parse(near, HEADS, HEADS * ROW, ROW);
    kvferry_place_t here = place(layout, near_blocks), there = place(layout, far_blocks);
    kvferry_plan_t plan = kvferry_plan_make(&here, 1, &there, 1, TOKENS, 0);
    kvferry_plan_transfer_t transfer;
    uint64_t twice[BLOCKS] = {0, 1, 2, 3, 0};

    CHECK(plan != NULL);
    CHECK(kvferry_layout_parse(NULL, 5) == NULL);
    CHECK(kvferry_layout_parse("", 0) == NULL);
    CHECK(kvferry_layout_parse("{}", 2) == NULL);
    CHECK(strlen(kvferry_last_error()) > 0);
    CHECK(kvferry_plan_make(NULL, 1, &there, 1, TOKENS, 0) == NULL);
    CHECK(kvferry_plan_make(&here, 1, NULL, 0, TOKENS, 0) == NULL);
    CHECK(kvferry_plan_make(&here, 1u << 20, &there, 1, TOKENS, 0) == NULL);
    CHECK(kvferry_plan_make(&here, 1, &there, 1, TOKENS + 1, 0) == NULL);
    CHECK(strstr(kvferry_last_error(), "source 0: 5 blocks have room for 40 tokens") != NULL);
    there.numbers = twice;
    CHECK(kvferry_plan_make(&here, 1, &there, 1, TOKENS, 0) == NULL);
    there.numbers = NULL;
    CHECK(kvferry_plan_make(&here, 1, &there, 1, TOKENS, 0) == NULL);
    there = place(plan, far_blocks);
    CHECK(kvferry_plan_make(&here, 1, &there, 1, TOKENS, 0) == NULL);
    there = place(NULL, far_blocks);
    CHECK(kvferry_plan_make(&here, 1, &there, 1, TOKENS, 0) == NULL);
    there = place(layout, far_blocks);
    there.kind = 2;
    CHECK(kvferry_plan_make(&here, 1, &there, 1, TOKENS, 0) == NULL);
    CHECK_EQUAL(kvferry_plan_transfer(plan, 1, &transfer), -1);
    CHECK_EQUAL(kvferry_plan_transfer(plan, 0, NULL), -1);
    CHECK_EQUAL(kvferry_plan_transfers(layout), -1);
    CHECK_EQUAL(kvferry_plan_free(layout), -1);
    CHECK_EQUAL(kvferry_layout_free(plan), -1);
    CHECK_EQUAL(kvferry_layout_free(NULL), -1);
    CHECK_EQUAL(kvferry_plan_free(plan), 0);
    CHECK_EQUAL(kvferry_plan_free(plan), -1);
    CHECK_EQUAL(kvferry_layout_free(layout), 0);
    CHECK_EQUAL(kvferry_layout_free(layout), -1);
}

static void test_offered_blocks_move_until_the_offer_is_revoked(void)
{
    transfer_engine_t initiator = make_engine(), target = make_engine();
    segment_id_t peer = open_peer(initiator, target);
    kvferry_layout_t mine = parse(near, HEADS, HEADS * ROW, ROW), theirs = parse(far, HEADS, ROW, BLOCK * ROW);
    kvferry_place_t here = place(mine, near_blocks), offered_place = place(theirs, far_blocks), there;
    kvferry_offer_t offer;
    kvferry_offered_t offered;
    kvferry_plan_t push;
    batch_id_t batch = 1;
    char text[2000], name[100];
    int64_t length;

    CHECK_EQUAL(registerLocalMemory(target, far, sizeof far, "cpu:0", 0), 0); /* closed to peers */
    offer = kvferry_offer_make(target, &offered_place, KVFERRY_OFFER_WRITE, 0);
    CHECK(offer != NULL);
    length = kvferry_offer_text(offer, text, sizeof text);
    CHECK(length > 0 && length < (int64_t)sizeof text && (size_t)length == strlen(text));
    CHECK_EQUAL(kvferry_offer_text(offer, NULL, 0), length);
    offered = kvferry_offered_parse(text, strlen(text));
    CHECK(offered != NULL);
    CHECK(kvferry_offered_engine(offered, name, sizeof name) > 0);
    CHECK_EQUAL(openSegment(initiator, name), peer);
    there = place(offered, NULL);
    there.count = 0;
    there.kind = KVFERRY_OFFERED;
    push = kvferry_plan_make(&here, 1, &there, 1, TOKENS, 0);
    CHECK(push != NULL);
    there.count = 1;
    CHECK(kvferry_plan_make(&here, 1, &there, 1, TOKENS, 0) == NULL);
    CHECK_EQUAL(kvferry_offered_free(offered), 0);
    fill(near, sizeof near, 1);
    memset(far, 0, sizeof far);
    CHECK_EQUAL(kvferry_transfer_plan(initiator, OPCODE_WRITE, peer, push, 0, 0, 20000, &batch), 0);
    check_moved();
    CHECK_EQUAL(kvferry_offer_revoke(offer), 0);
    CHECK_EQUAL(kvferry_offer_revoke(offer), 0);
    CHECK_EQUAL(kvferry_transfer_plan(initiator, OPCODE_WRITE, peer, push, 0, 0, 20000, &batch), KVFERRY_ERR_FAILED);
    CHECK(strstr(kvferry_last_error(), "revoked") != NULL);
    CHECK_EQUAL(kvferry_offer_free(offer), 0);
    CHECK_EQUAL(kvferry_offer_free(offer), -1);
    CHECK(kvferry_offer_make(target, &offered_place, 0, 0) == NULL);
    CHECK(kvferry_offer_make(target, &offered_place, 8, 0) == NULL);
    CHECK(kvferry_offer_make(target, &offered_place, KVFERRY_OFFER_READ, -1) == NULL);
    CHECK(kvferry_offered_parse("{}", 2) == NULL);
    CHECK(kvferry_offered_parse(NULL, 2) == NULL);
    CHECK_EQUAL(kvferry_plan_free(push), 0);
    CHECK_EQUAL(kvferry_layout_free(mine), 0);
    CHECK_EQUAL(kvferry_layout_free(theirs), 0);
    destroyTransferEngine(initiator);
    destroyTransferEngine(target);
}

int main(void)
{
    test_offered_blocks_move_until_the_offer_is_revoked();
    test_a_plan_moves_between_layouts_both_ways();
    test_what_is_no_plan_is_refused();
    return 0;
}
