/* Names, transports, segments, registered memory, notifications and links, as the interface defines them. */
#include "check.h"

#include <sys/mman.h>

enum { SIZE = 1 << 16 };

static unsigned char near[SIZE], far[SIZE];

static void test_name_is_cut_to_the_buffer(void)
{
    transfer_engine_t engine = make_engine();
    char name[128], cut[128];

    CHECK_EQUAL(getLocalIpAndPort(engine, name, sizeof name), 0);
    CHECK(strncmp(name, "127.0.0.1:", 10) == 0);
    CHECK_EQUAL(atoi(name + 10), kvferry_rpc_port(engine));
    memset(cut, 'x', sizeof cut);
    CHECK_EQUAL(getLocalIpAndPort(engine, cut, 5), 0);
    CHECK(strcmp(cut, "127.") == 0 && cut[5] == 'x');
    CHECK_EQUAL(getLocalIpAndPort(engine, cut, 1), 0);
    CHECK(cut[0] == 0);
    CHECK(kvferry_transfer_timeout_ms(engine) >= 5000);
    destroyTransferEngine(engine);
}

static void test_ipv6_name_has_brackets(void)
{
    transfer_engine_t engine = createTransferEngine("P2PHANDSHAKE", "[::1]:4444", "nonsense", 99, 1);
    char name[128];

    CHECK(engine != NULL);
    CHECK_EQUAL(getLocalIpAndPort(engine, name, sizeof name), 0);
    CHECK(strncmp(name, "[::1]:", 6) == 0);
    destroyTransferEngine(engine);
}

static void test_variables_set_after_the_library_was_loaded_count(void)
{
    transfer_engine_t engine;

    CHECK_EQUAL(setenv("MC_TRANSFER_TIMEOUT", "77", 1), 0);
    engine = make_engine();
    CHECK_EQUAL(kvferry_transfer_timeout_ms(engine), 77000);
    CHECK_EQUAL(unsetenv("MC_TRANSFER_TIMEOUT"), 0);
    CHECK_EQUAL(kvferry_transfer_timeout_ms(engine), 77000);
    destroyTransferEngine(engine);
}

static void test_transports_are_installed_once(void)
{
    transfer_engine_t engine = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 0);
    transfer_engine_t peer = make_engine();
    char name[128];
    transport_t transport;

    CHECK_EQUAL(getLocalIpAndPort(peer, name, sizeof name), 0);
    CHECK(openSegment(engine, name) < 0);
    CHECK(installTransport(engine, "nosuch", NULL) == NULL);
    CHECK(installTransport(engine, "", NULL) == NULL);
    CHECK(installTransport(engine, "ascend", NULL) == NULL);
    CHECK(strstr(kvferry_last_error(), "ascend") != NULL);
    CHECK_EQUAL(registerLocalMemory(engine, far, SIZE, "*", 1), 0);
    transport = installTransport(engine, "tcp", NULL);
    CHECK(transport != NULL);
    CHECK(installTransport(engine, "tcp", NULL) == transport);
    CHECK(installTransport(engine, "rdma", NULL) == transport);
    CHECK_EQUAL(uninstallTransport(engine, "tcp"), 0);
    CHECK(openSegment(engine, name) > 0);
    fill(near, SIZE, 1);
    CHECK_EQUAL(move(peer, OPCODE_WRITE, near, open_peer(peer, engine), far, SIZE), STATUS_COMPLETED);
    CHECK(memcmp(near, far, SIZE) == 0);
    CHECK_EQUAL(discoverTopology(engine), 0);
    destroyTransferEngine(engine);
    destroyTransferEngine(peer);
}

static void test_one_name_has_one_id_until_it_is_removed(void)
{
    transfer_engine_t engine = make_engine(), peer = make_engine(), other = make_engine();
    char name[128], slashes[140];
    segment_id_t id, removed;

    CHECK_EQUAL(getLocalIpAndPort(peer, name, sizeof name), 0);
    id = openSegment(engine, name);
    CHECK(id > LOCAL_SEGMENT);
    snprintf(slashes, sizeof slashes, "//%s", name);
    CHECK_EQUAL(openSegment(engine, slashes), id);
    CHECK_EQUAL(kvferry_open_segment(engine, slashes, -1), id);
    CHECK_EQUAL(openSegmentNoCache(engine, name), id);
    CHECK_EQUAL(closeSegment(engine, id), 0);
    CHECK_EQUAL(closeSegment(engine, 12345), 0);
    CHECK_EQUAL(openSegment(engine, name), id);
    CHECK_EQUAL(open_peer(engine, other), id + 1);
    CHECK_EQUAL(warmupEfaSegment(engine, name), 0);
    CHECK_EQUAL(syncSegmentCache(engine), 0);

    removed = id;
    CHECK_EQUAL(removeLocalSegment(engine, name), 0);
    CHECK_EQUAL(removeLocalSegment(engine, "127.0.0.1:1"), 0);
    id = openSegment(engine, name);
    CHECK(id > 0 && id != removed);
    CHECK(openSegment(engine, "127.0.0.1:1") < 0);
    CHECK(kvferry_open_segment(engine, "127.0.0.1:1", -1) < 0);
    CHECK_EQUAL(kvferry_open_segment(engine, name, -1), id);
    CHECK_EQUAL(kvferry_probe(engine, name), 0);
    CHECK_EQUAL(kvferry_probe(engine, "127.0.0.1:1"), -102);
    destroyTransferEngine(peer);
    CHECK_EQUAL(openSegmentNoCache(engine, name), id);
    CHECK_EQUAL(syncSegmentCache(engine), 0);
    CHECK_EQUAL(kvferry_probe(engine, name), -102);
    destroyTransferEngine(engine);
    destroyTransferEngine(other);
}

