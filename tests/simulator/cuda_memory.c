/* The host can access managed memory, but not device memory; pointers have their attributes; copies are checked. */
#include "cu.h"
#include "processes.h"

#include <sys/mman.h>

enum { SIZE = 1 << 20 };
enum { CONTEXT = 1, MEMORY_TYPE = 2, DEVICE_POINTER = 3, HOST_POINTER = 4, IS_MANAGED = 8, ORDINAL = 9 };
enum { NONE, HOST, DEVICE };

static unsigned char host[SIZE], back[SIZE];
static void *context;

static void test_host_cannot_access_device_memory(void)
{
    CUdeviceptr device = device_memory(SIZE);

    check_host_cannot_access((void *)device);
    OK(cuMemFree_v2(device));
}

static void test_bytes_survive_a_round_trip_at_any_offset(void)
{
    CUdeviceptr device = device_memory(SIZE);
    size_t offset;

    fill(host, SIZE, 1);
    OK(cuMemcpyHtoD_v2(device, host, SIZE));
    for (offset = 0; offset < SIZE / 2; offset = 2 * offset + 1) {
        OK(cuMemcpyDtoH_v2(back, device + offset, 4097));
        CHECK(memcmp(back, host + offset, 4097) == 0);
    }
    OK(cuMemcpyDtoD_v2(device + SIZE / 2 + 1, device + 3, 1001)); /* needs no alignment */
    OK(cuMemcpyDtoH_v2(back, device + SIZE / 2 + 1, 1001));
    CHECK(memcmp(back, host + 3, 1001) == 0);
    OK(cuMemsetD8_v2(device + 5, 0xff, 100));
    OK(cuMemcpyDtoH_v2(back, device + 4, 102));
    CHECK(back[0] == host[4] && back[1] == 0xff && back[100] == 0xff && back[101] == host[105]);
    OK(cuMemFree_v2(device));
}

static void test_host_can_access_managed_memory(void)
{
    CUdeviceptr managed, device = device_memory(SIZE);
    unsigned char *bytes;

    CHECK_FAILS(cuMemAllocManaged(&managed, SIZE, 0), INVALID);
    OK(cuMemAllocManaged(&managed, SIZE, 1));
    bytes = (unsigned char *)managed;
    fill(bytes, SIZE, 2);
    OK(cuMemcpyDtoD_v2(device, managed, SIZE));
    OK(cuMemcpyDtoH_v2(back, device, SIZE));
    CHECK(memcmp(back, bytes, SIZE) == 0);
    OK(cuMemsetD8_v2(device, 3, SIZE));
    OK(cuMemcpyDtoH_v2(bytes, device, SIZE)); /* as the host's */
    CHECK(bytes[0] == 3 && bytes[SIZE - 1] == 3);
    CHECK_EQUAL(reported("device_allocations"), 2);
    OK(cuMemFree_v2(managed));
    OK(cuMemFree_v2(device));
}

struct told {
    void *context, *device_pointer, *host_pointer;
    unsigned type, managed;
    int ordinal;
};

static struct told tell(CUdeviceptr address)
{
    static const int asked[] = {CONTEXT, MEMORY_TYPE, DEVICE_POINTER, HOST_POINTER, IS_MANAGED, ORDINAL};
    struct told told;
    void *out[] = {&told.context, &told.type, &told.device_pointer, &told.host_pointer, &told.managed, &told.ordinal};

    memset(&told, 0xff, sizeof told);
    OK(cuPointerGetAttributes(6, asked, out, address));
    return told;
}

static void check_told(CUdeviceptr address, unsigned type, unsigned managed, int on_host)
{
    struct told told = tell(address);

    CHECK_EQUAL(told.type, type);
    CHECK_EQUAL(told.managed, managed);
    CHECK(told.device_pointer == (type != NONE ? (void *)address : NULL));
    CHECK(told.host_pointer == (on_host ? (void *)address : NULL));
    CHECK(told.context == (type != NONE ? context : NULL));
    CHECK_EQUAL(told.ordinal, type != NONE ? 1 : 0);
}

