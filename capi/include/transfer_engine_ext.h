/*
 * transfer_engine_ext.h: what kvferry offers beyond Mooncake's C interface. Every name starts with kvferry_ or KVFERRY_.
 *
 * Threads. Every function may be called from any number of threads at once.
 * Errors. A function that fails leaves a sentence that says who, what and why; kvferry_last_error() returns the
 * calling thread's latest. Functions of transfer_engine_c.h leave one too. They also log it at ERROR, since most of their
 * callers do not know this header, unless the engine was made by kvferry_start_engine.
 * fork(). A child forked after the library was loaded must not use it: there every function of both headers returns its
 * error value at once (KVFERRY_ERR_FORKED where it returns a code of this header) and kvferry_last_error() says why.
 * The parent is not affected. A child that needs an engine loads a private copy of the library file, as the Python
 * package does.
 */
#ifndef KVFERRY_TRANSFER_ENGINE_EXT_H
#define KVFERRY_TRANSFER_ENGINE_EXT_H

#include "transfer_engine_c.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Results of the functions below that return int: 0, a Status code of transfer_engine_c.h negated, or one of these. */
#define KVFERRY_OK 0
#define KVFERRY_ERR_IN_USE (-4)         /* BatchBusy: a transfer that is stuck, in a system call or on a device, may
                                           still use memory; kvferry_last_error() names both */
#define KVFERRY_ERR_FAILED (-1000)      /* at least one task of the batch failed; kvferry_batch_error() says why */
#define KVFERRY_ERR_TIMED_OUT (-1001)   /* the time was over before the batch was */
#define KVFERRY_ERR_INTERRUPTED (-1002) /* a signal handler ran on this thread while it waited */
#define KVFERRY_ERR_FORKED (-1003)      /* this process was forked after the library was loaded */

/* Why the calling thread's latest failed call failed; "" when none did. Never NULL. Valid until the thread's next call. */
const char *kvferry_last_error(void);

/* Version of the library, as "0.1.0". Static; works in a forked child too. */
const char *kvferry_version(void);

/* Levels of log lines: those of MC_LOG_LEVEL. */
#define KVFERRY_LOG_TRACE 0
#define KVFERRY_LOG_INFO 1
#define KVFERRY_LOG_WARNING 2
#define KVFERRY_LOG_ERROR 3

/*
 * Writes a line of the program into the library's log, in the format of the library's own lines. MC_LOG_LEVEL and MC_LOG_DIR
 * say, as they are now, whether and where it is written. text is UTF-8 and is not kept; control characters in it become
 * spaces. No engine is needed. The call does not wait: a line that cannot be written is dropped, and a later line says how
 * many were dropped. 0, or a negated Status code.
 */
int kvferry_log(int level, const char *text);

/*
 * destroyTransferEngine with a result: 0, or a negated Status code. The engine has ended in any case. KVFERRY_ERR_IN_USE when
 * a transfer is stuck, or a device has not ended a copy of one that has failed: the memory that the reason names must be left as
 * it is for as long as the process lives.
 */
int kvferry_destroy(transfer_engine_t engine);

/* The engine's handshake port, 1 to 65535, or a negated Status code. */
int kvferry_rpc_port(transfer_engine_t engine);

/* Default time-out of blocking callers, milliseconds: MC_TRANSFER_TIMEOUT as it was when the engine was created. */
int64_t kvferry_transfer_timeout_ms(transfer_engine_t engine);

/* What peers may do with registered memory: flags of kvferry_register, joined by |. */
#define KVFERRY_ACCESS_NONE 0
#define KVFERRY_ACCESS_REMOTE_READ 1
#define KVFERRY_ACCESS_REMOTE_WRITE 2

/*
 * Registers all of the ranges, count of them, or none, for peers to do with them what access says. They are unregistered
 * by unregisterLocalMemory. registerLocalMemory says what else holds for location and for the memory, and which codes there
 * are. The ranges are not kept; count 0 is 0. -1 also for a flag that does not exist.
 *
 * access binds the transfers of peers, and those of this engine to its own segment. It does not bind the local memory of
 * this engine's transfers. A transfer that it does not allow fails, and writes nothing into the registered memory. Peers do
 * not see memory of KVFERRY_ACCESS_NONE. The access of registered memory cannot be changed: unregister it, which ends the
 * transfers of it, and register it again.
 */
int kvferry_register(transfer_engine_t engine, const buffer_entry_t *ranges, size_t count, const char *location,
                     int access);

/* unregisterLocalMemory, without a line in the log. */
int kvferry_unregister(transfer_engine_t engine, void *addr);

/*
 * What an engine has done since it was made, and does now. As the initiator it reads and writes the memory of peers; as the
 * target it serves theirs. Requests and their bytes are counted when their batch ends, before a wait for it returns.
 */