static void test_memory_is_registered_without_overlap(void)
{
    transfer_engine_t engine = make_engine();
    buffer_entry_t apart[2] = {{near, 100}, {near + 100, 100}};
    buffer_entry_t overlapping[2] = {{near, 100}, {near + 99, 100}};
    void *list[3] = {near, near + 7, near + 100};

    CHECK_EQUAL(registerLocalMemory(engine, near, 0, "*", 1), -1);
    CHECK_EQUAL(registerLocalMemory(engine, near, SIZE_MAX, "*", 1), -1);
    CHECK_EQUAL(registerLocalMemory(engine, near, 200, "*", 1), 0);
    CHECK_EQUAL(registerLocalMemory(engine, near, 200, "*", 1), -7);
    CHECK_EQUAL(registerLocalMemory(engine, near + 199, 1, "*", 1), -7);
    CHECK_EQUAL(registerLocalMemory(engine, near + 200, 1, "*", 1), 0);
    CHECK_EQUAL(unregisterLocalMemory(engine, near + 1), -3);
    CHECK_EQUAL(unregisterLocalMemory(engine, near), 0);
    CHECK_EQUAL(unregisterLocalMemory(engine, near), -3);

    CHECK_EQUAL(registerLocalMemoryBatch(engine, overlapping, 2, "cpu:0"), -7);
    CHECK_EQUAL(registerLocalMemoryBatch(engine, apart, 2, "cpu:0"), 0);
    CHECK_EQUAL(unregisterLocalMemoryBatch(engine, list, 3), -3);
    CHECK_EQUAL(registerLocalMemoryBatch(engine, apart, 2, "cpu:0"), 0);
    destroyTransferEngine(engine);
}

static void test_memory_that_is_not_remotely_accessible_is_refused_to_peers(void)
{
    transfer_engine_t engine = make_engine(), peer = make_engine();
    char name[128];

    CHECK_EQUAL(getLocalIpAndPort(peer, name, sizeof name), 0);
    CHECK_EQUAL(kvferry_first_buffer(engine, name), 0);
    CHECK_EQUAL(registerLocalMemory(peer, far, 100, "*", 0), 0);
    CHECK_EQUAL(move(engine, OPCODE_WRITE, near, open_peer(engine, peer), far, 10), STATUS_FAILED);
    CHECK_EQUAL(registerLocalMemory(peer, far + 100, 100, "*", 1), 0);
    CHECK_EQUAL(move(engine, OPCODE_WRITE, near, open_peer(engine, peer), far + 100, 10), STATUS_COMPLETED);
    CHECK(kvferry_first_buffer(engine, name) == (uint64_t)(uintptr_t)(far + 100));
    CHECK(kvferry_first_buffer(peer, name) == (uint64_t)(uintptr_t)(far + 100));
    destroyTransferEngine(engine);
    destroyTransferEngine(peer);
}

static void check_message(transfer_engine_t engine, const char *name, const char *text)
{
    int size = -1;
    notify_msg_t *list = getNotifsFromEngine(engine, &size);

    CHECK_EQUAL(size, 1);
    CHECK(list != NULL && strcmp(list->name, name) == 0 && strcmp(list->msg, text) == 0);
    CHECK_EQUAL(freeNotifsMsgBuf(list, size), 0);
}

static void check_no_message(transfer_engine_t engine)
{
    int size = -1;

    CHECK(getNotifsFromEngine(engine, &size) == NULL);
    CHECK_EQUAL(size, 0);
}

