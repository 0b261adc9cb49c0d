/* Physical allocations that are mapped into a range, one behind the other, can be copied as one; a hole is refused. */
#include "cu.h"

enum { PIECE = 2 << 20, RANGE = 4 * PIECE };

static unsigned char host[RANGE], back[RANGE];

/* Memory of a device. */
static unsigned long long create(size_t size, int device)
{
    struct properties properties = {1, 0, {1, device}, NULL, {0}};
    unsigned long long handle;

    OK(cuMemCreate(&handle, size, &properties, 0));
    return handle;
}

static CUdeviceptr reserve(void)
{
    CUdeviceptr range;

    OK(cuMemAddressReserve(&range, RANGE, 0, 0, 0));
    CHECK_EQUAL(range % PIECE, 0);
    return range;
}

/* Maps memory of a device, which only the mapping keeps. */
static void map(CUdeviceptr at, size_t size, int device)
{
    unsigned long long handle = create(size, device);
    struct access access = {{1, device}, 3};

    OK(cuMemMap(at, size, 0, handle, 0));
    OK(cuMemSetAccess(at, size, &access, 1));
    OK(cuMemRelease(handle));
}

static void check_told(CUdeviceptr address, unsigned type, int ordinal)
{
    static const int asked[] = {1, 2, 4, 8, 9};
    void *context = host, *host_pointer = host;
    unsigned told_type = 7, managed = 7;
    int told_ordinal = 7;
    void *out[] = {&context, &told_type, &host_pointer, &managed, &told_ordinal};

    OK(cuPointerGetAttributes(5, asked, out, address));
    CHECK(context == NULL && host_pointer == NULL); /* such memory is of no context */
    CHECK_EQUAL(told_type, type);
    CHECK_EQUAL(managed, 0);
    CHECK_EQUAL(told_ordinal, ordinal);
}

static void test_physical_allocations_are_one_range(void)
{
    CUdeviceptr range = reserve(), device = device_memory(RANGE);
    void *stream = new_stream(NON_BLOCKING);
    unsigned char *pinned = pinned_memory(RANGE);

    map(range, PIECE, 0);
    map(range + PIECE, 2 * PIECE, 0);
    map(range + 3 * PIECE, PIECE, 0);
    fill(pinned, RANGE, 1);
    OK(cuMemcpyHtoDAsync_v2(range, pinned, RANGE, stream));
    OK(cuMemcpyDtoDAsync_v2(device, range, RANGE, stream));
    OK(cuMemcpyDtoHAsync_v2(back, device, RANGE, stream));
    CHECK(memcmp(back, pinned, RANGE) == 0);
    OK(cuMemcpyDtoH_v2(back, range + PIECE - 5, 10));
    CHECK(memcmp(back, pinned + PIECE - 5, 10) == 0);
    OK(cuMemsetD8_v2(range + 3 * PIECE - 1, 9, 2));
    OK(cuMemcpyDtoH_v2(back, range + 3 * PIECE - 1, 2));
    CHECK(back[0] == 9 && back[1] == 9);
    check_told(range + PIECE + 77, 2, 0);
    CHECK_EQUAL(reported("device_allocations"), 4);
    OK(cuMemUnmap(range, RANGE));
    OK(cuMemAddressFree(range, RANGE));
    OK(cuMemFree_v2(device));
    OK(cuMemFreeHost(pinned));
    OK(cuStreamDestroy_v2(stream));
}

static void test_holes_are_refused(void)
{
    CUdeviceptr range = reserve();

    map(range, PIECE, 0);
    map(range + 2 * PIECE, PIECE, 0);
    kvferry_sim_reset_counters();
    OK(cuMemcpyHtoD_v2(range, host, PIECE));
    CHECK_FAILS(cuMemcpyHtoD_v2(range, host, PIECE + 1), INVALID);
    CHECK_FAILS(cuMemcpyHtoD_v2(range, host, 2 * PIECE + 1), INVALID);
    CHECK_FAILS(cuMemcpyDtoH_v2(back, range + PIECE, 1), INVALID);
    CHECK_FAILS(cuMemcpyDtoH_v2(back, range + 2 * PIECE + 1, PIECE), INVALID);
    CHECK_FAILS(cuMemcpyDtoH_v2(back, range + 2 * PIECE, RANGE), INVALID);
    CHECK_EQUAL(reported("out_of_bounds"), 5);
    check_told(range + PIECE, 0, 0);
    OK(cuMemUnmap(range, PIECE));
    OK(cuMemUnmap(range + 2 * PIECE, PIECE));
    OK(cuMemAddressFree(range, RANGE));
}

static void test_memory_belongs_to_its_device(void)
{
    CUdeviceptr range = reserve();

    map(range, PIECE, 0);
    map(range + PIECE, PIECE, 1);
    check_told(range + PIECE, 2, 1);
    CHECK_FAILS(cuMemcpyHtoD_v2(range + PIECE, host, PIECE), INVALID);
    CHECK_FAILS(cuMemcpyHtoD_v2(range + PIECE - 1, host, 2), INVALID);
    OK(cuMemUnmap(range, 2 * PIECE));
    OK(cuMemAddressFree(range, RANGE));
}

