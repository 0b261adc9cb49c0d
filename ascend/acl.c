#include "acl.h"

#define SYMBOL(name, optional) {#name, offsetof(struct acl, name), optional},
#define REQUIRED_SYMBOL(type, name, parameters) SYMBOL(name, 0)
#define OPTIONAL_SYMBOL(type, name, parameters) SYMBOL(name, 1)

static const struct acl_symbol symbols[] = {
    ACL_FUNCTIONS(REQUIRED_SYMBOL, OPTIONAL_SYMBOL)
    {NULL, 0, 0},
};

const struct acl_symbol *const kvferry_acl_symbols = symbols;

static struct acl_result result_of(int code, const void *value)
{
    struct acl_result result = {code, (uintptr_t)value};

    return result;
}

int kvferry_acl_init(const struct acl *acl)
{
    return acl->aclInit(NULL);
}

const char *kvferry_acl_message(const struct acl *acl)
{
    return acl->aclGetRecentErrMsg();
}

struct acl_result kvferry_acl_count(const struct acl *acl)
{
    uint32_t count = 0;
    struct acl_result result = {acl->aclrtGetDeviceCount(&count), 0};

    result.value = count;
    return result;
}

int kvferry_acl_set_device(const struct acl *acl, int32_t device)
{
    return acl->aclrtSetDevice(device);
}

int kvferry_acl_reset_device(const struct acl *acl, int32_t device)
{
    return acl->aclrtResetDevice(device);
}

struct acl_result kvferry_acl_malloc(const struct acl *acl, size_t length)
{
    void *memory = NULL;
    int code = acl->aclrtMalloc(&memory, length, ACL_HUGE_PAGES_FIRST);

    return result_of(code, memory);
}

int kvferry_acl_free(const struct acl *acl, uintptr_t memory)
{
    return acl->aclrtFree((void *)memory);
}

struct acl_result kvferry_acl_malloc_host(const struct acl *acl, size_t length)
{
    void *memory = NULL;
    int code = acl->aclrtMallocHost(&memory, length);

    return result_of(code, memory);
}

int kvferry_acl_free_host(const struct acl *acl, uintptr_t memory)
{
    return acl->aclrtFreeHost((void *)memory);
}

int kvferry_acl_attributes(const struct acl *acl, uintptr_t pointer, struct acl_attributes *out)
{
    return acl->aclrtPointerGetAttributes((const void *)pointer, out);
}

struct acl_result kvferry_acl_create_stream(const struct acl *acl)
{
    void *stream = NULL;
    int code = acl->aclrtCreateStream(&stream);

    return result_of(code, stream);
}

int kvferry_acl_destroy_stream(const struct acl *acl, uintptr_t stream)
{
    return acl->aclrtDestroyStream((void *)stream);
}

int kvferry_acl_synchronize_stream(const struct acl *acl, uintptr_t stream, int32_t timeout)
{
    return acl->aclrtSynchronizeStreamWithTimeout((void *)stream, timeout);
}

struct acl_result kvferry_acl_create_event(const struct acl *acl)
{
    void *event = NULL;
    int code = acl->aclrtCreateEvent(&event);

    return result_of(code, event);
}

int kvferry_acl_destroy_event(const struct acl *acl, uintptr_t event)
{
    return acl->aclrtDestroyEvent((void *)event);
}

int kvferry_acl_record_event(const struct acl *acl, uintptr_t event, uintptr_t stream)
{
    return acl->aclrtRecordEvent((void *)event, (void *)stream);
}

int kvferry_acl_synchronize_event(const struct acl *acl, uintptr_t event, int32_t timeout)
{
    return acl->aclrtSynchronizeEventWithTimeout((void *)event, timeout);
}

struct acl_elapsed kvferry_acl_elapsed(const struct acl *acl, uintptr_t from, uintptr_t to)
{
    struct acl_elapsed elapsed = {ACL_UNSUPPORTED, 0};

    if (acl->aclrtEventElapsedTime != NULL) {
        elapsed.code = acl->aclrtEventElapsedTime(&elapsed.milliseconds, (void *)from, (void *)to);
    }
    return elapsed;
}

struct acl_progress kvferry_acl_copy(const struct acl *acl, int kind, const struct acl_copy *copies, size_t count,
                                     uintptr_t stream)
{
    struct acl_progress progress = {ACL_SUCCESS, 0};

    for (; progress.index < count; progress.index++) {
        const struct acl_copy *copy = &copies[progress.index];

        progress.code = acl->aclrtMemcpyAsync((void *)copy->to, copy->length, (const void *)copy->from, copy->length,
                                              kind, (void *)stream);
        if (progress.code != ACL_SUCCESS) {
            break;
        }
    }
    return progress;
}

int kvferry_acl_has_peers(const struct acl *acl)
{
    return acl->aclrtDeviceCanAccessPeer != NULL && acl->aclrtDeviceEnablePeerAccess != NULL;
}

struct acl_result kvferry_acl_can_access(const struct acl *acl, int32_t device, int32_t peer)
{
    int32_t can = 0;
    struct acl_result result = {acl->aclrtDeviceCanAccessPeer(&can, device, peer), 0};

    result.value = can != 0;
    return result;
}

int kvferry_acl_enable_peer(const struct acl *acl, int32_t peer)
{
    return acl->aclrtDeviceEnablePeerAccess(peer, 0);
}

int kvferry_acl_copy_rows(const struct acl *acl, int kind, const struct acl_rows *rows, uintptr_t stream)
{
    if (acl->aclrtMemcpy2dAsync == NULL) {
        return ACL_UNSUPPORTED;
    }
    return acl->aclrtMemcpy2dAsync((void *)rows->to, rows->to_pitch, (const void *)rows->from, rows->from_pitch,
                                   rows->length, rows->count, kind, (void *)stream);
}

struct acl_progress kvferry_acl_copy_batch(const struct acl *acl, int kind, uintptr_t *to, uintptr_t *from,
                                           size_t *lengths, size_t count, uint32_t device, uintptr_t stream)
{
    struct acl_location host = {0, ACL_MEMORY_HOST}, own = {device, ACL_MEMORY_DEVICE};
    struct acl_batch_attributes attributes = {host, own, {0}};
    struct acl_progress progress = {ACL_UNSUPPORTED, SIZE_MAX};
    size_t start = 0; /* of the only attributes: they are those of all copies */

    if (kind == ACL_HOST_TO_DEVICE) {
        attributes.to = own;
        attributes.from = host;
    }
    if (acl->aclrtMemcpyBatchAsync != NULL) {
        progress.code = acl->aclrtMemcpyBatchAsync((void **)to, lengths, (void **)from, lengths, count, &attributes,
                                                   &start, 1, &progress.index, (void *)stream);
    } else if (acl->aclrtMemcpyBatchAsyncV2 != NULL) {
        progress.code = acl->aclrtMemcpyBatchAsyncV2((void **)to, lengths, (void **)from, lengths, count, &attributes,
                                                     &start, 1, (void *)stream);
    }
    return progress;
}
