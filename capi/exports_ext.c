/* The functions of transfer_engine_ext.h. */
#include "_cgo_export.h"
#include "internal.h"

#include <errno.h>

#ifndef KVFERRY_VERSION
#define KVFERRY_VERSION "0.0.0"
#endif

const char *kvferry_last_error(void)
{
    return kvferry_reason();
}

const char *kvferry_version(void)
{
    return KVFERRY_VERSION;
}

int kvferry_log(int level, const char *text)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_log(level, text, kvferry_reason());
}

int kvferry_destroy(transfer_engine_t engine)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_destroy(engine, kvferry_reason());
}

int kvferry_rpc_port(transfer_engine_t engine)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_rpc_port(engine, kvferry_reason());
}

int64_t kvferry_transfer_timeout_ms(transfer_engine_t engine)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_transfer_timeout_ms(engine, kvferry_reason());
}

int kvferry_register(transfer_engine_t engine, const buffer_entry_t *ranges, size_t count, const char *location, int access)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_register_for(engine, ranges, count, location, access, kvferry_reason());
}

int kvferry_unregister(transfer_engine_t engine, void *addr)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_unregister_quietly(engine, addr, kvferry_reason());
}

int kvferry_stats(transfer_engine_t engine, kvferry_stats_t *stats, size_t size)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_stats(engine, stats, size, kvferry_reason());
}

int64_t kvferry_stats_json(transfer_engine_t engine, char *buf_out, size_t buf_len)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_stats_json(engine, buf_out, buf_len, kvferry_reason());
}

int64_t kvferry_settings_json(char *buf_out, size_t buf_len)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_settings_json(buf_out, buf_len, kvferry_reason());
}

/* How a function starts that stores a batch id. */
#define ENTER_WITH_BATCH(batch_out)                                  \
    do {                                                             \
        if ((batch_out) != NULL) {                                   \
            *(batch_out) = INVALID_BATCH;                            \
        }                                                            \
        ENTER(KVFERRY_ERR_FORKED);                                   \
        if ((batch_out) == NULL) {                                   \
            kvferry_explain("there is no room for the batch id: NULL"); \
            return -1;                                               \
        }                                                            \
    } while (0)

int kvferry_submit(transfer_engine_t engine, int opcode, segment_id_t target, const uint64_t *local,
                   const uint64_t *remote, const uint64_t *lengths, size_t count, const notify_msg_t *notify,
                   batch_id_t *batch_out)
{
    ENTER_WITH_BATCH(batch_out);
    return kvferry_go_submit_arrays(engine, opcode, target, local, remote, lengths, count, notify, batch_out,
                                    kvferry_reason());
}

/* The result of a wait that has ended too early, and why, an errno. state describes what it waited for; NULL keeps the reason that Go
 * has written. */
static int unfinished(int failure, const char *awaited, const char *state)
{
    if (failure == EINTR) {
        kvferry_explain("a signal interrupted the wait for %.300s, which goes on", awaited);
        return KVFERRY_ERR_INTERRUPTED;
    }
    if (state != NULL) {
        kvferry_explain("%.300s: %s", awaited, state);
    }
    return KVFERRY_ERR_TIMED_OUT;
}

/* Steps 2 and 3 of a blocking call, as wait.go counts them. free_ended: free the batch if it has ended. */
static int finish_watch(void *watch, uint32_t *word, int64_t timeout_ms, int free_ended)
{
    int failure = kvferry_wait_for_word(word, timeout_ms);
    int result = kvferry_go_end_watch(watch, free_ended, kvferry_reason());

    return result == BATCH_RUNNING ? unfinished(failure, "the batch", NULL) : result;
}

/* The end of a call that submits and waits: result is what the submission said. */
static int finish_transfer(int result, void *watch, uint32_t *word, int64_t timeout_ms, batch_id_t *batch_out)
{
    if (result == BATCH_RUNNING) {
        result = finish_watch(watch, word, timeout_ms, 1);
        if (result != KVFERRY_ERR_TIMED_OUT && result != KVFERRY_ERR_INTERRUPTED) {
            *batch_out = INVALID_BATCH;
        }
    }
    return result;
}

int kvferry_batch_wait(transfer_engine_t engine, batch_id_t batch, int64_t timeout_ms)
{
    uint32_t word = 0;
    void *watch = NULL;
    int result;

    ENTER(KVFERRY_ERR_FORKED);
    result = kvferry_go_watch(engine, batch, timeout_ms != 0, &word, &watch, kvferry_reason());
    if (result == BATCH_RUNNING) {
        result = finish_watch(watch, &word, timeout_ms, 0);
    }
    return result;
}