typedef struct kvferry_stats {
    uint64_t read_requests;         /* initiator: requests that have completed */
    uint64_t write_requests;
    uint64_t read_bytes;            /* their payload */
    uint64_t write_bytes;
    uint64_t failed_requests;       /* initiator: requests that have failed */
    uint64_t batches;               /* initiator: batches that have ended, failed ones included */
    uint64_t failed_batches;        /* those in which a request failed */
    uint64_t batch_nanoseconds;     /* sum of the times from the submission of a batch to its end */
    uint64_t requests_in_flight;    /* initiator, now: requests that have not ended */
    uint64_t bytes_in_flight;       /* their bytes that have not arrived */
    uint64_t served_read_requests;  /* target: requests of the hosts that are remembered, 256 or more. READs of a process on
                                       the same host are not seen */
    uint64_t served_write_requests;
    uint64_t served_read_bytes;
    uint64_t served_write_bytes;
    uint64_t sessions;              /* target, now: data connections of peers */
    uint64_t refused_connections;   /* of peers, at either port: no place, not accepted, or not allowed */
    uint64_t dropped_log_lines;     /* of the process: lines of the library's log that could not be written */
} kvferry_stats_t;

/*
 * Fills *stats. size is sizeof(kvferry_stats_t): a later library may know more members, and leaves out what does not fit; an
 * earlier one sets to 0 what it does not know. Takes microseconds. 0, or a negated Status code.
 */
int kvferry_stats(transfer_engine_t engine, kvferry_stats_t *stats, size_t size);

/*
 * All that an engine knows of itself, by peer and by reason too, as a JSON object in UTF-8; docs/operations.md describes it.
 * Writes the text to buf_out, NUL-terminated and cut to buf_len, and returns its length without the NUL: if that is buf_len or
 * more, the text was cut, and a further call needs more room; the text may have grown meanwhile. buf_out may be NULL with buf_len
 * 0. A negated Status code on failure. Takes some hundred microseconds.
 */
int64_t kvferry_stats_json(transfer_engine_t engine, char *buf_out, size_t buf_len);

/*
 * Describes the settings that an engine made now would have, as a JSON object. "settings" has one object for each variable of
 * docs/configuration.md: "name", "value" (asterisks for a secret), "default", "source" ("environment" or "default") and "problem"
 * (why the value in the environment is not in effect, or ""). "unknown" has the variables that look like settings and are none:
 * "name", "nearest" (the setting that was probably meant, or "") and "own" (the name begins with KVFERRY_, and not with MC_). The
 * result and the text are as for kvferry_stats_json. createTransferEngine says when other threads may not change the environment.
 */
int64_t kvferry_settings_json(char *buf_out, size_t buf_len);

/*
 * Allocates a batch and submits count requests of one kind to one segment: request i moves lengths[i] bytes between
 * local[i], an address of this process, and remote[i], an address of the segment's owner. The arrays are not kept.
 * notify may be NULL; else the message is delivered to the segment's owner after all completed, as
 * submitTransferWithNotify does. Stores the batch id and returns 0; on failure nothing was submitted, no batch exists
 * and *batch_out is INVALID_BATCH. The batch belongs to the caller until freeBatchID or kvferry_batch_discard.
 */
int kvferry_submit(transfer_engine_t engine, int opcode, segment_id_t target, const uint64_t *local,
                   const uint64_t *remote, const uint64_t *lengths, size_t count, const notify_msg_t *notify,
                   batch_id_t *batch_out);

/*
 * Waits until every task of the batch has ended, using no CPU. timeout_ms < 0 waits without a limit, 0 does not wait.
 * 0 when all completed, KVFERRY_ERR_FAILED when all ended and some failed, KVFERRY_ERR_TIMED_OUT,
 * KVFERRY_ERR_INTERRUPTED (call again to go on waiting). The batch stays the caller's in every case.
 */
int kvferry_batch_wait(transfer_engine_t engine, batch_id_t batch, int64_t timeout_ms);

/*
 * Waits until every task of count batches has ended, or one batch has ended with a failed task, using no CPU. timeout_ms
 * as for kvferry_batch_wait. 0 when all completed (so also for count 0), KVFERRY_ERR_FAILED as soon as one has failed,
 * KVFERRY_ERR_TIMED_OUT, KVFERRY_ERR_INTERRUPTED, or a negated Status code when one of the ids is unknown. The batches
 * stay the caller's in every case.
 */
int kvferry_batches_wait(transfer_engine_t engine, const batch_id_t *batches, size_t count, int64_t timeout_ms);

