/*
 * transfer_engine_c.h: the C interface of Mooncake's Transfer Engine, as kvferry implements it. Programs written against
 * Mooncake's header compile and link unchanged. What kvferry offers beyond it is in transfer_engine_ext.h.
 *
 * Results. Functions that submit, query or free transfers return a Status code, all others the same code negated:
 *   0 Ok, 1 InvalidArgument, 2 TooManyRequests, 3 AddressNotRegistered, 4 BatchBusy, 6 DeviceNotFound,
 *   7 AddressOverlapped, 8 NotSupportedTransport, 101 Dns, 102 Socket, 103 MalformedJson, 104 RejectHandshake,
 *   200 Metadata, 201 Endpoint, 202 Context, 300 Numa, 301 Clock, 302 Memory, 999 NotImplemented.
 * kvferry_last_error() of transfer_engine_ext.h says in words why the calling thread's latest failed call failed.
 *
 * Threads. Every function may be called from any number of threads at once, also while another one destroys the engine:
 * a NULL handle, one that was destroyed, and one that never was a handle give an error.
 * Strings and arrays passed in are not kept after the call, unless said otherwise.
 * Environment. The functions that make an engine or a metadata server copy the environment when they are called, and take
 * their settings from the copy. A call that fails without an engine, kvferry_log(), and the opening of a device's library
 * look single variables up. As for getenv(3), no other thread may change the environment meanwhile, by setenv, putenv or
 * unsetenv: the C library has no lock that both could take.
 * fork(). A child forked after the library was loaded gets an error from every call at once; see transfer_engine_ext.h.
 * Signals. The library's own threads block the program's signals, but for SIGCHLD and SIGPROF, which the Go runtime
 * keeps open. Go's stacks are too small for the program's handlers, so the calls of this library add SA_ONSTACK to them.
 * Programs should install their handlers with SA_ONSTACK.
 */
#ifndef TRANSFER_ENGINE_C
#define TRANSFER_ENGINE_C

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define segment_handle_t int32_t
#define segment_id_t int32_t
#define batch_id_t uint64_t

#define LOCAL_SEGMENT 0          /* the engine's own memory */
#define INVALID_BATCH UINT64_MAX /* no batch */

#define OPCODE_READ 0  /* from the segment into local memory */
#define OPCODE_WRITE 1 /* from local memory into the segment */

/* States of a task. This library reports WAITING, COMPLETED, TIMEOUT and FAILED; the others belong to the interface. */
#define STATUS_WAITING 0   /* not ended */
#define STATUS_PENDING 1
#define STATUS_INVALID 2
#define STATUS_CANCELED 3
#define STATUS_COMPLETED 4 /* all bytes are at their destination */
#define STATUS_TIMEOUT 5   /* given up after MC_SLICE_TIMEOUT; never without that variable */
#define STATUS_FAILED 6    /* failed, or given up */

/* An engine. Made by createTransferEngine, ended by destroyTransferEngine. */
typedef void *transfer_engine_t;

/* An installed transport. Belongs to its engine and ends with it. */
typedef void *transport_t;

/* One transfer: length bytes between local memory and a segment. */
struct transfer_request {
    int opcode;             /* OPCODE_READ or OPCODE_WRITE */
    void *source;           /* local address, whichever way the bytes go; need not be registered */
    segment_id_t target_id; /* from openSegment */
    uint64_t target_offset; /* address in the segment's owner, inside one buffer that it registered */
    uint64_t length;        /* bytes; 0 completes at once, and the addresses are not looked at */
};
typedef struct transfer_request transfer_request_t;

/* The state of a task. */
struct transfer_status {
    int status;                 /* one of STATUS_* */
    uint64_t transferred_bytes; /* the task's length once COMPLETED, else 0 */
};
typedef struct transfer_status transfer_status_t;

/* A short message from one engine to another, both strings NUL-terminated UTF-8. Other bytes arrive as U+FFFD. */
struct notify_msg {
    char *name;
    char *msg;
};
typedef struct notify_msg notify_msg_t;

/* One stretch of memory of this process. */
struct buffer_entry {
    void *addr;
    size_t length; /* bytes */
};
typedef struct buffer_entry buffer_entry_t;

/* Part of the interface; no function of it takes or returns one. */
struct segment_desc {
    int type;
    union {
        struct {
            void *addr;
            uint64_t size;
            const char *location;
        } rdma;
        struct {
            const char *file_path;
            const char *subsystem_name;
            const char *proto;
            const char *ip;
            uint64_t port;
        } nvmeof;
    } desc_;
};
typedef struct segment_desc segment_desc_t;