int kvferry_batches_wait(transfer_engine_t engine, const batch_id_t *batches, size_t count, int64_t timeout_ms)
{
    int64_t start = kvferry_now_ms();
    uint32_t word = 0;
    void *watch = NULL;
    int result, failure = 0;

    ENTER(KVFERRY_ERR_FORKED);
    result = kvferry_go_watch_many(engine, batches, count, &word, &watch, kvferry_reason());
    if (result != 0) {
        return result;
    }
    result = kvferry_go_check_many(watch, kvferry_reason());
    while (result == BATCH_RUNNING && failure == 0) {
        int64_t passed = kvferry_now_ms() - start;
        int64_t left = timeout_ms > passed ? timeout_ms - passed : 0;

        failure = kvferry_wait_for_word(&word, timeout_ms < 0 ? -1 : left);
        __atomic_store_n(&word, 0, __ATOMIC_RELEASE); /* before the check, so that a later end wakes the next wait */
        result = kvferry_go_check_many(watch, kvferry_reason());
    }
    kvferry_go_end_watch_many(watch, kvferry_reason());
    return result == BATCH_RUNNING ? unfinished(failure, "the batch", NULL) : result;
}

int kvferry_transfer_sync(transfer_engine_t engine, int opcode, segment_id_t target, const uint64_t *local,
                          const uint64_t *remote, const uint64_t *lengths, size_t count, const notify_msg_t *notify,
                          int64_t timeout_ms, batch_id_t *batch_out)
{
    uint32_t word = 0;
    void *watch = NULL;
    int result;

    ENTER_WITH_BATCH(batch_out);
    result = kvferry_go_submit_and_watch(engine, opcode, target, local, remote, lengths, count, notify, batch_out,
                                         &word, &watch, kvferry_reason());
    return finish_transfer(result, watch, &word, timeout_ms, batch_out);
}

int kvferry_submit_pages(transfer_engine_t engine, int opcode, segment_id_t target, const uint64_t *local_pages,
                         const uint64_t *remote_pages, size_t page_count, const uint64_t *rows, size_t row_count,
                         size_t max_batch, batch_id_t *batch_out)
{
    ENTER_WITH_BATCH(batch_out);
    return kvferry_go_submit_pages(engine, opcode, target, local_pages, remote_pages, page_count, rows, row_count,
                                   max_batch, batch_out, kvferry_reason());
}

int kvferry_transfer_pages(transfer_engine_t engine, int opcode, segment_id_t target, const uint64_t *local_pages,
                           const uint64_t *remote_pages, size_t page_count, const uint64_t *rows, size_t row_count,
                           size_t max_batch, int64_t timeout_ms, batch_id_t *batch_out)
{
    uint32_t word = 0;
    void *watch = NULL;
    int result;

    ENTER_WITH_BATCH(batch_out);
    result = kvferry_go_submit_pages_and_watch(engine, opcode, target, local_pages, remote_pages, page_count, rows,
                                               row_count, max_batch, batch_out, &word, &watch, kvferry_reason());
    return finish_transfer(result, watch, &word, timeout_ms, batch_out);
}

int kvferry_submit_scatter(transfer_engine_t engine, int opcode, const char *segment_name, const uint64_t *regions,
                           size_t region_count, const uint64_t *local_offsets, const uint64_t *remote_offsets,
                           const uint64_t *lengths, size_t count, batch_id_t *batch_out)
{
    ENTER_WITH_BATCH(batch_out);
    return kvferry_go_submit_scatter(engine, opcode, segment_name, regions, region_count, local_offsets, remote_offsets,
                                     lengths, count, batch_out, kvferry_reason());
}

int kvferry_transfer_on_stream(transfer_engine_t engine, const char *kind, void *stream, int opcode, segment_id_t target,
                               const uint64_t *local, const uint64_t *remote, const uint64_t *lengths, size_t count)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_transfer_on_stream(engine, kind, (uintptr_t)stream, opcode, target, local, remote, lengths, count,
                                         kvferry_reason());
}

int kvferry_start(transfer_engine_t engine, const kvferry_transfer_t *transfer, size_t size, batch_id_t *batch_out)
{
    ENTER_WITH_BATCH(batch_out);
    return kvferry_go_start(engine, transfer, size, batch_out, kvferry_reason());
}

int kvferry_completions_fd(transfer_engine_t engine)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_completions_fd(engine, kvferry_reason());
}

int64_t kvferry_completions_next(transfer_engine_t engine, batch_id_t *batches_out, size_t capacity)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_completions_next(engine, batches_out, capacity, kvferry_reason());
}

int kvferry_batch_progress(transfer_engine_t engine, batch_id_t batch, kvferry_progress_t *progress)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_batch_progress(engine, batch, progress, kvferry_reason());
}

