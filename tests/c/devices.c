/* Device memory, through the C interface, between two engines of this process. The argument says whose: "npu" or "cuda".
 * KVFERRY_ASCENDCL or KVFERRY_CUDA names the library, which this program opens too, as one does that has data on such
 * devices. With the argument "absent" there is no library. */
#include <dlfcn.h>

#include "check.h"

enum { SIZE = 5 << 20, DEVICE = 1, HUGE_FIRST = 0, HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2, NON_BLOCKING = 1 };

static unsigned char host[SIZE], wanted[SIZE], found[SIZE];
static void *library;

/* Calls a function of the library, of whatever type. */
#define CALL(function, type, ...)                                                                                    \
    do {                                                                                                             \
        int(*call_) type;                                                                                            \
        *(void **)&call_ = dlsym(library, function);                                                                 \
        CHECK(call_ != NULL);                                                                                        \
        CHECK_EQUAL(call_(__VA_ARGS__), 0);                                                                          \
    } while (0)

/* A vendor's devices: what they are called, two locations, and calls that concern the second device, which is current from
 * begin to end. Memory has SIZE bytes, all of which are copied. */
struct devices {
    const char *kind, *variable, *protocol, *second, *missing;
    void (*begin)(void);
    void (*end)(void);
    void *(*allocate)(void);
    void (*release)(void *memory);
    void (*copy_in)(void *to, const void *from);
    void (*copy_out)(void *to, const void *from);
};

static void begin_npu(void)
{
    CALL("aclInit", (const char *), NULL);
    CALL("aclrtSetDevice", (int32_t), DEVICE);
}

static void end_npu(void)
{
    CALL("aclrtResetDevice", (int32_t), DEVICE);
}

static void *allocate_npu(void)
{
    void *memory = NULL;

    CALL("aclrtMalloc", (void **, size_t, int), &memory, SIZE, HUGE_FIRST);
    return memory;
}

static void release_npu(void *memory)
{
    CALL("aclrtFree", (void *), memory);
}

static void copy_in_npu(void *to, const void *from)
{
    CALL("aclrtMemcpy", (void *, size_t, const void *, size_t, int), to, SIZE, from, SIZE, HOST_TO_DEVICE);
}

static void copy_out_npu(void *to, const void *from)
{
    CALL("aclrtMemcpy", (void *, size_t, const void *, size_t, int), to, SIZE, from, SIZE, DEVICE_TO_HOST);
}

static void begin_cuda(void)
{
    void *context;

    CALL("cuInit", (unsigned), 0);
    CALL("cuDevicePrimaryCtxRetain", (void **, int), &context, DEVICE);
    CALL("cuCtxSetCurrent", (void *), context);
}

static void end_cuda(void)
{
    CALL("cuCtxSetCurrent", (void *), NULL);
    CALL("cuDevicePrimaryCtxRelease_v2", (int), DEVICE);
}

static void *allocate_cuda(void)
{
    uintptr_t memory = 0;

    CALL("cuMemAlloc_v2", (uintptr_t *, size_t), &memory, SIZE);
    return (void *)memory;
}

static void release_cuda(void *memory)
{
    CALL("cuMemFree_v2", (uintptr_t), (uintptr_t)memory);
}

static void copy_in_cuda(void *to, const void *from)
{
    CALL("cuMemcpyHtoD_v2", (uintptr_t, const void *, size_t), (uintptr_t)to, from, SIZE);
    CALL("cuStreamSynchronize", (void *), NULL);
}

static void copy_out_cuda(void *to, const void *from)
{
    CALL("cuMemcpyDtoH_v2", (void *, uintptr_t, size_t), to, (uintptr_t)from, SIZE);
}

static const struct devices vendors[] = {
    {"npu", "KVFERRY_ASCENDCL", "ascend", "npu:1", "npu:63", begin_npu, end_npu, allocate_npu, release_npu, copy_in_npu,
     copy_out_npu},
    {"cuda", "KVFERRY_CUDA", "tcp", "cuda:1", "cuda:63", begin_cuda, end_cuda, allocate_cuda, release_cuda,
     copy_in_cuda, copy_out_cuda},
};

static transfer_engine_t make_engine_with(const char *protocol)
{
    transfer_engine_t engine = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 0);

    CHECK(engine != NULL);
    CHECK(installTransport(engine, protocol, NULL) != NULL);
    return engine;
}

/* Bytes go from the host to a device, from there to another place of it, and back, all of them by way of engines. */
static void test_bytes_go_to_a_device_and_come_back(const struct devices *on)
{
    transfer_engine_t near = make_engine_with(on->protocol), far = make_engine_with(on->protocol);
    unsigned char *source = on->allocate(), *target = on->allocate();
    segment_id_t peer = open_peer(near, far);
    buffer_entry_t entry;

    fill(wanted, SIZE, 1);
    memcpy(host, wanted, SIZE);
    entry.addr = target;
    entry.length = SIZE;
    CHECK_EQUAL(registerLocalMemory(near, source, SIZE, on->second, 1), 0);
    CHECK_EQUAL(registerLocalMemoryBatch(far, &entry, 1, on->second), 0);

    CHECK_EQUAL(move(near, OPCODE_WRITE, host, LOCAL_SEGMENT, source, SIZE), STATUS_COMPLETED);
    on->copy_out(found, source);
    CHECK(memcmp(found, wanted, SIZE) == 0);

    on->copy_in(target, host);
    CHECK_EQUAL(move(near, OPCODE_WRITE, source + 3, peer, target + 77, SIZE - 200), STATUS_COMPLETED);
    memcpy(wanted + 77, host + 3, SIZE - 200);
    on->copy_out(found, target);
    CHECK(memcmp(found, wanted, SIZE) == 0);

    memset(host, 0, SIZE);
    CHECK_EQUAL(move(near, OPCODE_READ, host, peer, target, SIZE), STATUS_COMPLETED);
    CHECK(memcmp(host, wanted, SIZE) == 0);

    CHECK_EQUAL(unregisterLocalMemory(near, source), 0);
    CHECK_EQUAL(unregisterLocalMemory(far, target), 0);
    CHECK_EQUAL(move(near, OPCODE_WRITE, host, peer, target, SIZE), STATUS_FAILED);
    destroyTransferEngine(near);
    destroyTransferEngine(far);
    on->release(source);
    on->release(target);
}