/* kvferry_submit, kvferry_batch_wait and, when the batch has ended, freeBatchID in one call. On
 * KVFERRY_ERR_TIMED_OUT and KVFERRY_ERR_INTERRUPTED the batch still runs and *batch_out is its id, which the caller
 * waits for again or discards. Otherwise *batch_out is INVALID_BATCH. */
int kvferry_transfer_sync(transfer_engine_t engine, int opcode, segment_id_t target, const uint64_t *local,
                          const uint64_t *remote, const uint64_t *lengths, size_t count, const notify_msg_t *notify,
                          int64_t timeout_ms, batch_id_t *batch_out);

/*
 * kvferry_submit of pages of several pools: the requests are made from page numbers, none is listed. local_pages[i] and
 * remote_pages[i], for i < page_count, are page numbers. rows has row_count rows of five numbers, a row after the other:
 *
 *   local base, local stride, remote base, remote stride, length
 *
 * For each row, and each i, length bytes move between local base + local_pages[i] * local stride, an address of this process,
 * and remote base + remote_pages[i] * remote stride, an address of the segment's owner: row_count * page_count requests, at
 * most 2^31-1. A length is at least 1, a stride at most 2^63-1, both in bytes; no page may wrap around the address space.
 * max_batch is the most requests that the engine submits at a time; 0 submits all at once. The engine submits the next ones
 * when these have completed. It submits no more when a request has failed, or the batch is given up. The arrays are not kept.
 * Otherwise as kvferry_submit: a batch id in *batch_out and 0; on failure a negated Status code, and no batch. Without any
 * requests there is a batch that has completed.
 */
int kvferry_submit_pages(transfer_engine_t engine, int opcode, segment_id_t target, const uint64_t *local_pages,
                         const uint64_t *remote_pages, size_t page_count, const uint64_t *rows, size_t row_count,
                         size_t max_batch, batch_id_t *batch_out);

/* kvferry_transfer_sync of the requests that kvferry_submit_pages makes. */
int kvferry_transfer_pages(transfer_engine_t engine, int opcode, segment_id_t target, const uint64_t *local_pages,
                           const uint64_t *remote_pages, size_t page_count, const uint64_t *rows, size_t row_count,
                           size_t max_batch, int64_t timeout_ms, batch_id_t *batch_out);

/*
 * Allocates a batch and submits requests of one kind for blocks of regions, to the segment of that name. regions has
 * region_count rows of five numbers, a row after the other:
 *
 *   local base, local capacity, remote base, remote capacity, number of blocks
 *
 * Block i, of count blocks, which are listed region by region, moves lengths[i] bytes between local base + local_offsets[i],
 * an address of this process, and remote base + remote_offsets[i], an address of the segment's owner, all in bytes. A
 * segment that is not open is opened by the engine after the call has returned: where that fails, or its owner does not
 * answer, the batch fails. Until it is open, its tasks cannot be asked for one by one. The arrays are not kept.
 * Stores the batch id and returns 0; on failure a negated Status code, nothing was submitted, no batch exists and *batch_out
 * is INVALID_BATCH: so for a block that lies outside a capacity on either side, or belongs to no region.
 */
int kvferry_submit_scatter(transfer_engine_t engine, int opcode, const char *segment_name, const uint64_t *regions,
                           size_t region_count, const uint64_t *local_offsets, const uint64_t *remote_offsets,
                           const uint64_t *lengths, size_t count, batch_id_t *batch_out);

/*
 * Moves bytes as kvferry_submit says, in the order of a stream of the application: after what is queued in the stream by
 * now, and before what is queued in it later. Returns at once. kind is whose stream it is, "cuda", and stream a CUstream
 * (cudaStream_t), or NULL for the default stream of the calling thread's current context. The arrays are not kept; the
 * memory that they name is in use until the stream has come past the transfer. The transfer is given up after
 * kvferry_transfer_timeout_ms() and a second for each GiB. The stream goes on, also when the transfer fails. A failure is
 * logged, and the engine's next call of this function returns it and queues nothing.
 * 0, or a negated Status code; 0 and nothing queued for count 0. A stream that is being captured into a graph is refused.
 */
int kvferry_transfer_on_stream(transfer_engine_t engine, const char *kind, void *stream, int opcode, segment_id_t target,
                               const uint64_t *local, const uint64_t *remote, const uint64_t *lengths, size_t count);

/* What has to move between layouts, see kvferry_plan_make. */
typedef void *kvferry_plan_t;