static void test_notifications_arrive_in_order_and_once(void)
{
    transfer_engine_t engine = make_engine(), peer = make_engine();
    char a[] = "first", b[] = "\xc3\xa4\xe2\x82\xac", empty[] = "";
    notify_msg_t one = {a, b}, two = {b, empty};
    segment_id_t id = open_peer(engine, peer);
    notify_msg_t *list;
    int size = -1;

    check_no_message(peer);
    CHECK_EQUAL(genNotifyInEngine(engine, (uint64_t)id, one), 0);
    CHECK_EQUAL(genNotifyInEngine(engine, (uint64_t)id, two), 0);
    list = getNotifsFromEngine(peer, &size);
    CHECK_EQUAL(size, 2);
    CHECK(strcmp(list[0].name, a) == 0 && strcmp(list[0].msg, b) == 0);
    CHECK(strcmp(list[1].name, b) == 0 && strcmp(list[1].msg, empty) == 0);
    CHECK_EQUAL(freeNotifsMsgBuf(list, size), 0);
    check_no_message(peer);
    CHECK_EQUAL(genNotifyInEngine(engine, LOCAL_SEGMENT, one), 0);
    check_message(engine, a, b);
    CHECK_EQUAL(genNotifyInEngine(engine, 4711, one), -200);
    CHECK_EQUAL(genNotifyInEngine(engine, UINT64_MAX, one), -200);
    /* No segment is taken for the one whose number is the low 32 bits, as the engine's own one, and the open one. */
    CHECK_EQUAL(genNotifyInEngine(engine, UINT64_C(1) << 32, one), -200);
    CHECK_EQUAL(genNotifyInEngine(engine, (UINT64_C(1) << 32) | (uint64_t)id, one), -200);
    check_no_message(engine);
    check_no_message(peer);
    destroyTransferEngine(peer);
    CHECK_EQUAL(genNotifyInEngine(engine, (uint64_t)id, one), -102);
    destroyTransferEngine(engine);
}

static void test_notification_follows_its_batch_and_no_failed_one(void)
{
    transfer_engine_t engine = make_engine(), peer = make_engine();
    char a[] = "name", b[] = "text";
    notify_msg_t message = {a, b};
    segment_id_t id = open_peer(engine, peer);
    batch_id_t batch = allocateBatchID(engine, 2), failing = allocateBatchID(engine, 1);
    uint64_t local = (uint64_t)(uintptr_t)near, remote = (uint64_t)(uintptr_t)far, length = 64;
    transfer_request_t r;

    CHECK_EQUAL(registerLocalMemory(peer, far, SIZE, "*", 1), 0);
    r = request(OPCODE_WRITE, near, id, far, 64);
    CHECK_EQUAL(submitTransferWithNotify(engine, batch, &r, 0, message), 1);
    CHECK_EQUAL(submitTransferWithNotify(engine, batch, &r, 1, message), 0);
    CHECK_EQUAL(outcome(engine, batch, 0), STATUS_COMPLETED);
    check_message(peer, a, b);
    CHECK_EQUAL(freeBatchID(engine, batch), 0);

    r = request(OPCODE_WRITE, near, id, far + SIZE, 64);
    CHECK_EQUAL(submitTransferWithNotify(engine, failing, &r, 1, message), 0);
    CHECK_EQUAL(outcome(engine, failing, 0), STATUS_FAILED);
    check_no_message(peer);
    CHECK_EQUAL(freeBatchID(engine, failing), 0);

    CHECK_EQUAL(kvferry_transfer_sync(engine, OPCODE_WRITE, id, &local, &remote, &length, 1, &message, 20000, &batch), 0);
    check_message(peer, a, b);
    destroyTransferEngine(engine);
    destroyTransferEngine(peer);
}

static void test_links_show_the_peer(void)
{
    transfer_engine_t engine = make_engine(), peer = make_engine();
    char text[4096], name[128];
    nic_load_stat_t load;
    size_t count = 1;

    CHECK_EQUAL(registerLocalMemory(peer, far, SIZE, "*", 1), 0);
    CHECK_EQUAL(getLocalIpAndPort(peer, name, sizeof name), 0);
    CHECK_EQUAL(move(engine, OPCODE_WRITE, near, open_peer(engine, peer), far, 777), STATUS_COMPLETED);
    CHECK_EQUAL(showLinks(engine, text, sizeof text, 0), 0);
    CHECK(strncmp(text, "=== Local NICs ===\n", 19) == 0);
    CHECK(strstr(text, name) != NULL && strstr(text, "777") != NULL);
    CHECK_EQUAL(showLinks(engine, text, sizeof text, 1), 0);
    CHECK(text[0] == '{' && strstr(text, "\"local_nics\": []") != NULL && strstr(text, "\"topology\": {") != NULL);
    CHECK(strstr(text, name) != NULL && strstr(text, "\"bytes_out\": 777") != NULL);
    CHECK_EQUAL(showLinks(engine, text, 4, 0), 0);
    CHECK(strcmp(text, "===") == 0);
    CHECK_EQUAL(getNicLoadStats(engine, &load, &count), 0);
    CHECK_EQUAL(count, 0);
    destroyTransferEngine(engine);
    destroyTransferEngine(peer);
}