static void test_a_device_that_is_not_there_is_named(const struct devices *on)
{
    transfer_engine_t engine = make_engine_with("tcp");

    CHECK(registerLocalMemory(engine, host, SIZE, on->missing, 1) < 0);
    CHECK(strstr(kvferry_last_error(), on->missing) != NULL);
    CHECK_EQUAL(registerLocalMemory(engine, host, SIZE, "cpu:0", 1), 0);
    destroyTransferEngine(engine);
}

/* Puts a WRITE of SIZE bytes on a stream. */
static int write_on_stream(const struct devices *on, transfer_engine_t engine, void *stream, const void *local,
                           segment_id_t peer, const void *remote)
{
    uint64_t from = (uint64_t)(uintptr_t)local, to = (uint64_t)(uintptr_t)remote, length = SIZE;

    return kvferry_transfer_on_stream(engine, on->kind, stream, OPCODE_WRITE, peer, &from, &to, &length, 1);
}

static void test_a_transfer_keeps_its_place_in_a_stream(const struct devices *on)
{
    transfer_engine_t near = make_engine_with(on->protocol), far = make_engine_with(on->protocol);
    unsigned char *source = on->allocate(), *target = on->allocate();
    segment_id_t peer = open_peer(near, far);
    void *stream, *first, *second;

    CALL("cuStreamCreate", (void **, unsigned), &stream, NON_BLOCKING);
    CALL("cuMemHostAlloc", (void **, size_t, unsigned), &first, SIZE, 0);
    CALL("cuMemHostAlloc", (void **, size_t, unsigned), &second, SIZE, 0);
    fill(first, SIZE, 3);
    fill(second, SIZE, 4);
    CHECK_EQUAL(registerLocalMemory(near, source, SIZE, on->second, 1), 0);
    CHECK_EQUAL(registerLocalMemory(far, target, SIZE, on->second, 1), 0);

    CALL("cuMemcpyHtoDAsync_v2", (uintptr_t, void *, size_t, void *), (uintptr_t)source, first, SIZE, stream);
    CHECK_EQUAL(write_on_stream(on, near, stream, source, peer, target), 0);
    CALL("cuMemcpyHtoDAsync_v2", (uintptr_t, void *, size_t, void *), (uintptr_t)source, second, SIZE, stream);
    CALL("cuStreamSynchronize", (void *), stream);
    on->copy_out(found, target);
    CHECK(memcmp(found, first, SIZE) == 0);
    on->copy_out(found, source);
    CHECK(memcmp(found, second, SIZE) == 0);

    CHECK_EQUAL(write_on_stream(on, near, stream, source, peer, target + SIZE), 0);
    CALL("cuStreamSynchronize", (void *), stream);
    CHECK(write_on_stream(on, near, stream, source, peer, target) < 0);
    CHECK(strstr(kvferry_last_error(), "an earlier transfer in the order of a stream failed") != NULL);
    CHECK_EQUAL(write_on_stream(on, near, stream, source, peer, target), 0);
    CALL("cuStreamSynchronize", (void *), stream);
    on->copy_out(found, target);
    CHECK(memcmp(found, second, SIZE) == 0);

    destroyTransferEngine(near);
    destroyTransferEngine(far);
    on->release(source);
    on->release(target);
    CALL("cuMemFreeHost", (void *), first);
    CALL("cuMemFreeHost", (void *), second);
    CALL("cuStreamDestroy_v2", (void *), stream);
}

static void test_streams_of_npus_are_refused(const struct devices *on)
{
    transfer_engine_t engine = make_engine_with(on->protocol);

    CHECK(write_on_stream(on, engine, NULL, host, LOCAL_SEGMENT, found) < 0);
    CHECK(strstr(kvferry_last_error(), "in the order of a stream of AscendCL") != NULL);
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

static const struct devices *devices_of(const char *kind)
{
    size_t i;

    for (i = 0; i < sizeof vendors / sizeof *vendors; i++) {
        if (strcmp(vendors[i].kind, kind) == 0) {
            return &vendors[i];
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const struct devices *on;

    CHECK(argc == 2);
    if (strcmp(argv[1], "absent") == 0) {
        test_installing_ascend_without_a_library_says_what_was_searched();
        return 0;
    }
    CHECK((on = devices_of(argv[1])) != NULL);
    CHECK((library = dlopen(getenv(on->variable), RTLD_NOW)) != NULL);
    on->begin();
    test_bytes_go_to_a_device_and_come_back(on);
    test_a_device_that_is_not_there_is_named(on);
    if (strcmp(on->kind, "cuda") == 0) {
        test_a_transfer_keeps_its_place_in_a_stream(on);
    } else {
        test_streams_of_npus_are_refused(on);
    }
    on->end();
    return 0;
}