/* On a thread that has no context. */
static void *check_pointers(void *argument)
{
    CUdeviceptr *of = argument;
    unsigned type;
    void *pointer;

    check_told(of[0] + SIZE - 1, DEVICE, 0, 0);
    check_told(of[1] + 77, HOST, 0, 1);
    check_told(of[2] + 99, DEVICE, 1, 1);
    check_told(of[3] + 11, HOST, 0, 1);
    check_told((CUdeviceptr)host + 4096, NONE, 0, 0);
    check_told(0, NONE, 0, 0);
    OK(cuPointerGetAttribute(&type, MEMORY_TYPE, of[0]));
    CHECK_EQUAL(type, DEVICE);
    CHECK_FAILS(cuPointerGetAttribute(&type, MEMORY_TYPE, (CUdeviceptr)host + 4096), INVALID);
    CHECK_FAILS(cuPointerGetAttribute(&pointer, HOST_POINTER, of[0]), INVALID);
    CHECK_FAILS(cuPointerGetAttribute(&type, 1000, of[0]), INVALID);
    return NULL;
}

static void test_pointer_has_attributes(void)
{
    CUdeviceptr of[4] = {device_memory(SIZE), (CUdeviceptr)pinned_memory(SIZE)};

    OK(cuMemAllocManaged(&of[2], SIZE, 1));
    of[3] = (CUdeviceptr)host;
    OK(cuMemHostRegister_v2(host, 4096, 0));
    on_thread(check_pointers, of);
    OK(cuMemFree_v2(of[0]));
    OK(cuMemFreeHost((void *)of[1]));
    OK(cuMemFree_v2(of[2]));
    OK(cuMemHostUnregister(host));
    check_told((CUdeviceptr)host, NONE, 0, 0);
}

/* Memory of the program's own becomes page-locked: copies from it are asynchronous. */
static void test_host_memory_is_registered(void)
{
    CUdeviceptr device = device_memory(SIZE);
    void *stream = new_stream(NON_BLOCKING), *unmapped;

    fill(host, SIZE, 3);
    OK(cuMemHostRegister_v2(host + 100, SIZE - 200, 0));
    CHECK_EQUAL(reported("host_bytes"), SIZE - 200);
    kvferry_sim_reset_counters();
    OK(cuMemcpyHtoDAsync_v2(device, host + 200, 1000, stream));
    CHECK_EQUAL(reported("pageable_copies"), 0);
    OK(cuStreamSynchronize(stream));
    OK(cuMemcpyHtoDAsync_v2(device, host, 50, stream));
    CHECK_EQUAL(reported("pageable_copies"), 1);
    CHECK_FAILS(cuMemHostRegister_v2(host, 101, 0), REGISTERED);
    CHECK_FAILS(cuMemHostRegister_v2(host + SIZE - 101, 101, 0), REGISTERED);
    CHECK_FAILS(cuMemHostRegister_v2(host, SIZE, 0), REGISTERED);
    CHECK_FAILS(cuMemHostRegister_v2((void *)device, 4096, 0), REGISTERED);
    CHECK_FAILS(cuMemHostRegister_v2(host, 0, 0), INVALID);
    unmapped = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(munmap(unmapped, SIZE) == 0);
    CHECK_FAILS(cuMemHostRegister_v2(unmapped, SIZE, 0), INVALID);
    CHECK_FAILS(cuMemHostUnregister(host), UNREGISTERED);
    CHECK_FAILS(cuMemFreeHost(host + 100), INVALID);
    OK(cuMemHostUnregister(host + 100));
    CHECK_FAILS(cuMemHostUnregister(host + 100), UNREGISTERED);
    OK(cuMemHostRegister_v2(host, SIZE, 0));
    OK(cuMemHostUnregister(host));
    CHECK_EQUAL(reported("host_allocations"), 0);
    OK(cuStreamDestroy_v2(stream));
    OK(cuMemFree_v2(device));
}