static void test_statistics_count_what_was_moved(void)
{
    transfer_engine_t engine = make_engine(), peer = make_engine();
    kvferry_stats_t stats, whole[2];
    char text[1 << 16], cut[64];
    int64_t length;

    CHECK_EQUAL(registerLocalMemory(peer, far, SIZE, "*", 1), 0);
    CHECK_EQUAL(move(engine, OPCODE_WRITE, near, open_peer(engine, peer), far, 777), STATUS_COMPLETED);
    CHECK_EQUAL(move(engine, OPCODE_READ, near, open_peer(engine, peer), far, 70), STATUS_COMPLETED);
    CHECK_EQUAL(move(engine, OPCODE_READ, near, open_peer(engine, peer), far + SIZE, 70), STATUS_FAILED);
    CHECK_EQUAL(kvferry_stats(engine, &stats, sizeof stats), 0);
    CHECK_EQUAL(stats.write_requests, 1);
    CHECK_EQUAL(stats.write_bytes, 777);
    CHECK_EQUAL(stats.read_requests, 1);
    CHECK_EQUAL(stats.read_bytes, 70);
    CHECK_EQUAL(stats.failed_requests, 1);
    CHECK_EQUAL(stats.batches, 3);
    CHECK_EQUAL(stats.failed_batches, 1);
    CHECK(stats.batch_nanoseconds > 0 && stats.requests_in_flight == 0 && stats.served_write_bytes == 0);
    CHECK_EQUAL(kvferry_stats(peer, &stats, sizeof stats), 0);
    CHECK_EQUAL(stats.served_write_requests, 1);
    CHECK_EQUAL(stats.served_write_bytes, 777);
    CHECK_EQUAL(stats.batches, 0);

    memset(whole, 'x', sizeof whole);
    CHECK_EQUAL(kvferry_stats(engine, whole, sizeof whole), 0);
    CHECK_EQUAL(whole[1].read_requests, 0); /* what a library does not know is 0 */
    memset(whole, 'x', sizeof whole);
    CHECK_EQUAL(kvferry_stats(engine, whole, 2 * sizeof(uint64_t)), 0);
    CHECK(whole[0].write_requests == 1 && whole[0].read_bytes == 0x7878787878787878u);
    CHECK_EQUAL(kvferry_stats(engine, NULL, sizeof stats), -1);

    length = kvferry_stats_json(engine, text, sizeof text);
    CHECK(length > 0 && length == (int64_t)strlen(text));
    CHECK(text[0] == '{' && strstr(text, "\"write\":{\"requests\":1,\"bytes\":{") != NULL);
    memset(cut, 'x', sizeof cut);
    CHECK(kvferry_stats_json(engine, cut, 10) > 10);
    CHECK(strncmp(cut, text, 9) == 0 && cut[9] == 0 && cut[10] == 'x');
    CHECK(kvferry_stats_json(engine, NULL, 0) > 10);
    destroyTransferEngine(engine);
    CHECK_EQUAL(kvferry_stats(engine, &stats, sizeof stats), -1);
    CHECK_EQUAL(kvferry_stats_json(engine, text, sizeof text), -1);
    destroyTransferEngine(peer);
}

static void test_copy_survives_what_is_not_mapped(void)
{
    unsigned char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(page != MAP_FAILED);
    CHECK(munmap(page + 4096, 4096) == 0);
    fill(near, SIZE, 5);
    CHECK_EQUAL(kvferry_copy(far, near, SIZE), 0);
    CHECK(memcmp(near, far, SIZE) == 0);
    CHECK_EQUAL(kvferry_copy(page, near, 4096), 0);
    CHECK_EQUAL(kvferry_copy(page + 1, near, 4096), -1);
    CHECK_EQUAL(kvferry_copy(far, page + 1, 4096), -1);
    CHECK_EQUAL(kvferry_copy(NULL, near, 1), -1);
    CHECK_EQUAL(kvferry_copy(far, NULL, 1), -1);
    CHECK_EQUAL(kvferry_copy(NULL, NULL, 0), 0);
    CHECK_EQUAL(munmap(page, 4096), 0);
}

int main(void)
{
    test_name_is_cut_to_the_buffer();
    test_ipv6_name_has_brackets();
    test_variables_set_after_the_library_was_loaded_count();
    test_transports_are_installed_once();
    test_one_name_has_one_id_until_it_is_removed();
    test_memory_is_registered_without_overlap();
    test_memory_that_is_not_remotely_accessible_is_refused_to_peers();
    test_notifications_arrive_in_order_and_once();
    test_notification_follows_its_batch_and_no_failed_one();
    test_links_show_the_peer();
    test_statistics_count_what_was_moved();
    test_copy_survives_what_is_not_mapped();
    return 0;
}