/* The bytes are those of the memory, not of the range. */
static void test_memory_can_be_mapped_again(void)
{
    CUdeviceptr range = reserve();
    unsigned long long handle = create(PIECE, 0);
    struct access access = {{1, 0}, 3};

    OK(cuMemMap(range, PIECE, 0, handle, 0));
    CHECK_FAILS(cuMemcpyHtoD_v2(range, host, PIECE), INVALID); /* it may not be accessed yet */
    OK(cuMemSetAccess(range, PIECE, &access, 1));
    fill(host, PIECE, 2);
    OK(cuMemcpyHtoD_v2(range, host, PIECE));
    OK(cuMemUnmap(range, PIECE));
    OK(cuMemMap(range + PIECE, PIECE, 0, handle, 0));
    OK(cuMemMap(range + 2 * PIECE, PIECE, 0, handle, 0));
    OK(cuMemSetAccess(range + PIECE, 2 * PIECE, &access, 1));
    OK(cuMemcpyDtoH_v2(back, range + 2 * PIECE, PIECE));
    CHECK(memcmp(back, host, PIECE) == 0);
    OK(cuMemRelease(handle));
    CHECK_EQUAL(reported("device_allocations"), 1);
    OK(cuMemUnmap(range + PIECE, 2 * PIECE));
    CHECK_EQUAL(reported("device_allocations"), 0);
    CHECK_FAILS(cuMemRelease(handle), INVALID);
    OK(cuMemAddressFree(range, RANGE));
}

static void test_invalid_calls_are_refused(void)
{
    struct properties elsewhere = {1, 0, {1, 9}, NULL, {0}}, hosts = {1, 0, {2, 0}, NULL, {0}};
    struct access access = {{1, 0}, 3}, nothing = {{1, 0}, 0};
    CUdeviceptr range = reserve(), other;
    unsigned long long handle = create(2 * PIECE, 0), made;

    CHECK_FAILS(cuMemAddressReserve(&other, PIECE + 1, 0, 0, 0), INVALID);
    CHECK_FAILS(cuMemAddressReserve(&other, PIECE, 3, 0, 0), INVALID);
    CHECK_FAILS(cuMemCreate(&made, PIECE / 2, &hosts, 0), INVALID);
    CHECK_FAILS(cuMemCreate(&made, PIECE, &hosts, 0), INVALID);
    CHECK_FAILS(cuMemCreate(&made, PIECE, &elsewhere, 0), NO_SUCH_DEVICE);
    CHECK_FAILS(cuMemMap(range, 3 * PIECE, 0, handle, 0), INVALID);
    CHECK_FAILS(cuMemMap(range, 2 * PIECE, PIECE, handle, 0), INVALID);
    CHECK_FAILS(cuMemMap(range + 4096, PIECE, 0, handle, 0), INVALID);
    CHECK_FAILS(cuMemMap(range + 3 * PIECE, 2 * PIECE, 0, handle, 0), INVALID);
    CHECK_FAILS(cuMemMap((CUdeviceptr)host, PIECE, 0, handle, 0), INVALID);
    OK(cuMemMap(range, 2 * PIECE, 0, handle, 0));
    CHECK_FAILS(cuMemMap(range + PIECE, PIECE, 0, handle, 0), INVALID);
    CHECK_FAILS(cuMemUnmap(range, PIECE), INVALID);
    CHECK_FAILS(cuMemUnmap(range, 3 * PIECE), INVALID);
    CHECK_FAILS(cuMemSetAccess(range, 3 * PIECE, &access, 1), INVALID);
    CHECK_FAILS(cuMemSetAccess(range, PIECE, &nothing, 1), INVALID);
    CHECK_FAILS(cuMemAddressFree(range, RANGE), INVALID);
    CHECK_FAILS(cuMemFree_v2(range), INVALID);
    OK(cuMemUnmap(range, 2 * PIECE));
    CHECK_FAILS(cuMemAddressFree(range, PIECE), INVALID);
    OK(cuMemRelease(handle));
    OK(cuMemAddressFree(range, RANGE));
}

/* A copy uses only its own part of the range. */
static void test_unmapping_memory_in_use_is_reported(void)
{
    CUdeviceptr range = reserve();
    unsigned char *pinned = pinned_memory(PIECE);
    void *stream = new_stream(NON_BLOCKING);

    map(range, PIECE, 0);
    map(range + PIECE, PIECE, 0);
    kvferry_sim_reset_counters();
    OK(kvferry_sim_faults("exec:1=hang"));
    OK(cuMemcpyHtoDAsync_v2(range, pinned, PIECE, stream));
    OK(cuMemUnmap(range + PIECE, PIECE));
    CHECK_EQUAL(reported("busy_free"), 0);
    OK(cuMemUnmap(range, PIECE));
    CHECK_EQUAL(reported("busy_free"), 1);
    kvferry_sim_release_hangs();
    OK(cuStreamSynchronize(stream));
    OK(cuMemAddressFree(range, RANGE));
    OK(cuMemFreeHost(pinned));
    OK(cuStreamDestroy_v2(stream));
}

int main(void)
{
    begin(0);
    OK(kvferry_sim_cost("0"));
    test_physical_allocations_are_one_range();
    test_holes_are_refused();
    test_memory_belongs_to_its_device();
    test_memory_can_be_mapped_again();
    test_invalid_calls_are_refused();
    test_unmapping_memory_in_use_is_reported();
    CHECK_EQUAL(reported("device_allocations"), 0);
    CHECK_EQUAL(reported("virtual_ranges"), 0);
    return 0;
}