static void test_wrong_copies_are_refused(void)
{
    CUdeviceptr device = device_memory(SIZE);
    unsigned char *pinned = pinned_memory(SIZE);

    CHECK_FAILS(cuMemcpyHtoD_v2(device, host, 0), INVALID);
    CHECK_FAILS(cuMemcpyHtoD_v2(device, NULL, 100), INVALID);
    CHECK_FAILS(cuMemcpyHtoD_v2(0, host, 100), INVALID);
    CHECK_FAILS(cuMemcpyHtoD_v2((CUdeviceptr)pinned, host, 100), INVALID);
    CHECK_FAILS(cuMemcpyHtoD_v2((CUdeviceptr)back, host, 100), INVALID);
    CHECK_FAILS(cuMemcpyHtoD_v2(device, (void *)device, 100), INVALID);
    CHECK_FAILS(cuMemcpyDtoH_v2(back, (CUdeviceptr)host, 100), INVALID);
    CHECK_FAILS(cuMemcpyDtoD_v2(device, (CUdeviceptr)pinned, 100), INVALID);
    CHECK_FAILS(cuMemcpyHtoD_v2(device, (void *)64, 100), INVALID);
    CHECK_FAILS(cuMemsetD8_v2((CUdeviceptr)host, 0, 100), INVALID);
    CHECK_EQUAL(reported("out_of_bounds"), 0);
    CHECK_FAILS(cuMemcpyHtoD_v2(device + 1, host, SIZE), INVALID);
    CHECK_FAILS(cuMemcpyDtoH_v2(back, device + SIZE - 99, 100), INVALID);
    CHECK_EQUAL(reported("out_of_bounds"), 2);
    OK(cuMemFreeHost(pinned));
    OK(cuMemFree_v2(device));
}

static void test_freed_memory_is_recognised(void)
{
    CUdeviceptr device = device_memory(SIZE);
    unsigned char *pinned = pinned_memory(SIZE);
    int attribute = MEMORY_TYPE;
    unsigned type;
    void *out = &type;

    kvferry_sim_reset_counters();
    CHECK_FAILS(cuMemFree_v2(device + 4096), INVALID);
    CHECK_FAILS(cuMemFree_v2((CUdeviceptr)pinned), INVALID);
    CHECK_FAILS(cuMemFreeHost((void *)device), INVALID);
    CHECK_FAILS(cuMemFree_v2((CUdeviceptr)host), INVALID);
    OK(cuMemFree_v2(device));
    OK(cuMemFreeHost(pinned));
    CHECK_FAILS(cuMemFree_v2(device), INVALID);
    CHECK_FAILS(cuMemFreeHost(pinned), INVALID);
    CHECK_EQUAL(reported("double_free"), 2);
    CHECK_FAILS(cuMemcpyDtoH_v2(back, device + 100, 1), INVALID);
    CHECK_FAILS(cuPointerGetAttributes(1, &attribute, &out, device), INVALID);
    CHECK_EQUAL(reported("use_after_free"), 2);
    CHECK_FAILS(cuMemAlloc_v2(&device, 0), INVALID);
    CHECK_FAILS(cuMemAlloc_v2(&device, SIZE_MAX / 4), NO_MEMORY);
    CHECK_FAILS(cuMemHostAlloc((void **)&pinned, SIZE, 8), INVALID);
}

int main(void)
{
    context = begin(1);
    OK(kvferry_sim_cost("0"));
    test_host_cannot_access_device_memory();
    test_bytes_survive_a_round_trip_at_any_offset();
    test_host_can_access_managed_memory();
    test_pointer_has_attributes();
    test_host_memory_is_registered();
    test_wrong_copies_are_refused();
    test_freed_memory_is_recognised();
    CHECK_EQUAL(reported("device_allocations"), 0);
    CHECK_EQUAL(reported("host_allocations"), 0);
    OK(cuDevicePrimaryCtxRelease_v2(1));
    CHECK_EQUAL(reported("left_behind"), 0);
    return 0;
}
