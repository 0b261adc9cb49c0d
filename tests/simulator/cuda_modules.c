/* Modules, and launches of kvferry's kernels: their copies are made later, and what they must not touch breaks the
 * context as an illegal access does. */
#include "cu.h"

#include "../../cuda/kernels.h"

enum { SIZE = 1 << 16 };

static CUdeviceptr device;
static unsigned char *pinned;
static void *stream, *module, *list_kernel, *strided_kernel;

/* The text of a module that declares both kernels. */
static const char *text_of(const char *mark, size_t list, size_t strided)
{
    static char text[1024];

    snprintf(text, sizeof text,
             "// %s\n.version 6.3\n.visible .entry %s(\n\t.param .align 8 .b8 %s_param_0[%zu]\n)\n{ret;}\n"
             ".visible .entry %s(\n\t.param .align 8 .b8 %s_param_0[%zu]\n)\n{ret;}\n",
             mark, KERNEL_LIST, KERNEL_LIST, list, KERNEL_STRIDED, KERNEL_STRIDED, strided);
    return text;
}

static const char *right_text(void)
{
    return text_of(KERNELS_MARK, sizeof(struct kernel_list), sizeof(struct kernel_strided));
}

static void make(int number)
{
    begin(number);
    stream = new_stream(NON_BLOCKING);
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    OK(cuModuleLoadData(&module, right_text()));
    OK(cuModuleGetFunction(&list_kernel, module, KERNEL_LIST));
    OK(cuModuleGetFunction(&strided_kernel, module, KERNEL_STRIDED));
}

static void release(int code)
{
    CHECK_EQUAL(cuModuleUnload(module), code);
    CHECK_EQUAL(cuMemFree_v2(device), code);
    CHECK_EQUAL(cuMemFreeHost(pinned), code);
    CHECK_EQUAL(cuStreamDestroy_v2(stream), code);
}

static int launch(void *function, const void *parameters)
{
    void *pointers[] = {(void *)parameters};

    return cuLaunchKernel(function, 4, 1, 1, KERNEL_THREADS, 1, 1, 0, stream, pointers, NULL);
}

/* A list with one copy from the device to the host, so many bytes behind its beginning. */
static struct kernel_list one(uint64_t to, uint64_t from, uint32_t length)
{
    struct kernel_list list;

    memset(&list, 0, sizeof list);
    list.count = 1;
    list.chunks = kernel_chunks(to, length);
    list.copies[0].to = to;
    list.copies[0].from = from;
    list.copies[0].length = length;
    return list;
}

/* Two groups of three runs of 64 bytes: from the device, where they are 100 bytes apart, to the host, at 80 bytes. */
static struct kernel_strided two_groups(void)
{
    struct kernel_strided strided;

    memset(&strided, 0, sizeof strided);
    strided.length = 64;
    strided.slots = 4;
    strided.total = 24;
    strided.bases = 2;
    strided.counts[0] = strided.counts[1] = strided.counts[2] = 1;
    strided.counts[3] = 3;
    strided.to_strides[3] = 80;
    strided.from_strides[3] = 100;
    strided.at[0].to = (uintptr_t)pinned + 1024;
    strided.at[0].from = device + 5;
    strided.at[1].to = (uintptr_t)pinned;
    strided.at[1].from = device + 4096;
    return strided;
}

static void test_only_the_kernels_of_this_layout_are_loaded(void)
{
    const size_t list = sizeof(struct kernel_list), strided = sizeof(struct kernel_strided);
    void *made;

    CHECK_FAILS(cuModuleLoadData(&made, text_of("kvferry kernels 0", list, strided)), INVALID_PTX);
    CHECK_FAILS(cuModuleLoadData(&made, text_of(KERNELS_MARK, list + 8, strided)), INVALID_PTX);
    CHECK_FAILS(cuModuleLoadData(&made, text_of(KERNELS_MARK, list, strided - 8)), INVALID_PTX);
    CHECK_FAILS(cuModuleLoadData(&made, "// " KERNELS_MARK "\n"), INVALID_PTX);
    CHECK_FAILS(cuModuleLoadData(NULL, right_text()), INVALID);
    CHECK_FAILS(cuModuleGetFunction(&made, module, "kvferry_copy"), NOT_FOUND);
    CHECK_FAILS(cuModuleGetFunction(&made, stream, KERNEL_LIST), NO_SUCH_HANDLE);
    CHECK_FAILS(cuModuleUnload(stream), NO_SUCH_HANDLE);
}

