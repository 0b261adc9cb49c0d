/* CUDA's API: modules, and launches of kvferry's kernels.
 *
 * A module is the text of cuda/kernels.ptx. Its code is not executed: the simulator knows the kernels by their names,
 * and makes the copies that their parameters stand for. The text must declare the parameters of cuda/kernels.h, so that
 * those of another layout are not taken for them. */
#include "cuda_api.h"

#include "handle.h"
#include "submit.h"

#include "../cuda/kernels.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRID_MAX = INT_MAX };


/* A copy of a list or a run of a strided copy: how many of them one launch may have. */
enum { PIECES_MAX = 1 << 22 };

enum kernel { LIST, STRIDED, KERNELS_COUNT };

static const struct {
    const char *name;
    size_t size; /* of the parameters */
} kernels[KERNELS_COUNT] = {
    {KERNEL_LIST, sizeof(struct kernel_list)},
    {KERNEL_STRIDED, sizeof(struct kernel_strided)},
};

struct module {
    const void *handle;
    int device;
    void *functions[KERNELS_COUNT]; /* their handles; NULL before they are asked for */
};

struct function {
    struct module *module;
    enum kernel kernel;
};

/* Whether the text declares a kernel with one parameter of that size. */
static bool declares(const char *text, const char *name, size_t size)
{
    char head[128], parameter[128];
    const char *entry;

    snprintf(head, sizeof head, ".entry %s(", name);
    snprintf(parameter, sizeof parameter, ".param .align 8 .b8 %s_param_0[%zu]", name, size);
    entry = strstr(text, head);
    if (entry == NULL) {
        return false;
    }
    entry += strlen(head);
    while (isspace((unsigned char)*entry)) {
        entry++;
    }
    if (strncmp(entry, parameter, strlen(parameter)) != 0) {
        return false;
    }
    entry += strlen(parameter);
    while (isspace((unsigned char)*entry)) {
        entry++;
    }
    return *entry == ')';
}

static int check_text(const char *text)
{
    enum kernel kernel;

    if (strncmp(text, "// " KERNELS_MARK "\n", sizeof "// " KERNELS_MARK) != 0) {
        return sim_fail(SIM_BAD_PROGRAM, "the module is not \"%s\", which is all that can be simulated", KERNELS_MARK);
    }
    for (kernel = LIST; kernel < KERNELS_COUNT; kernel++) {
        if (!declares(text, kernels[kernel].name, kernels[kernel].size)) {
            return sim_fail(SIM_BAD_PROGRAM, "the module has no kernel %s with one parameter of %zu bytes",
                            kernels[kernel].name, kernels[kernel].size);
        }
    }
    return SIM_OK;
}

SIM_EXPORT int cuModuleLoadData(void **out, const void *image)
{
    int result = sim_begin(CALL_cuModuleLoadData, NEEDS_DEVICE);
    struct module *module;

    if (result == SIM_OK && (result = sim_check_out(out)) == SIM_OK && (result = sim_check_out(image)) == SIM_OK) {
        result = check_text(image);
    }
    if (result == SIM_OK) {
        module = calloc(1, sizeof *module);
        *out = module != NULL ? sim_handle(OBJECT_MODULE, module) : NULL;
        if (*out != NULL) {
            module->handle = *out;
            module->device = sim_current();
        } else {
            free(module);
            result = sim_fail(SIM_NO_MEMORY, "there is no memory or handle for a module");
        }
    }
    return sim_end(result);
}

/* The module of a handle, which must be of this thread's context. */
static struct module *find_module(const void *handle, int *result)
{
    struct module *module = sim_object(OBJECT_MODULE, handle);

    if (module == NULL) {
        *result = sim_misuse(MISUSE_unknown_handle, SIM_NO_SUCH_HANDLE, "%p is no module", handle);
    } else if (module->device != sim_current()) {
        *result = sim_misuse(MISUSE_other_device, SIM_OTHER_DEVICE, "a module of device %d, and device %d is set",
                             module->device, sim_current());
        module = NULL;
    }
    return module;
}

