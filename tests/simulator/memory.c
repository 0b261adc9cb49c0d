/* Device memory cannot be accessed by the host; copies into it, out of it and within it are checked. */
#include "acl.h"
#include "processes.h"

enum { SIZE = 1 << 20 };

static unsigned char host[SIZE], back[SIZE];

static void test_host_cannot_access_device_memory(void)
{
    unsigned char *device = device_memory(SIZE);

    check_host_cannot_access(device);
    OK(aclrtFree(device));
}

static void test_bytes_survive_a_round_trip_at_any_offset(void)
{
    unsigned char *device = device_memory(SIZE), *pinned = pinned_memory(SIZE);
    size_t offset;

    fill(host, SIZE, 1);
    OK(aclrtMemcpy(device, SIZE, host, SIZE, H2D));
    for (offset = 0; offset < SIZE / 2; offset = 2 * offset + 1) {
        OK(aclrtMemcpy(back, SIZE, device + offset, 4097, D2H));
        CHECK(memcmp(back, host + offset, 4097) == 0);
    }
    OK(aclrtMemcpy(pinned + 7, SIZE - 7, device + 13, 1000, DEFAULT));
    CHECK(memcmp(pinned + 7, host + 13, 1000) == 0);
    OK(aclrtMemcpy(device + SIZE / 2, SIZE / 2, device, SIZE / 4, D2D));
    OK(aclrtMemcpy(back, SIZE, device + SIZE / 2, SIZE / 4, D2H));
    CHECK(memcmp(back, host, SIZE / 4) == 0);
    OK(aclrtMemset(device + 5, 100, 0x1ff, 100));
    OK(aclrtMemcpy(back, SIZE, device + 4, 102, D2H));
    CHECK(back[0] == host[4] && back[1] == 0xff && back[100] == 0xff && back[101] == host[105]);
    OK(aclrtMemcpy(back, SIZE, host, SIZE, H2H));
    CHECK(memcmp(back, host, SIZE) == 0);
    OK(aclrtFreeHost(pinned));
    OK(aclrtFree(device));
}

/* Only pages that are touched cost memory. */
static void test_large_memory_is_sparse(void)
{
    size_t size = (size_t)12 << 30, far = ((size_t)9 << 30) + 123;
    unsigned char *device = device_memory(size);

    fill(host, SIZE, 2);
    OK(aclrtMemcpy(device + far, size - far, host, SIZE, H2D));
    OK(aclrtMemcpy(back, SIZE, device + far, SIZE, D2H));
    CHECK(memcmp(back, host, SIZE) == 0);
    OK(aclrtFree(device));
    CHECK_FAILS(aclrtMalloc((void **)&device, SIZE_MAX, 0), NO_MEMORY);
    CHECK_FAILS(aclrtMalloc((void **)&device, SIZE_MAX / 4, 0), NO_MEMORY);
    CHECK_FAILS(aclrtMalloc((void **)&device, 0, 0), INVALID);
    CHECK_FAILS(aclrtMalloc(NULL, SIZE, 0), INVALID);
    CHECK_FAILS(aclrtMallocHost((void **)&device, 0), INVALID);
}

static void test_wrong_copies_are_refused(void)
{
    unsigned char *device = device_memory(SIZE), *pinned = pinned_memory(SIZE);

    CHECK_FAILS(aclrtMemcpy(device, 99, host, 100, H2D), INVALID);
    CHECK_FAILS(aclrtMemcpy(device, SIZE, host, 0, H2D), INVALID);
    CHECK_FAILS(aclrtMemcpy(device, SIZE, NULL, 100, H2D), INVALID);
    CHECK_FAILS(aclrtMemcpy(NULL, SIZE, host, 100, DEFAULT), INVALID);
    CHECK_FAILS(aclrtMemcpy(back, SIZE, host, 100, D2H), INVALID);
    CHECK_FAILS(aclrtMemcpy(device, SIZE, host, 100, D2H), INVALID);
    CHECK_FAILS(aclrtMemcpy(back, SIZE, device, 100, H2D), INVALID);
    CHECK_FAILS(aclrtMemcpy(device, SIZE, pinned, 100, D2D), INVALID);
    CHECK_FAILS(aclrtMemcpy(device, SIZE, host, 100, 5), INVALID);
    CHECK_FAILS(aclrtMemcpy(device, SIZE, host, 100, -1), INVALID);
    CHECK_FAILS(aclrtMemcpy(device + 32, SIZE, device + 128, 64, D2D), UNALIGNED);
    CHECK_FAILS(aclrtMemcpy(device + 64, SIZE, device + 129, 64, D2D), UNALIGNED);
    CHECK_FAILS(aclrtMemcpy(device, SIZE, (void *)64, 100, H2D), INVALID);
    CHECK_FAILS(aclrtMemcpy((void *)64, SIZE, device, 100, D2H), INVALID);
    CHECK_FAILS(aclrtMemset(host, SIZE, 0, 100), INVALID);
    CHECK_FAILS(aclrtMemset(device, 99, 0, 100), INVALID);
    CHECK_EQUAL(reported("out_of_bounds"), 0);
    CHECK_FAILS(aclrtMemcpy(device + 1, SIZE, host, SIZE, H2D), INVALID);
    CHECK_FAILS(aclrtMemcpy(back, SIZE, device + SIZE - 99, 100, D2H), INVALID);
    CHECK_FAILS(aclrtMemcpy(device, SIZE, pinned + 1, SIZE, H2D), INVALID);
    CHECK_FAILS(aclrtMemset(device + 1, SIZE, 0, SIZE), INVALID);
    CHECK_EQUAL(reported("out_of_bounds"), 4);
    OK(aclrtFreeHost(pinned));
    OK(aclrtFree(device));
}