static void test_parameters_of_another_layout_are_refused(void)
{
    struct kernel_list list = one((uintptr_t)pinned, device, 5000), wrong = list;
    struct kernel_strided strided = two_groups(), of_others = strided;

    wrong.chunks++;
    CHECK_FAILS(launch(list_kernel, &wrong), INVALID);
    wrong = list;
    wrong.copies[0].first = 1;
    CHECK_FAILS(launch(list_kernel, &wrong), INVALID);
    wrong = list;
    wrong.copies[0].length = 0;
    CHECK_FAILS(launch(list_kernel, &wrong), INVALID);
    wrong = list;
    wrong.count = KERNEL_COPIES + 1;
    CHECK_FAILS(launch(list_kernel, &wrong), INVALID);
    of_others.total++;
    CHECK_FAILS(launch(strided_kernel, &of_others), INVALID);
    of_others = strided;
    of_others.slots++;
    CHECK_FAILS(launch(strided_kernel, &of_others), INVALID);
    of_others = strided;
    of_others.at[1].to++; /* runs of one slot more */
    CHECK_FAILS(launch(strided_kernel, &of_others), INVALID);
    of_others = strided;
    of_others.bases = of_others.total = 0;
    CHECK_FAILS(launch(strided_kernel, &of_others), INVALID);
    of_others.bases = KERNEL_BASES + 1;
    of_others.total = of_others.bases * 12;
    CHECK_FAILS(launch(strided_kernel, &of_others), INVALID);
    CHECK_FAILS(cuLaunchKernel(list_kernel, 0, 1, 1, KERNEL_THREADS, 1, 1, 0, stream, (void *[]){&list}, NULL), INVALID);
    CHECK_FAILS(cuLaunchKernel(list_kernel, 1, 1, 1, 32, 1, 1, 0, stream, (void *[]){&list}, NULL), INVALID);
    CHECK_FAILS(cuLaunchKernel(list_kernel, 1, 1, 1, KERNEL_THREADS, 1, 1, 0, stream, NULL, NULL), INVALID);
    CHECK_FAILS(launch(module, &list), NO_SUCH_HANDLE);
}

/* The parameters may be overwritten when the launch has returned. */
static void test_a_launch_is_executed_in_the_order_of_its_stream(void)
{
    struct kernel_list list = one((uintptr_t)pinned + 3, device + 1, 5000);

    memset(pinned, 7, SIZE);
    OK(cuMemcpyHtoD_v2(device, pinned, SIZE));
    memset(pinned, 0, SIZE);
    OK(kvferry_sim_faults("exec:1=hang"));
    OK(launch(list_kernel, &list));
    memset(&list, 0xff, sizeof list);
    CHECK_EQUAL(cuStreamQuery(stream), NOT_READY);
    CHECK_EQUAL(pinned[3], 0);
    kvferry_sim_release_hangs();
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(pinned[2], 0);
    CHECK_EQUAL(pinned[3], 7);
    CHECK_EQUAL(pinned[5002], 7);
    CHECK_EQUAL(pinned[5003], 0);
}

static void test_each_group_of_a_strided_launch_is_copied(void)
{
    struct kernel_strided strided = two_groups();
    int group, run, i;

    for (i = 0; i < SIZE; i++) {
        pinned[i] = (unsigned char)(i / 251 + i);
    }
    OK(cuMemcpyHtoD_v2(device, pinned, SIZE));
    memset(pinned, 0, SIZE);
    OK(launch(strided_kernel, &strided));
    OK(cuStreamSynchronize(stream));
    for (group = 0; group < 2; group++) {
        for (run = 0; run < 3; run++) {
            unsigned char *to = (unsigned char *)(uintptr_t)strided.at[group].to + run * 80;
            int from = (int)(strided.at[group].from - device) + run * 100;

            for (i = 0; i < 64; i++) {
                CHECK_EQUAL(to[i], (unsigned char)((from + i) / 251 + from + i));
                to[i] = 0;
            }
        }
    }
    for (i = 0; i < SIZE; i++) {
        CHECK_EQUAL(pinned[i], 0);
    }
}

