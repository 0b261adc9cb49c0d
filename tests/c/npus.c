/* NPU memory, through the C interface, between two engines of this process. KVFERRY_ASCENDCL names the library, which
 * this program opens too, as one does that has data on NPUs. With the argument "absent" there is no library. */
#include <dlfcn.h>

#include "check.h"

enum { SIZE = 5 << 20, DEVICE = 1, HUGE_FIRST = 0, HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2 };

static unsigned char host[SIZE], wanted[SIZE], found[SIZE];
static void *ascendcl;

/* Calls a function of AscendCL, of whatever type. */
#define ACL(function, type, ...)                                                                                     \
    do {                                                                                                             \
        int(*call_) type;                                                                                            \
        *(void **)&call_ = dlsym(ascendcl, function);                                                                \
        CHECK(call_ != NULL);                                                                                        \
        CHECK_EQUAL(call_(__VA_ARGS__), 0);                                                                          \
    } while (0)

static void *allocate(void)
{
    void *memory = NULL;

    ACL("aclrtMalloc", (void **, size_t, int), &memory, SIZE, HUGE_FIRST);
    return memory;
}

static void copy(void *to, const void *from, int kind)
{
    ACL("aclrtMemcpy", (void *, size_t, const void *, size_t, int), to, SIZE, from, SIZE, kind);
}

static transfer_engine_t make_engine_with(const char *protocol)
{
    transfer_engine_t engine = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 0);

    CHECK(engine != NULL);
    CHECK(installTransport(engine, protocol, NULL) != NULL);
    return engine;
}

/* Bytes go from the host to one NPU, from there to another place of it, and back, all of them by way of engines. */
static void test_bytes_go_to_a_device_and_come_back(void)
{
    transfer_engine_t near = make_engine_with("ascend"), far = make_engine_with("ascend");
    unsigned char *source = allocate(), *target = allocate();
    segment_id_t peer = open_peer(near, far);
    buffer_entry_t entry;

    fill(wanted, SIZE, 1);
    memcpy(host, wanted, SIZE);
    entry.addr = target;
    entry.length = SIZE;
    CHECK_EQUAL(registerLocalMemory(near, source, SIZE, "npu:1", 1), 0);
    CHECK_EQUAL(registerLocalMemoryBatch(far, &entry, 1, "npu:1"), 0);

    CHECK_EQUAL(move(near, OPCODE_WRITE, host, LOCAL_SEGMENT, source, SIZE), STATUS_COMPLETED);
    copy(found, source, DEVICE_TO_HOST);
    CHECK(memcmp(found, wanted, SIZE) == 0);

    copy(target, host, HOST_TO_DEVICE);
    CHECK_EQUAL(move(near, OPCODE_WRITE, source + 3, peer, target + 77, SIZE - 200), STATUS_COMPLETED);
    memcpy(wanted + 77, host + 3, SIZE - 200);
    copy(found, target, DEVICE_TO_HOST);
    CHECK(memcmp(found, wanted, SIZE) == 0);

    memset(host, 0, SIZE);
    CHECK_EQUAL(move(near, OPCODE_READ, host, peer, target, SIZE), STATUS_COMPLETED);
    CHECK(memcmp(host, wanted, SIZE) == 0);

    CHECK_EQUAL(unregisterLocalMemory(near, source), 0);
    CHECK_EQUAL(unregisterLocalMemory(far, target), 0);
    CHECK_EQUAL(move(near, OPCODE_WRITE, host, peer, target, SIZE), STATUS_FAILED);
    destroyTransferEngine(near);
    destroyTransferEngine(far);
    ACL("aclrtFree", (void *), source);
    ACL("aclrtFree", (void *), target);
}

static void test_a_device_that_is_not_there_is_named(void)
{
    transfer_engine_t engine = make_engine_with("tcp");

    CHECK(registerLocalMemory(engine, host, SIZE, "npu:63", 1) < 0);
    CHECK(strstr(kvferry_last_error(), "npu:63") != NULL);
    CHECK_EQUAL(registerLocalMemory(engine, host, SIZE, "cpu:0", 1), 0);
    destroyTransferEngine(engine);
}

static void test_installing_ascend_without_a_library_says_what_was_searched(void)
{
    transfer_engine_t engine = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 0);
    transfer_engine_t far = make_engine();
    unsigned char memory[100] = {0};
    transport_t tcp;
    int i;

    CHECK(engine != NULL);
    for (i = 0; i < 2; i++) {
        CHECK(installTransport(engine, "ascend", NULL) == NULL);
        CHECK(strstr(kvferry_last_error(), "libascendcl.so") != NULL);
        CHECK(strstr(kvferry_last_error(), "ASCEND_TOOLKIT_HOME") != NULL);
        CHECK(strstr(kvferry_last_error(), "ASCEND_HOME_PATH") != NULL);
        CHECK((tcp = installTransport(engine, "tcp", NULL)) != NULL);
        CHECK(installTransport(engine, "tcp", NULL) == tcp);
    }
    CHECK(registerLocalMemory(engine, host, SIZE, "npu:0", 1) < 0);
    CHECK(strstr(kvferry_last_error(), "libascendcl.so") != NULL);
    CHECK_EQUAL(registerLocalMemory(far, memory, sizeof memory, "cpu:0", 1), 0);
    fill(host, sizeof memory, 2);
    CHECK_EQUAL(move(engine, OPCODE_WRITE, host, open_peer(engine, far), memory, sizeof memory), STATUS_COMPLETED);
    CHECK(memcmp(host, memory, sizeof memory) == 0);
    destroyTransferEngine(engine);
    destroyTransferEngine(far);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "absent") == 0) {
        test_installing_ascend_without_a_library_says_what_was_searched();
        return 0;
    }
    ascendcl = dlopen(getenv("KVFERRY_ASCENDCL"), RTLD_NOW);
    CHECK(ascendcl != NULL);
    ACL("aclInit", (const char *), NULL);
    ACL("aclrtSetDevice", (int32_t), DEVICE);
    test_bytes_go_to_a_device_and_come_back();
    test_a_device_that_is_not_there_is_named();
    ACL("aclrtResetDevice", (int32_t), DEVICE);
    return 0;
}