static int find_kernel(const char *name, enum kernel *out)
{
    for (*out = LIST; *out < KERNELS_COUNT; *out += 1) {
        if (strcmp(kernels[*out].name, name) == 0) {
            return SIM_OK;
        }
    }
    return sim_fail(SIM_NOT_FOUND, "the module has no kernel %s", name);
}

/* A function's handle is made once for its module. */
static int make_function(struct module *module, enum kernel kernel, void **out)
{
    struct function *function;

    if (module->functions[kernel] == NULL) {
        function = calloc(1, sizeof *function);
        module->functions[kernel] = function != NULL ? sim_handle(OBJECT_FUNCTION, function) : NULL;
        if (module->functions[kernel] == NULL) {
            free(function);
            return sim_fail(SIM_NO_MEMORY, "there is no memory or handle for a function");
        }
        function->module = module;
        function->kernel = kernel;
    }
    *out = module->functions[kernel];
    return SIM_OK;
}

SIM_EXPORT int cuModuleGetFunction(void **out, void *handle, const char *name)
{
    int result = sim_begin(CALL_cuModuleGetFunction, NEEDS_DEVICE);
    struct module *module = NULL;
    enum kernel kernel;

    if (result == SIM_OK && (result = sim_check_out(out)) == SIM_OK && (result = sim_check_out(name)) == SIM_OK) {
        module = find_module(handle, &result);
    }
    if (module != NULL && (result = find_kernel(name, &kernel)) == SIM_OK) {
        result = make_function(module, kernel, out);
    }
    return sim_end(result);
}

static void drop_module(struct module *module)
{
    enum kernel kernel;

    for (kernel = LIST; kernel < KERNELS_COUNT; kernel++) {
        if (module->functions[kernel] != NULL) {
            free(sim_object(OBJECT_FUNCTION, module->functions[kernel]));
            sim_drop_handle(module->functions[kernel]);
        }
    }
    sim_drop_handle(module->handle);
    free(module);
}

SIM_EXPORT int cuModuleUnload(void *handle)
{
    int deferred, result = sim_begin_release(CALL_cuModuleUnload, NEEDS_DEVICE, &deferred);
    struct module *module = result == SIM_OK ? find_module(handle, &result) : NULL;

    if (module != NULL) {
        drop_module(module);
    }
    return sim_end_release(result, deferred);
}

size_t cuda_drop_modules(int device)
{
    size_t position = 0, dropped = 0;
    struct module *module;

    while ((module = sim_next_object(OBJECT_MODULE, &position)) != NULL) {
        if (module->device == device) {
            drop_module(module);
            dropped++;
        }
    }
    return dropped;
}

/* The copies that a launch stands for. */
struct work {
    void **to, **from;
    size_t *sizes;
    size_t count, room;
};

static bool has_room(struct work *work, size_t room)
{
    work->to = calloc(room, sizeof *work->to);
    work->from = calloc(room, sizeof *work->from);
    work->sizes = calloc(room, sizeof *work->sizes);
    work->room = room;
    return work->to != NULL && work->from != NULL && work->sizes != NULL;
}

static void add(struct work *work, uint64_t to, uint64_t from, uint64_t size)
{
    work->to[work->count] = (void *)(uintptr_t)to;
    work->from[work->count] = (void *)(uintptr_t)from;
    work->sizes[work->count++] = size;
}