/* What kvferry_start starts. Members that are not needed are 0. */
typedef struct kvferry_transfer {
    const char *segment;     /* name of the segment */
    int opcode;
    const uint64_t *local;   /* ranges, count of them, as for kvferry_submit */
    const uint64_t *remote;
    const uint64_t *lengths;
    size_t count;
    kvferry_plan_t plan;     /* or a plan, and the index of one of its transfers, as for kvferry_submit_plan */
    size_t plan_index;
    const char *notify_name; /* a message that the segment's owner gets when all requests have completed; both or neither */
    const char *notify_text;
    int64_t timeout_ms;      /* the batch is given up when it has not ended by then; 0 is without a limit */
    const char *stream_kind; /* a stream that orders the transfer, as for kvferry_transfer_on_stream; NULL for none */
    void *stream;
    int announce;            /* 1: kvferry_completions_next returns the batch when it has ended */
    const char *traceparent; /* the program's span that the transfer belongs to, by W3C's Trace Context, for KVFERRY_TRACE_FILE;
                                NULL for none */
} kvferry_transfer_t;

/*
 * Allocates a batch and starts a transfer in it. size is sizeof(kvferry_transfer_t). Nothing of the struct is kept. Returns at
 * once: a segment that is not open is opened in the background, and where that fails, so does the batch. Without ranges and
 * without a plan the batch ends when the segment is open; with a message it ends when the segment's owner has accepted the
 * message, and fails if the owner does not.
 * With a stream, the bytes move when the stream has come to the transfer, and the stream waits until the batch has ended. Then
 * timeout_ms counts from there, and 0 is kvferry_transfer_timeout_ms() and a second for each GiB. A batch that is given up
 * before that moves nothing. kvferry_batch_failure says how it failed; no later call of kvferry_transfer_on_stream does.
 * Otherwise as kvferry_submit: a batch id in *batch_out and 0; on failure a negated Status code, and no batch.
 */
int kvferry_start(transfer_engine_t engine, const kvferry_transfer_t *transfer, size_t size, batch_id_t *batch_out);

/* How many batches of an engine may have asked to be announced, and not be taken by kvferry_completions_next. */
#define KVFERRY_COMPLETIONS_MAX 1048576

/*
 * A descriptor for poll(2), select(2) and epoll(7) that is readable as long as kvferry_completions_next has something to
 * return, and for ever once the engine was destroyed. It is not to be read from. It is the caller's, who closes it, at any
 * time. Each call returns another one, close-on-exec. From the first call on messages are announced, too. A negated Status
 * code on failure.
 */
int kvferry_completions_fd(transfer_engine_t engine);

/*
 * Takes the ids of announced batches that have ended, oldest first, and at most capacity of them. INVALID_BATCH stands for
 * messages that have arrived, which getNotifsFromEngine returns. Each is returned once, to one of the threads that call this.
 * Does not wait. The number of ids, 0 for none, or a negated Status code. The batches stay the caller's. An id may be that of a
 * batch that was freed meanwhile.
 */
int64_t kvferry_completions_next(transfer_engine_t engine, batch_id_t *batches_out, size_t capacity);

/* How far a batch has come. */
typedef struct kvferry_progress {
    uint64_t moved;       /* bytes that are known to have arrived, of tasks that have not failed */
    uint64_t total;       /* bytes of all tasks that were submitted so far */
    uint64_t nanoseconds; /* from the first submission until now, or until the last task ended; 0 without tasks */
} kvferry_progress_t;

/* Fills *progress; takes some nanoseconds for each task. 0, or a negated Status code. */
int kvferry_batch_progress(transfer_engine_t engine, batch_id_t batch, kvferry_progress_t *progress);

/* Why a batch has failed. */
#define KVFERRY_REASON_NONE 0         /* no task has failed */
#define KVFERRY_REASON_REJECTED 1     /* the peer has no such memory registered, or does not allow this */
#define KVFERRY_REASON_CONNECTION 2   /* the connection was lost, or there is none */
#define KVFERRY_REASON_STALLED 3      /* nothing moved for MC_TCP_PROGRESS_TIMEOUT_SEC, or no answer came */
#define KVFERRY_REASON_PEER 4         /* the peer said that it could not move the bytes */
#define KVFERRY_REASON_LOCAL_MEMORY 5 /* the request is impossible, or local memory cannot be accessed */
#define KVFERRY_REASON_SECURITY 6     /* one side refused the other */
#define KVFERRY_REASON_METADATA 7     /* the peer's descriptor or address could not be had */
#define KVFERRY_REASON_TIMEOUT 8      /* given up after timeout_ms of kvferry_start, or after MC_SLICE_TIMEOUT */
#define KVFERRY_REASON_CANCELLED 9    /* given up by the caller */
#define KVFERRY_REASON_CLOSED 10      /* the engine was destroyed */
#define KVFERRY_REASON_OTHER 11
#define KVFERRY_REASON_REVOKED 12     /* the peer has revoked its offer, or the time of the offer is over */