static void test_freed_memory_is_recognised(void)
{
    unsigned char *device = device_memory(SIZE), *pinned = pinned_memory(SIZE);
    struct attributes attributes;

    CHECK_FAILS(aclrtFree(device + 4096), INVALID);
    CHECK_FAILS(aclrtFree(pinned), INVALID);
    CHECK_FAILS(aclrtFreeHost(device), INVALID);
    CHECK_FAILS(aclrtFree(host), INVALID);
    CHECK_FAILS(aclrtFree(NULL), INVALID);
    OK(aclrtFree(device));
    OK(aclrtFreeHost(pinned));
    CHECK_EQUAL(reported("double_free"), 0);
    CHECK_FAILS(aclrtFree(device), INVALID);
    CHECK_FAILS(aclrtFreeHost(pinned), INVALID);
    CHECK_EQUAL(reported("double_free"), 2);
    CHECK_FAILS(aclrtMemcpy(back, SIZE, device + 100, 1, D2H), INVALID);
    CHECK_FAILS(aclrtMemcpy(back, SIZE, pinned, 1, H2H), INVALID);
    CHECK_FAILS(aclrtPointerGetAttributes(device, &attributes), INVALID);
    CHECK_EQUAL(reported("use_after_free"), 3);
}

/* Freed memory is remembered for a while, and not for ever. */
static void test_much_can_be_allocated_and_freed(void)
{
    void *addresses[64];
    int round, i;

    for (round = 0; round < 100; round++) {
        for (i = 0; i < 64; i++) {
            addresses[i] = round % 2 ? device_memory((size_t)1 << (12 + i % 24)) : pinned_memory(4096);
        }
        for (i = 0; i < 64; i++) {
            OK(round % 2 ? aclrtFree(addresses[i]) : aclrtFreeHost(addresses[i]));
        }
    }
}

static void check_kind(const void *address, int type, uint32_t device)
{
    struct attributes attributes;

    OK(aclrtPointerGetAttributes(address, &attributes));
    CHECK_EQUAL(attributes.location.type, type);
    CHECK_EQUAL(attributes.location.id, device);
}

static void test_pointer_has_attributes(void)
{
    unsigned char *first = device_memory(SIZE), *pinned = pinned_memory(SIZE), *second;

    OK(aclrtSetDevice(1));
    second = device_memory(SIZE);
    check_kind(first + SIZE - 1, DEVICE, 0);
    check_kind(second + 77, DEVICE, 1);
    check_kind(pinned + 99, HOST, 0);
    check_kind(host, UNREGISTERED, 0);
    check_kind(NULL, UNREGISTERED, 0);
    CHECK_FAILS(aclrtPointerGetAttributes(first, NULL), INVALID);
    OK(aclrtFree(second));
    OK(aclrtResetDevice(1));
    OK(aclrtSetDevice(0));
    OK(aclrtFree(first));
    OK(aclrtFreeHost(pinned));
}

int main(void)
{
    begin(0);
    OK(kvferry_sim_cost("0"));
    test_host_cannot_access_device_memory();
    test_bytes_survive_a_round_trip_at_any_offset();
    test_large_memory_is_sparse();
    test_wrong_copies_are_refused();
    test_freed_memory_is_recognised();
    test_much_can_be_allocated_and_freed();
    test_pointer_has_attributes();
    CHECK_EQUAL(reported("device_allocations"), 0);
    CHECK_EQUAL(reported("host_allocations"), 0);
    return 0;
}