/* Load of one RDMA device. */
struct nic_load_stat {
    char device_name[64];
    uint64_t inflight_bytes;
    double ewma_bandwidth_bps;
};
typedef struct nic_load_stat nic_load_stat_t;

/*
 * Makes an engine, or returns NULL. metadata_conn_string is "P2PHANDSHAKE" or the connection string of a metadata
 * store; local_server_name is host, host:port, [v6] or [v6]:port, under which peers reach this process.
 * ip_or_host_name and rpc_port are ignored, but ip_or_host_name must not be NULL. auto_discover other than 0 installs
 * the best available transport; with 0 the caller installs one. The settings are those that the environment has now.
 */
transfer_engine_t createTransferEngine(const char *metadata_conn_string, const char *local_server_name,
                                       const char *ip_or_host_name, uint64_t rpc_port, int auto_discover);

/*
 * Aborts what is in flight, withdraws the metadata, ends every thread and connection, and returns within about a second
 * even when a peer is stuck, and within three when a metadata store does not answer. No memory registered with the engine
 * or used by its transfers is touched afterwards. There is one exception: a transfer may be stuck, in a system call that waits
 * for a page, or on a device, which may also not have ended a copy of a transfer that has failed. After some seconds the call
 * returns without it. The log and kvferry_last_error() name it and the memory that it may use; kvferry_destroy() also returns
 * a code. A handle that is NULL or already destroyed is ignored.
 */
void destroyTransferEngine(transfer_engine_t engine);

/* Looks for RDMA devices. With TCP there are none to find. */
int discoverTopology(transfer_engine_t engine);

/*
 * Writes where peers reach this engine: host:port, IPv6 in brackets. In P2P mode that is the name under which they open
 * it; with a central metadata store they open the local name. NUL-terminated and cut to buf_len without an error.
 */
int getLocalIpAndPort(transfer_engine_t engine, char *buf_out, size_t buf_len);

/*
 * Installs a transport: "tcp"; "rdma" gives TCP too and says so once in the log; "ascend" is TCP as well, and fails where
 * AscendCL, the library of the NPUs, is not found. NULL for any other. args is not needed and may be NULL. Installing one
 * again returns the same handle. Memory registered earlier is served by it too.
 */
transport_t installTransport(transfer_engine_t engine, const char *proto, void **args);

/* Accepted and without effect: a transport stays until the engine is destroyed. */
int uninstallTransport(transfer_engine_t engine, const char *proto);

/*
 * Opens the memory of the engine with that name. Returns an id of at least 0, the same for every open of the same name,
 * or a negated Status code. Leading slashes are ignored. The engine's own name gives LOCAL_SEGMENT; no other id is used
 * twice in a process, also not by another engine. May take as long as a peer takes to answer.
 */
segment_id_t openSegment(transfer_engine_t engine, const char *segment_name);

/*
 * As openSegment, but it fetches the descriptor of a segment that is already open again. When nobody answers, it returns
 * the id all the same, and transfers find out.
 */
segment_id_t openSegmentNoCache(transfer_engine_t engine, const char *segment_name);

/* Accepted and without effect: other callers that opened the same name have the same id. */
int closeSegment(transfer_engine_t engine, segment_id_t segment_id);

/* 0; there is no EFA here. */
int warmupEfaSegment(transfer_engine_t engine, const char *segment_name);

/* Forgets the peer of that name: its id is invalid from now on and the next open gives a new one. -1 for "". */
int removeLocalSegment(transfer_engine_t engine, const char *segment_name);

/*
 * Registers [addr, addr+length) for peers to read and write; with remote_accessible 0 no peer may. location names the
 * memory's place, as "cpu:0", "npu:1" or "cuda:1", or "*" for any. The memory stays the caller's and must stay mapped until
 * it is unregistered. It may be an NPU's or a GPU's, whatever the installed transport is: AscendCL and the CUDA driver are asked
 * by the address, and where that is not possible location is believed. The calling thread's current device and context
 * stay as they are.
 * -1 for NULL, length 0, a range that wraps, and one that is on a device in part; -6 when location names a device that is
 * not there, or whose library is not found; -7 when it overlaps a registered one, or one that was unregistered and is still
 * in use; -200 when the metadata store cannot be told.
 */
int registerLocalMemory(transfer_engine_t engine, void *addr, size_t length, const char *location,
                        int remote_accessible);