/* The first failure of a batch, and how far the batch has come. */
typedef struct kvferry_failure {
    int reason;       /* KVFERRY_REASON_ */
    int opcode;       /* of the request that failed, as the next four members */
    uint64_t request; /* its index in the batch; UINT64_MAX where the batch failed as a whole, and the next three are 0 */
    uint64_t local;
    uint64_t remote;
    uint64_t length;
    kvferry_progress_t progress;
} kvferry_failure_t;

/*
 * Fills *failure, and writes the reason to buf_out as a NUL-terminated text cut to buf_len, without the description of the
 * request that kvferry_batch_error has. buf_out may be NULL. size is sizeof(kvferry_failure_t). Takes a nanosecond for each task.
 * 0, also when no task has failed, or a negated Status code.
 */
int kvferry_batch_failure(transfer_engine_t engine, batch_id_t batch, kvferry_failure_t *failure, size_t size, char *buf_out,
                          size_t buf_len);

/* How the bytes of a batch have gone. */
#define KVFERRY_PATH_TCP 1
#define KVFERRY_PATH_HOST 2  /* copied from the memory of another process on the same host */
#define KVFERRY_PATH_LOCAL 4 /* copied within the process */

/* What a program's own traces say of a batch. */
typedef struct kvferry_outcome {
    uint64_t began;    /* when it was started, in nanoseconds since 1970; 0 before anything was submitted */
    uint64_t ended;    /* 0 while it is under way */
    uint64_t requests; /* a transfer of a plan between memory of hosts is one */
    int paths;         /* KVFERRY_PATH_, or'ed, of the bytes that have arrived */
    char trace[64];    /* names the batch in KVFERRY_TRACE_FILE, as trace_id; "" where nothing is recorded */
    char address[128]; /* of the last data connection to the peer: host:port, or a Unix socket with @; "" before one was up */
} kvferry_outcome_t;

/* Fills *outcome. size is sizeof(kvferry_outcome_t). 0, or a negated Status code. */
int kvferry_batch_outcome(transfer_engine_t engine, batch_id_t batch, kvferry_outcome_t *outcome, size_t size);

/* How many tasks of a batch are in which state, all counted in one call. */
typedef struct kvferry_batch_status {
    uint64_t tasks;     /* submitted, and still to be submitted */
    uint64_t completed;
    uint64_t failed;    /* STATUS_FAILED and STATUS_TIMEOUT, and requests that will not be submitted any more */
    uint64_t timed_out; /* STATUS_TIMEOUT alone */
    uint64_t bytes;     /* sum of the completed tasks' lengths */
} kvferry_batch_status_t;

/* Fills *status; 0 or a negated Status code. */
int kvferry_batch_status(transfer_engine_t engine, batch_id_t batch, kvferry_batch_status_t *status);

/*
 * The reason of the first task of the batch that failed, as a NUL-terminated sentence cut to buf_len; "" when none
 * did. 0 or a negated Status code.
 */
int kvferry_batch_error(transfer_engine_t engine, batch_id_t batch, char *buf_out, size_t buf_len);

/* The bytes that all requests submitted to the batch so far are to move; 0 for an unknown batch. */
uint64_t kvferry_batch_bytes(transfer_engine_t engine, batch_id_t batch);

/*
 * Gives up the unfinished tasks of a batch, and does not wait. The batch stays the caller's; kvferry_batch_wait returns
 * KVFERRY_ERR_FAILED once nothing touches its memory any more, or 0 where all had completed. 0, or a negated Status code for
 * an unknown batch.
 */
int kvferry_batch_cancel(transfer_engine_t engine, batch_id_t batch);

/*
 * Ends and frees a batch in any state: its unfinished tasks are given up, and none of their memory, in either direction, is
 * touched after the call has returned. Takes milliseconds, also with a peer that does not answer. KVFERRY_ERR_IN_USE when a
 * transfer is stuck for seconds: the batch is given up, and is freed when the transfer has ended, but its memory may be used
 * until then. A batch that has failed is freed at once, also where a device has not ended a copy of it: its error says so, and
 * unregisterLocalMemory returns KVFERRY_ERR_IN_USE until the copy has ended.
 */
int kvferry_batch_discard(transfer_engine_t engine, batch_id_t batch);

/*
 * openSegment with a time limit. timeout_ms < 0 waits until the attempt has ended. KVFERRY_ERR_TIMED_OUT when the time is
 * over before that, KVFERRY_ERR_INTERRUPTED when a signal handler ran on this thread while it waited: another call goes on
 * waiting for the same attempt.
 */
segment_id_t kvferry_open_segment(transfer_engine_t engine, const char *segment_name, int64_t timeout_ms);

