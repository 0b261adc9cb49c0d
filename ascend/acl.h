/*
 * AscendCL as far as it is used here. Prototypes and numbers are those of CANN's public headers acl/acl_base_rt.h,
 * acl/acl_rt.h and acl/error_codes/rt_error_codes.h, of CANN 8 and 9, with int for their enumerations and void * for
 * their handles. Comments at the calls have further promises of a function, from its page in CANN's public API
 * reference.
 */
#ifndef KVFERRY_ACL_H
#define KVFERRY_ACL_H

#include <stddef.h>
#include <stdint.h>

/* Results of functions: success, and the errors that are handled here. */
enum {
    ACL_SUCCESS = 0,
    ACL_REPEATED_INITIALIZATION = 100002,
    ACL_NO_CONTEXT = 107002, /* no device was set on this thread */
    ACL_UNSUPPORTED = 207000,
    ACL_STREAM_TIMEOUT = 507046,
    ACL_EVENT_TIMEOUT = 507047,
};

/* aclrtMemMallocPolicy: huge pages where there are some. */
enum { ACL_HUGE_PAGES_FIRST = 0 };

/* aclrtMemcpyKind. */
enum { ACL_HOST_TO_DEVICE = 1, ACL_DEVICE_TO_HOST = 2, ACL_DEVICE_TO_DEVICE = 3 };

/* aclrtMemLocationType. */
enum {
    ACL_MEMORY_HOST = 0,         /* of the host, allocated by AscendCL or registered with it */
    ACL_MEMORY_DEVICE = 1,
    ACL_MEMORY_UNREGISTERED = 2, /* any other memory of the host */
    ACL_MEMORY_MANAGED = 3,      /* moves between both by itself; both can access it */
    ACL_MEMORY_HOST_NUMA = 4,    /* of the host, allocated on a NUMA node by AscendCL */
};

/* aclrtMemLocation */
struct acl_location {
    uint32_t id; /* the device, where it is a device's */
    int type;
};

/* aclrtPtrAttributes */
struct acl_attributes {
    struct acl_location location;
    uint32_t page_size;
    uint32_t reserved[4];
};

/* aclrtMemcpyBatchAttr; reserved must be 0. */
struct acl_batch_attributes {
    struct acl_location to, from;
    uint8_t reserved[16];
};

/*
 * The functions. Optional ones came with later releases, or not all devices have them. Timeouts are in milliseconds:
 * -1 is none, and some releases refuse 0.
 */
#define ACL_FUNCTIONS(REQUIRED, OPTIONAL)                                                                              \
    REQUIRED(int, aclInit, (const char *configuration))                                                               \
    REQUIRED(const char *, aclGetRecentErrMsg, (void))                                                                \
    REQUIRED(int, aclrtGetDeviceCount, (uint32_t * count))                                                            \
    REQUIRED(int, aclrtSetDevice, (int32_t device))                                                                   \
    REQUIRED(int, aclrtResetDevice, (int32_t device))                                                                 \
    REQUIRED(int, aclrtMalloc, (void **out, size_t length, int policy))                                               \
    REQUIRED(int, aclrtFree, (void *memory))                                                                          \
    REQUIRED(int, aclrtMallocHost, (void **out, size_t length))                                                       \
    REQUIRED(int, aclrtFreeHost, (void *memory))                                                                      \
    OPTIONAL(int, aclrtPointerGetAttributes, (const void *pointer, struct acl_attributes *out))                       \
    REQUIRED(int, aclrtCreateStream, (void **out))                                                                    \
    REQUIRED(int, aclrtDestroyStream, (void *stream))                                                                 \
    REQUIRED(int, aclrtSynchronizeStreamWithTimeout, (void *stream, int32_t timeout))                                 \
    REQUIRED(int, aclrtMemcpyAsync,                                                                                   \
             (void *to, size_t room, const void *from, size_t length, int kind, void *stream))                        \
    OPTIONAL(int, aclrtDeviceCanAccessPeer, (int32_t * out, int32_t device, int32_t peer))                            \
    OPTIONAL(int, aclrtDeviceEnablePeerAccess, (int32_t peer, uint32_t flags))                                        \
    OPTIONAL(int, aclrtMemcpyBatchAsync,                                                                              \
             (void **to, size_t *rooms, void **from, size_t *lengths, size_t count,                                   \
              struct acl_batch_attributes *attributes, size_t *attribute_starts, size_t attribute_count,              \
              size_t *failed, void *stream))                                                                          \
    OPTIONAL(int, aclrtMemcpy2dAsync,                                                                                 \
             (void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind,  \
              void *stream))                                                                                          \
    OPTIONAL(int, aclrtMemcpyBatchAsyncV2,                                                                            \
             (void **to, size_t *rooms, void **from, size_t *lengths, size_t count,                                   \
              struct acl_batch_attributes *attributes, size_t *attribute_starts, size_t attribute_count,              \
              void *stream))                                                                                          \
    REQUIRED(int, aclrtCreateEvent, (void **out))                                                                     \
    REQUIRED(int, aclrtDestroyEvent, (void *event))                                                                   \
    REQUIRED(int, aclrtRecordEvent, (void *event, void *stream))                                                      \
    OPTIONAL(int, aclrtSynchronizeEventWithTimeout, (void *event, int32_t timeout))                                    \
    OPTIONAL(int, aclrtEventElapsedTime, (float *milliseconds, void *from, void *to))