/*
 * Ends a registration by its base address. Transfers that use the memory get a period of grace, and are then given up. When
 * the call returns 0, no transfer writes to the memory any more, and no transfer sends bytes that are read from it later: a
 * kvferry engine on the same host may still read it for a moment, and discards what it has read. -3 when no registration
 * starts there. -4 when a transfer that is stuck, in a system
 * call or on a device, may still use the memory, or when a device may still read or write it, because it has not ended a copy
 * of a transfer that has failed: the registration has ended, the memory must be left as it is, and kvferry_last_error() says
 * who holds it. Another call waits for the transfer or the copy again, and returns 0 when it has ended.
 */
int unregisterLocalMemory(transfer_engine_t engine, void *addr);

/* Registers all of the ranges, remotely accessible, or none. An empty list is 0. */
int registerLocalMemoryBatch(transfer_engine_t engine, buffer_entry_t *buffer_list, size_t buffer_len,
                             const char *location);

/* Unregisters every range that it can. Returns the first error, or -4 if a range is still in use. */
int unregisterLocalMemoryBatch(transfer_engine_t engine, void **addr_list, size_t addr_len);

/*
 * Makes a batch for up to batch_size tasks. Returns its id, 1 to 2^63-1, never used twice in a process, or
 * INVALID_BATCH. The batch is freed by freeBatchID.
 */
batch_id_t allocateBatchID(transfer_engine_t engine, size_t batch_size);

/*
 * Adds count tasks to a batch and starts them. A Status code; when it is not 0 nothing was submitted. Task ids count
 * from 0 in the order of submission, on over several calls. entries may be freed on return; the memory the requests
 * name must stay until their tasks have ended. A bad target range fails its own task only.
 */
int submitTransfer(transfer_engine_t engine, batch_id_t batch_id, struct transfer_request *entries, size_t count);

/*
 * As submitTransfer, and sends a message to the first entry's target once everything submitted to the batch has
 * completed; not when something failed. It is delivered, or has failed, before the last task is seen COMPLETED. A
 * failed delivery is logged and fails no task. InvalidArgument for count 0, and for a message that is longer than
 * MC_HANDSHAKE_MAX_LENGTH allows.
 */
int submitTransferWithNotify(transfer_engine_t engine, batch_id_t batch_id, struct transfer_request *entries,
                             size_t count, notify_msg_t notify_msg);

/* Takes the received messages, oldest first, and stores how many in *size. NULL and 0 when there are none.
 * The caller frees them by freeNotifsMsgBuf. */
notify_msg_t *getNotifsFromEngine(transfer_engine_t engine, int *size);

/* Frees what getNotifsFromEngine returned. NULL with size 0 is allowed. */
int freeNotifsMsgBuf(notify_msg_t *msg, int size);

/* Sends one message to the owner of an open segment, now. -200 unknown id; -102 unreachable or refused. */
int genNotifyInEngine(transfer_engine_t engine, uint64_t target_id, notify_msg_t notify_msg);

/* Stores the state of a task. A Status code; *status is untouched on error. May be repeated until freeBatchID. */
int getTransferStatus(transfer_engine_t engine, batch_id_t batch_id, size_t task_id, struct transfer_status *status);

/* Frees a batch all of whose tasks have ended. BatchBusy before; the id stays valid then. */
int freeBatchID(transfer_engine_t engine, batch_id_t batch_id);

/* Fetches the descriptors of all open segments again. 0 also when a peer does not answer. */
int syncSegmentCache(transfer_engine_t engine);

/* Fills up to *count entries and stores how many there are in *count: 0 with TCP. -1 for NULL. */
int getNicLoadStats(transfer_engine_t engine, nic_load_stat_t *stats, size_t *count);

/*
 * From now on SIGTERM and SIGINT first withdraw the engine's metadata, in two seconds at most, and then do what they would
 * have done: run the handler that was installed before this call, or end the process. A signal that was ignored
 * stays ignored. A handler that is installed after this call replaces the library's.
 */
void enableGracefulShutdown(transfer_engine_t engine);

/*
 * Writes a table of local NICs, peers, connections, bytes and errors, printable or (json other than 0) as JSON,
 * NUL-terminated and cut to buf_len without an error. -1 for NULL or length 0.
 */
int showLinks(transfer_engine_t engine, char *buf_out, size_t buf_len, int json);

#ifdef __cplusplus
}
#endif

#endif