/* Asks the owner of a segment name whether it is alive: 0; -102 refused or unreachable; -200 unknown name. */
int kvferry_probe(transfer_engine_t engine, const char *segment_name);

/*
 * The base address of a segment's first buffer in the order of registration; 0 if it has none or is unknown. A cached
 * descriptor without buffers is fetched again. The engine's own name works.
 */
uint64_t kvferry_first_buffer(transfer_engine_t engine, const char *segment_name);

/*
 * Calls that may wait for a peer or a metadata store, in a form that the caller can interrupt and limit in time. A
 * kvferry_start_ function starts one and returns its handle, NULL on failure; it takes microseconds and keeps no argument.
 * The call belongs to the caller until kvferry_call_wait has reported its end, or kvferry_call_abandon has returned.
 */
typedef void *kvferry_call_t;

/* createTransferEngine and installTransport in one; transport "" installs TCP. The result is the engine. */
kvferry_call_t kvferry_start_engine(const char *metadata_conn_string, const char *local_server_name, const char *transport);

/*
 * kvferry_start_engine with settings of this engine alone, which take precedence over the environment: length bytes, a
 * NAME=VALUE and a NUL after the other. NULL and a reason for a name that is no setting, and for a value that is not valid.
 */
kvferry_call_t kvferry_start_engine_with(const char *metadata_conn_string, const char *local_server_name, const char *transport,
                                         const char *settings, size_t length);

/* kvferry_first_buffer. The result is the address. */
kvferry_call_t kvferry_start_first_buffer(transfer_engine_t engine, const char *segment_name);

/* kvferry_probe. The result is 0. */
kvferry_call_t kvferry_start_probe(transfer_engine_t engine, const char *segment_name);

/*
 * What engines and metadata stores say of themselves, as JSON. The result of these calls is a text, of which kvferry_text copies
 * the bytes. It belongs to the caller until kvferry_text_free.
 */
typedef void *kvferry_text_t;

/* The descriptor of a segment as it is now, with its buffers: an object. The segment is opened. */
kvferry_call_t kvferry_start_describe(transfer_engine_t engine, const char *segment_name);

/*
 * The engines that a metadata store knows, or the one of that name where name is not NULL or "": an array. Each engine is asked
 * whether it lives, many at once; those that have not answered after timeout_ms count as unclear. timeout_ms < 0 is no limit but
 * that of each request. No engine is made. With P2PHANDSHAKE a name is needed. The environment has the settings, as for an engine.
 */
kvferry_call_t kvferry_start_members(const char *metadata_conn_string, const char *name, int64_t timeout_ms);

/*
 * Removes what a metadata store has of an engine that has ended without doing so itself. It fails where an engine of that name
 * answers, or may live, unless force is not 0. The result is 0.
 */
kvferry_call_t kvferry_start_forget(const char *metadata_conn_string, const char *name, int force);

/*
 * Copies a text, which has no NUL in it, as kvferry_stats_json does: it returns the length, and writes as much as fits and a NUL to
 * buf_out, which may be NULL with buf_len 0. A negated Status code for a handle that has ended.
 */
int64_t kvferry_text(kvferry_text_t text, char *buf_out, size_t buf_len);

/* Ends the handle of a text. 0, or a negated Status code for one that has ended. */
int kvferry_text_free(kvferry_text_t text);

/*
 * Waits until a call has ended, using no CPU. timeout_ms < 0 waits without a limit, 0 does not wait. 0 and the call's
 * result in *result_out, or the code that the call failed with: the handle has ended. KVFERRY_ERR_TIMED_OUT, or
 * KVFERRY_ERR_INTERRUPTED when a signal handler ran on this thread while it waited: the call goes on, and can be waited for
 * again. One thread at a time waits for a call.
 */
int kvferry_call_wait(kvferry_call_t call, int64_t timeout_ms, uint64_t *result_out);

/*
 * Gives up a call; returns at once. The call goes on in the background until its own time-out, and an engine that it makes is
 * destroyed. A kvferry_call_wait that another thread is in returns an error. 0, or a negated Status code for a handle that has
 * ended.
 */
int kvferry_call_abandon(kvferry_call_t call);

/*
 * Where a metadata server listens and what it keeps. A struct of zeros has the defaults, which the comments name; NULL and ""
 * are the same. The struct and its strings are not kept after the call.
 */
typedef struct kvferry_metadata_server_options {
    const char *host;         /* address or name to listen at; every address */
    const char *path;         /* of the requests for metadata; /metadata */
    const char *snapshot;     /* file that entries are kept in; none: in memory only */
    const char *token;        /* bearer token of requests for metadata; none */
    const char *tls_cert;     /* PEM files for HTTPS, both or neither; HTTP */
    const char *tls_key;
    uint64_t max_keys;        /* entries; 100000 */
    uint64_t max_value;       /* bytes of one value; 1 MiB */
    uint64_t max_bytes;       /* bytes of all keys and values together; 1 GiB */
    uint64_t max_connections; /* open at once, half of RLIMIT_NOFILE at most; 1024 */
    int port;                 /* any free port */
} kvferry_metadata_server_options_t;