/* One library's functions. An optional one that it lacks is NULL. */
struct acl {
#define ACL_MEMBER(type, name, parameters) type(*name) parameters;
    ACL_FUNCTIONS(ACL_MEMBER, ACL_MEMBER)
#undef ACL_MEMBER
};

/* Where a function's address belongs in struct acl. */
struct acl_symbol {
    const char *name;
    size_t offset;
    int optional;
};

/* An array of them; the last one has no name. */
extern const struct acl_symbol *const kvferry_acl_symbols;

/* One copy: the layout of device.Copy. */
struct acl_copy {
    uintptr_t to, from;
    uint64_t length; /* bytes */
};

/* Rows of a matrix: the layout of device.Rows. */
struct acl_rows {
    uintptr_t to, from;
    uint64_t to_pitch, from_pitch, length /* bytes */, count;
};

/* The result of a call, and where it succeeded the address or handle that it returned. */
struct acl_result {
    int code;
    uintptr_t value;
};

/* The result of asking for the time between two events. */
struct acl_elapsed {
    int code;
    float milliseconds;
};

/* The result of a list of copies: an error is about the copy with that index. */
struct acl_progress {
    int code;
    size_t index;
};

/*
 * The functions, as Go can call them. Device addresses and handles are integers, so that Go does not take them for its
 * own pointers. Thread rules are AscendCL's.
 */
int kvferry_acl_init(const struct acl *acl);
const char *kvferry_acl_message(const struct acl *acl);
struct acl_result kvferry_acl_count(const struct acl *acl);
int kvferry_acl_set_device(const struct acl *acl, int32_t device);
int kvferry_acl_reset_device(const struct acl *acl, int32_t device);
struct acl_result kvferry_acl_malloc(const struct acl *acl, size_t length);
int kvferry_acl_free(const struct acl *acl, uintptr_t memory);
struct acl_result kvferry_acl_malloc_host(const struct acl *acl, size_t length);
int kvferry_acl_free_host(const struct acl *acl, uintptr_t memory);
int kvferry_acl_attributes(const struct acl *acl, uintptr_t pointer, struct acl_attributes *out);
struct acl_result kvferry_acl_create_stream(const struct acl *acl);
int kvferry_acl_destroy_stream(const struct acl *acl, uintptr_t stream);
int kvferry_acl_synchronize_stream(const struct acl *acl, uintptr_t stream, int32_t timeout);
struct acl_result kvferry_acl_create_event(const struct acl *acl);
int kvferry_acl_destroy_event(const struct acl *acl, uintptr_t event);
int kvferry_acl_record_event(const struct acl *acl, uintptr_t event, uintptr_t stream);
int kvferry_acl_synchronize_event(const struct acl *acl, uintptr_t event, int32_t timeout);

/* Both events have happened, and were recorded in the same stream. ACL_UNSUPPORTED where the library cannot say. */
struct acl_elapsed kvferry_acl_elapsed(const struct acl *acl, uintptr_t from, uintptr_t to);

/* Queues the copies one by one, up to the first that fails. */
struct acl_progress kvferry_acl_copy(const struct acl *acl, int kind, const struct acl_copy *copies, size_t count,
                                     uintptr_t stream);

/* Whether there are the functions for peers. The others of them are called only then. */
int kvferry_acl_has_peers(const struct acl *acl);

/* Whether a device can access the memory of another: 0 or 1. */
struct acl_result kvferry_acl_can_access(const struct acl *acl, int32_t device, int32_t peer);

/* Opens the memory of another device to the current one. */
int kvferry_acl_enable_peer(const struct acl *acl, int32_t peer);

/* Queues the copies of all rows: ACL_UNSUPPORTED where the library has no such call. */
int kvferry_acl_copy_rows(const struct acl *acl, int kind, const struct acl_rows *rows, uintptr_t stream);

/*
 * Queues count copies, at least one, in one call: ACL_UNSUPPORTED where the library has no such call. index is SIZE_MAX
 * where the error is about none of them, or AscendCL does not say.
 */
struct acl_progress kvferry_acl_copy_batch(const struct acl *acl, int kind, uintptr_t *to, uintptr_t *from,
                                           size_t *lengths, size_t count, uint32_t device, uintptr_t stream);

#endif