int kvferry_batch_failure(transfer_engine_t engine, batch_id_t batch, kvferry_failure_t *failure, size_t size, char *buf_out,
                          size_t buf_len)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_batch_failure(engine, batch, failure, size, buf_out, buf_len, kvferry_reason());
}

int kvferry_batch_outcome(transfer_engine_t engine, batch_id_t batch, kvferry_outcome_t *outcome, size_t size)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_batch_outcome(engine, batch, outcome, size, kvferry_reason());
}

int kvferry_batch_status(transfer_engine_t engine, batch_id_t batch, kvferry_batch_status_t *status)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_batch_status(engine, batch, status, kvferry_reason());
}

int kvferry_batch_error(transfer_engine_t engine, batch_id_t batch, char *buf_out, size_t buf_len)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_batch_error(engine, batch, buf_out, buf_len, kvferry_reason());
}

uint64_t kvferry_batch_bytes(transfer_engine_t engine, batch_id_t batch)
{
    ENTER(0);
    return kvferry_go_batch_bytes(engine, batch, kvferry_reason());
}

int kvferry_batch_cancel(transfer_engine_t engine, batch_id_t batch)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_cancel_batch(engine, batch, kvferry_reason());
}

int kvferry_batch_discard(transfer_engine_t engine, batch_id_t batch)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_discard_batch(engine, batch, kvferry_reason());
}

segment_id_t kvferry_open_segment(transfer_engine_t engine, const char *segment_name, int64_t timeout_ms)
{
    uint32_t word = 0;
    void *wait = NULL;
    int done = 0;
    int failure;
    segment_id_t result;

    ENTER(KVFERRY_ERR_FORKED);
    result = kvferry_go_start_open(engine, segment_name, &word, &wait, kvferry_reason());
    if (wait == NULL) {
        return result;
    }
    failure = kvferry_wait_for_word(&word, timeout_ms);
    result = kvferry_go_end_open(wait, &done, kvferry_reason());
    return done ? result : unfinished(failure, segment_name, "it has not answered the handshake");
}

int kvferry_probe(transfer_engine_t engine, const char *segment_name)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_probe(engine, segment_name, kvferry_reason());
}

uint64_t kvferry_first_buffer(transfer_engine_t engine, const char *segment_name)
{
    ENTER(0);
    return kvferry_go_first_buffer(engine, segment_name, kvferry_reason());
}

kvferry_call_t kvferry_start_engine(const char *metadata_conn_string, const char *local_server_name, const char *transport)
{
    return kvferry_start_engine_with(metadata_conn_string, local_server_name, transport, NULL, 0);
}

kvferry_call_t kvferry_start_engine_with(const char *metadata_conn_string, const char *local_server_name, const char *transport,
                                         const char *settings, size_t length)
{
    ENTER(NULL);
    if (kvferry_reserve_threads() != 0) {
        return NULL;
    }
    return kvferry_go_start_engine(metadata_conn_string, local_server_name, transport, settings, length, kvferry_reason());
}

kvferry_call_t kvferry_start_first_buffer(transfer_engine_t engine, const char *segment_name)
{
    ENTER(NULL);
    return kvferry_go_start_first_buffer(engine, segment_name, kvferry_reason());
}

kvferry_call_t kvferry_start_probe(transfer_engine_t engine, const char *segment_name)
{
    ENTER(NULL);
    return kvferry_go_start_probe(engine, segment_name, kvferry_reason());
}

kvferry_call_t kvferry_start_describe(transfer_engine_t engine, const char *segment_name)
{
    ENTER(NULL);
    return kvferry_go_start_describe(engine, segment_name, kvferry_reason());
}

kvferry_call_t kvferry_start_members(const char *metadata_conn_string, const char *name, int64_t timeout_ms)
{
    ENTER(NULL);
    if (kvferry_reserve_threads() != 0) {
        return NULL;
    }
    return kvferry_go_start_members(metadata_conn_string, name, timeout_ms, kvferry_reason());
}

kvferry_call_t kvferry_start_forget(const char *metadata_conn_string, const char *name, int force)
{
    ENTER(NULL);
    if (kvferry_reserve_threads() != 0) {
        return NULL;
    }
    return kvferry_go_start_forget(metadata_conn_string, name, force, kvferry_reason());
}

int64_t kvferry_text(kvferry_text_t text, char *buf_out, size_t buf_len)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_text(text, buf_out, buf_len, kvferry_reason());
}

int kvferry_text_free(kvferry_text_t text)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_free_text(text, kvferry_reason());
}