/* Handle of a metadata server. */
typedef void *kvferry_metadata_server_t;

/*
 * Starts an HTTP metadata server, by which the engines of a cluster find each other, with Mooncake's requests and answers.
 * It answers requests when the call returns. Writes the connection string for engines on other machines, NUL-terminated and
 * cut to buf_len, to buf_out. NULL on failure: invalid options, a port that is in use, a snapshot that cannot be written, or
 * one that cannot be read, which is left as it is. The server belongs to the caller until kvferry_metadata_server_stop.
 */
kvferry_metadata_server_t kvferry_metadata_server_start(const kvferry_metadata_server_options_t *options, char *buf_out,
                                                        size_t buf_len);

/*
 * As kvferry_metadata_server_start, for a server over HTTPS that also asks its clients for certificates: requests for metadata
 * must come with one that a certificate in the PEM file tls_client_ca vouches for. NULL or "": as without.
 */
kvferry_metadata_server_t kvferry_metadata_server_start_mutual(const kvferry_metadata_server_options_t *options,
                                                               const char *tls_client_ca, char *buf_out, size_t buf_len);

/*
 * Stops a server, within seconds, and ends its handle. 0, or a negated Status code: -200 when the server has stopped and
 * its latest changes could not be written to the snapshot.
 */
int kvferry_metadata_server_stop(kvferry_metadata_server_t server);

/* Copies length bytes between two addresses of this process; -1 when either is not mapped. */
int kvferry_copy(void *dst, const void *src, size_t length);

/*
 * Layouts and plans: where the elements of a KV cache lie on both sides, and what has to move from one side to the other. See
 * docs/layouts.md for the terms and for the text of a layout. No engine is needed to make a plan.
 *
 * A layout is where one process holds its part of a cache. It does not change. The handle belongs to the caller until
 * kvferry_layout_free; plans do not need it any more once they are made.
 */
typedef void *kvferry_layout_t;

/*
 * Reads a layout from length bytes of JSON, which are not kept. The text may come from anybody: NULL for text that is no layout,
 * of more than 1 MiB, or with sizes, strides and addresses that no memory has, or that overlap.
 */
kvferry_layout_t kvferry_layout_parse(const char *text, size_t length);

/* Ends the handle of a layout. 0, or a negated Status code. */
int kvferry_layout_free(kvferry_layout_t layout);

/* What the numbers of a place are. */
#define KVFERRY_BLOCKS 0
#define KVFERRY_SLOTS 1 /* slot s is token s % block_tokens of block s / block_tokens */
#define KVFERRY_OFFERED 2 /* layout is a kvferry_offered_t, which has the numbers: numbers is NULL, and count 0 */

/*
 * Where the tokens of a plan lie in a layout. The token that moves first is at position first, the next one at the position
 * behind it. Position p is token p % block_tokens of block numbers[p / block_tokens], or it is slot numbers[p].
 */
typedef struct kvferry_place {
    kvferry_layout_t layout; /* or a kvferry_offered_t, see KVFERRY_OFFERED */
    const uint64_t *numbers; /* of blocks or slots, count of them */
    size_t count;
    uint64_t first;          /* with KVFERRY_OFFERED, counted from the first position that is offered */
    int kind;                /* KVFERRY_BLOCKS, KVFERRY_SLOTS or KVFERRY_OFFERED */
} kvferry_place_t;

/*
 * Finds out what has to move for so many tokens, from the processes that have their elements to those that need them. Each
 * element of a destination comes from one source, also where several have it. partial: elements that no source has stay as
 * they are, where they would be an error otherwise. The arrays are not kept. NULL for places that do not match: another
 * element type or model, a table without room for the tokens or with numbers that the layout does not have, a number that is
 * twice in the table of a destination. Takes microseconds, and memory for the tables, not for each range that moves.
 * A plan does not change. The handle belongs to the caller until kvferry_plan_free; a batch does not need it.
 */
kvferry_plan_t kvferry_plan_make(const kvferry_place_t *sources, size_t source_count, const kvferry_place_t *destinations,
                                 size_t destination_count, uint64_t tokens, int partial);

/* Ends the handle of a plan. Its batches go on. 0, or a negated Status code. */
int kvferry_plan_free(kvferry_plan_t plan);