/* Freeing what a launch uses is reported, as it is for copies. */
static void test_memory_is_in_use_until_a_launch_is_executed(void)
{
    CUdeviceptr memory = device_memory(SIZE);
    struct kernel_list list = one((uintptr_t)pinned, memory, SIZE);

    kvferry_sim_reset_counters();
    OK(kvferry_sim_faults("exec:1=hang"));
    OK(launch(list_kernel, &list));
    OK(cuMemFree_v2(memory));
    CHECK_EQUAL(reported("busy_free"), 1);
    kvferry_sim_release_hangs();
    OK(cuStreamSynchronize(stream));
}

/* Launches a list, which is no error yet; the context breaks when it is executed. */
static void breaks_the_context(struct kernel_list list, const char *misuse)
{
    kvferry_sim_reset_counters();
    OK(launch(list_kernel, &list));
    CHECK_EQUAL(reported(misuse), 1);
    CHECK_FAILS(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
    CHECK_FAILS(launch(list_kernel, &list), ILLEGAL_ADDRESS);
    release(ILLEGAL_ADDRESS);
    OK(kvferry_sim_faults(NULL));
    make(0);
}

static void test_what_a_kernel_must_not_touch_breaks_the_context(void)
{
    static unsigned char pageable[64];
    CUdeviceptr freed;

    breaks_the_context(one((uintptr_t)pinned, device + SIZE - 16, 17), "out_of_bounds");
    breaks_the_context(one((uintptr_t)pageable, device, sizeof pageable), "wrong_pointer");
    CHECK_EQUAL(pageable[0], 0);
    freed = device_memory(SIZE);
    OK(cuMemFree_v2(freed));
    breaks_the_context(one((uintptr_t)pinned, freed, 16), "use_after_free");
}

static void test_a_module_is_of_its_context(void)
{
    struct kernel_list list = one((uintptr_t)pinned, device, 16);
    void *context;

    OK(cuCtxGetCurrent(&context));
    begin(1);
    CHECK_FAILS(launch(list_kernel, &list), NO_SUCH_HANDLE);
    CHECK_FAILS(cuModuleUnload(module), NO_SUCH_HANDLE);
    OK(cuDevicePrimaryCtxRelease_v2(1));
    OK(cuCtxSetCurrent(context));
}

static void test_a_module_that_is_left_behind_is_reported(void)
{
    void *left;

    begin(1);
    OK(cuModuleLoadData(&left, right_text()));
    kvferry_sim_reset_counters();
    OK(cuDevicePrimaryCtxRelease_v2(1));
    CHECK_EQUAL(reported("left_behind"), 1);
}

int main(void)
{
    int least = 1, greatest = 1;
    void *made;

    OK(kvferry_sim_cost("0"));
    make(0);
    OK(cuCtxGetStreamPriorityRange(&least, &greatest));
    CHECK(greatest < least);
    OK(cuStreamCreateWithPriority(&made, NON_BLOCKING, least));
    OK(cuStreamDestroy_v2(made));
    CHECK_FAILS(cuStreamCreateWithPriority(&made, 2, least), INVALID);
    test_only_the_kernels_of_this_layout_are_loaded();
    test_parameters_of_another_layout_are_refused();
    test_a_launch_is_executed_in_the_order_of_its_stream();
    test_each_group_of_a_strided_launch_is_copied();
    test_memory_is_in_use_until_a_launch_is_executed();
    test_what_a_kernel_must_not_touch_breaks_the_context();
    test_a_module_is_of_its_context();
    release(0);
    test_a_module_that_is_left_behind_is_reported();
    return 0;
}