int kvferry_call_wait(kvferry_call_t call, int64_t timeout_ms, uint64_t *result_out)
{
    uint32_t word = 0;
    int done = 0;
    int failure, result;

    ENTER(KVFERRY_ERR_FORKED);
    if (result_out == NULL) {
        kvferry_explain("there is no room for the result of the call: NULL");
        return -1;
    }
    result = kvferry_go_start_wait(call, &word, kvferry_reason());
    if (result != 0) {
        return result;
    }
    failure = kvferry_wait_for_word(&word, timeout_ms);
    result = kvferry_go_end_wait(call, &word, &done, result_out, kvferry_reason());
    return done ? result : unfinished(failure, "the call", "it has not ended");
}

int kvferry_call_abandon(kvferry_call_t call)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_abandon_call(call, kvferry_reason());
}

kvferry_metadata_server_t kvferry_metadata_server_start(const kvferry_metadata_server_options_t *options, char *buf_out,
                                                        size_t buf_len)
{
    return kvferry_metadata_server_start_mutual(options, NULL, buf_out, buf_len);
}

kvferry_metadata_server_t kvferry_metadata_server_start_mutual(const kvferry_metadata_server_options_t *options,
                                                               const char *tls_client_ca, char *buf_out, size_t buf_len)
{
    ENTER(NULL);
    return kvferry_go_start_metadata_server(options, tls_client_ca, buf_out, buf_len, kvferry_reason());
}

int kvferry_metadata_server_stop(kvferry_metadata_server_t server)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_stop_metadata_server(server, kvferry_reason());
}

kvferry_layout_t kvferry_layout_parse(const char *text, size_t length)
{
    ENTER(NULL);
    return kvferry_go_parse_layout(text, length, kvferry_reason());
}

int kvferry_layout_free(kvferry_layout_t layout)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_free_layout(layout, kvferry_reason());
}

kvferry_plan_t kvferry_plan_make(const kvferry_place_t *sources, size_t source_count, const kvferry_place_t *destinations,
                                 size_t destination_count, uint64_t tokens, int partial)
{
    ENTER(NULL);
    return kvferry_go_make_plan(sources, source_count, destinations, destination_count, tokens, partial, kvferry_reason());
}

int kvferry_plan_free(kvferry_plan_t plan)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_free_plan(plan, kvferry_reason());
}

int kvferry_plan_transfers(kvferry_plan_t plan)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_plan_transfers(plan, kvferry_reason());
}

int kvferry_plan_transfer(kvferry_plan_t plan, size_t index, kvferry_plan_transfer_t *transfer_out)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_plan_transfer(plan, index, transfer_out, kvferry_reason());
}

int kvferry_submit_plan(transfer_engine_t engine, int opcode, segment_id_t target, kvferry_plan_t plan, size_t index,
                        size_t max_batch, batch_id_t *batch_out)
{
    ENTER_WITH_BATCH(batch_out);
    return kvferry_go_submit_plan(engine, opcode, target, plan, index, max_batch, batch_out, kvferry_reason());
}

int kvferry_transfer_plan(transfer_engine_t engine, int opcode, segment_id_t target, kvferry_plan_t plan, size_t index,
                          size_t max_batch, int64_t timeout_ms, batch_id_t *batch_out)
{
    uint32_t word = 0;
    void *watch = NULL;
    int result;

    ENTER_WITH_BATCH(batch_out);
    result = kvferry_go_submit_plan_and_watch(engine, opcode, target, plan, index, max_batch, batch_out, &word, &watch,
                                              kvferry_reason());
    return finish_transfer(result, watch, &word, timeout_ms, batch_out);
}

kvferry_offer_t kvferry_offer_make(transfer_engine_t engine, const kvferry_place_t *place, int flags, int64_t lifetime_ms)
{
    ENTER(NULL);
    return kvferry_go_make_offer(engine, place, flags, lifetime_ms, kvferry_reason());
}

int64_t kvferry_offer_text(kvferry_offer_t offer, char *buf_out, size_t buf_len)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_offer_text(offer, buf_out, buf_len, kvferry_reason());
}

int kvferry_offer_revoke(kvferry_offer_t offer)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_revoke_offer(offer, 0, kvferry_reason());
}

int kvferry_offer_free(kvferry_offer_t offer)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_revoke_offer(offer, 1, kvferry_reason());
}

kvferry_offered_t kvferry_offered_parse(const char *text, size_t length)
{
    ENTER(NULL);
    return kvferry_go_parse_offer(text, length, kvferry_reason());
}

int64_t kvferry_offered_engine(kvferry_offered_t offered, char *buf_out, size_t buf_len)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_offered_engine(offered, buf_out, buf_len, kvferry_reason());
}

int kvferry_offered_free(kvferry_offered_t offered)
{
    ENTER(KVFERRY_ERR_FORKED);
    return kvferry_go_free_offered(offered, kvferry_reason());
}