/* Reads a list as the kernel does, which finds its copies by the numbers of their chunks. */
static int read_list(const struct kernel_list *list, struct work *work)
{
    uint32_t chunks = 0, i;

    if (list->count == 0 || list->count > KERNEL_COPIES || !has_room(work, list->count)) {
        return sim_fail(SIM_INVALID, "a list of %u copies", list->count);
    }
    for (i = 0; i < list->count; i++) {
        const struct kernel_copy *copy = &list->copies[i];

        if (copy->length == 0 || copy->length > KERNEL_LENGTH_MAX || copy->first != chunks) {
            return sim_misuse(MISUSE_out_of_bounds, SIM_INVALID, "copy %u of a list has %u bytes from chunk %u, not %u",
                              i, copy->length, copy->first, chunks);
        }
        chunks += kernel_chunks(copy->to, copy->length);
        add(work, copy->to, copy->from, copy->length);
    }
    if (chunks != list->chunks) {
        return sim_misuse(MISUSE_out_of_bounds, SIM_INVALID, "a list of %u chunks says that it has %u", chunks,
                          list->chunks);
    }
    return SIM_OK;
}

static int read_strided(const struct kernel_strided *strided, struct work *work)
{
    uint64_t runs = strided->bases, run, rest, to, from;
    int i;

    if (runs == 0 || runs > KERNEL_BASES) {
        return sim_fail(SIM_INVALID, "runs of %u groups", strided->bases);
    }
    for (i = 0; i < KERNEL_DIMENSIONS; i++) {
        runs = runs <= PIECES_MAX ? runs * strided->counts[i] : runs;
    }
    if (runs == 0 || runs > PIECES_MAX || strided->length == 0 || !has_room(work, (size_t)runs)) {
        return sim_fail(SIM_INVALID, "%llu runs of %llu bytes", (unsigned long long)runs,
                        (unsigned long long)strided->length);
    }
    if (strided->slots != kernel_slots(strided) || strided->total != strided->slots * runs) {
        return sim_misuse(MISUSE_out_of_bounds, SIM_INVALID, "%llu runs of %u slots have %u", (unsigned long long)runs,
                          strided->slots, strided->total);
    }
    for (run = 0; run < runs; run++) {
        to = from = 0;
        rest = run;
        for (i = KERNEL_DIMENSIONS - 1; i >= 0; i--) {
            to += rest % strided->counts[i] * (uint64_t)strided->to_strides[i];
            from += rest % strided->counts[i] * (uint64_t)strided->from_strides[i];
            rest /= strided->counts[i];
        }
        add(work, strided->at[rest].to + to, strided->at[rest].from + from, strided->length);
    }
    return SIM_OK;
}

static int launch(const struct function *function, const void *parameters, void *stream)
{
    struct work work = {NULL, NULL, NULL, 0, 0};
    int result = function->kernel == LIST ? read_list(parameters, &work) : read_strided(parameters, &work);
    struct batch batch = {work.to, work.sizes, work.from, work.sizes, work.count, NULL, false, false};

    if (result == SIM_OK) {
        result = sim_launch(&batch, stream);
    }
    free(work.to);
    free(work.from);
    free(work.sizes);
    return result;
}

SIM_EXPORT int cuLaunchKernel(void *handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **parameters,
                              void **extra)
{
    int result = sim_begin(CALL_cuLaunchKernel, NEEDS_DEVICE);
    struct function *function = sim_object(OBJECT_FUNCTION, handle);

    if (result != SIM_OK) {
        return sim_end(result);
    }
    if (function == NULL) {
        result = sim_misuse(MISUSE_unknown_handle, SIM_NO_SUCH_HANDLE, "%p is no function", handle);
    } else if (function->module->device != sim_current()) {
        result = sim_misuse(MISUSE_other_device, SIM_OTHER_DEVICE, "a function of device %d, and device %d is set",
                            function->module->device, sim_current());
    } else if (grid_x == 0 || grid_x > GRID_MAX || grid_y != 1 || grid_z != 1 || block_x != KERNEL_THREADS ||
               block_y != 1 || block_z != 1 || shared != 0 || parameters == NULL || *parameters == NULL ||
               extra != NULL) {
        result = sim_fail(SIM_INVALID, "a launch of %u blocks of %u threads, which the kernels are not made for",
                          grid_x, block_x);
    } else {
        result = launch(function, *parameters, cuda_stream(stream));
    }
    return sim_end(result);
}