/* What moves from one source to one destination. */
typedef struct kvferry_plan_transfer {
    uint64_t source;      /* index into the sources */
    uint64_t destination; /* index into the destinations */
    uint64_t ranges;      /* each contiguous on both sides */
    uint64_t bytes;
} kvferry_plan_transfer_t;

/* How many transfers a plan has: one for each source and destination that have elements in common. Or a negated Status code. */
int kvferry_plan_transfers(kvferry_plan_t plan);

/* Fills *transfer_out for a transfer, by its index. 0, or a negated Status code. */
int kvferry_plan_transfer(kvferry_plan_t plan, size_t index, kvferry_plan_transfer_t *transfer_out);

/*
 * Allocates a batch and submits one transfer of a plan. With OPCODE_WRITE this process is the source of the transfer, and the
 * owner of the segment its destination; with OPCODE_READ it is the other way round. Where all memory of this process is host
 * memory, the batch has one task, whatever the number of ranges. Otherwise, and within one process that has registered memory
 * of a device, each range is a task, at most 2^26 of them. The batch keeps some 70 bytes for each until it is freed. max_batch
 * is the most of these that the engine submits at a time; 0 is 65536. The engine submits the next ones when these have
 * completed, and no more when one has failed or the batch is given up. Otherwise as kvferry_submit: a batch id in *batch_out
 * and 0; on failure a negated Status code, and no batch.
 */
int kvferry_submit_plan(transfer_engine_t engine, int opcode, segment_id_t target, kvferry_plan_t plan, size_t index,
                        size_t max_batch, batch_id_t *batch_out);

/* kvferry_transfer_sync of what kvferry_submit_plan submits. */
int kvferry_transfer_plan(transfer_engine_t engine, int opcode, segment_id_t target, kvferry_plan_t plan, size_t index,
                          size_t max_batch, int64_t timeout_ms, batch_id_t *batch_out);

/*
 * Offers: blocks of this process that whoever knows a key may read or write, for as long as the offer lives. docs/layouts.md
 * describes them. The owner makes an offer, and sends its text through a side channel that keeps it secret. The receiver reads the
 * text, and makes a plan with it. Transfers of that plan carry the key, between kvferry engines only.
 */
typedef void *kvferry_offer_t;

/* What an offer allows. */
#define KVFERRY_OFFER_READ 1
#define KVFERRY_OFFER_WRITE 2
#define KVFERRY_OFFER_ONCE 4 /* to one transfer only; what that sends again after a loss is no second one */

/*
 * Offers the memory of a place in this process, from position first to the end of its table: flags are KVFERRY_OFFER_*, READ or
 * WRITE at least. lifetime_ms is for how long; 0 for until it is revoked. The place's numbers are blocks or slots, each of them
 * once. Its memory is registered with any access, also with one that opens it to no peer, at the latest before it is used. The
 * offer ends when a region that has some of its memory is unregistered. When its time is over the engine revokes it.
 * The handle belongs to the caller until kvferry_offer_free. NULL on failure. Any thread may call this and what follows.
 */
kvferry_offer_t kvferry_offer_make(transfer_engine_t engine, const kvferry_place_t *place, int flags, int64_t lifetime_ms);

/* The text of an offer: JSON that is to be kept secret. Writes it, and returns its length, as kvferry_stats_json does. */
int64_t kvferry_offer_text(kvferry_offer_t offer, char *buf_out, size_t buf_len);

/*
 * Ends an offer. When it has returned 0, no byte moves by the offer any more, and later requests with its key are refused: the
 * memory can be used for something else, while its region stays registered. Takes about a millisecond where peers are alive.
 * Connections of peers that do not go on within 50 ms are ended. KVFERRY_ERR_IN_USE when a system call or a device may still move
 * bytes after some seconds, also bytes of a transfer that has failed, with or without this offer: another call waits again. It
 * may be called again, also after 0.
 */
int kvferry_offer_revoke(kvferry_offer_t offer);

/* kvferry_offer_revoke, and ends the handle whatever the result. */
int kvferry_offer_free(kvferry_offer_t offer);

/* An offer of another process. It does not change. The handle belongs to the caller until kvferry_offered_free; plans do not
 * need it any more once they are made. */
typedef void *kvferry_offered_t;

/* Reads an offer from length bytes of text, which are not kept. The text may come from anybody: NULL for text that is no offer. */
kvferry_offered_t kvferry_offered_parse(const char *text, size_t length);

/* The name of the engine that has made an offer, for openSegment. Writes and returns as kvferry_stats_json does. */
int64_t kvferry_offered_engine(kvferry_offered_t offered, char *buf_out, size_t buf_len);

/* Ends the handle. 0, or a negated Status code. */
int kvferry_offered_free(kvferry_offered_t offered);

#ifdef __cplusplus
}
#endif

#endif
