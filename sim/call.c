/* What begins and ends each call of the API. */
#include "call.h"

#include "faults.h"
#include "settings.h"

static __thread bool in_callback; /* this thread is in a function that a stream calls */

bool sim_begin_control(void)
{
    if (sim_forked) {
        return false;
    }
    pthread_mutex_lock(&sim.lock);
    sim_read_settings();
    return true;
}

int sim_begin_release(int call, enum sim_needs needs, int *deferred)
{
    int device;

    *deferred = SIM_OK;
    if (!sim_begin_control()) {
        return sim_fail(SIM_FORKED, "%s in a child of fork(): devices work only in the process that initialised them",
                        sim_api.calls[call]);
    }
    sim.counters.calls[call]++;
    if (in_callback) {
        return sim_fail(SIM_NOT_PERMITTED, "%s by a function that a stream calls", sim_api.calls[call]);
    }
    if (needs != NEEDS_NOTHING && !sim.initialized) {
        return sim_fail(SIM_UNINITIALIZED, "%s before the runtime was initialised", sim_api.calls[call]);
    }
    device = sim_current();
    if (needs == NEEDS_DEVICE && device < 0) {
        return sim_misuse(MISUSE_no_device_set, SIM_NO_DEVICE_SET, "%s on a thread with no device set",
                          sim_api.calls[call]);
    }
    *deferred = sim_call_fault(call);
    if (*deferred == SIM_OK && needs == NEEDS_DEVICE) {
        *deferred = sim_device_error(device);
    }
    return SIM_OK;
}

int sim_begin(int call, enum sim_needs needs)
{
    int deferred, result = sim_begin_release(call, needs, &deferred);

    return result != SIM_OK ? result : deferred;
}

int sim_end(int result)
{
    if (!sim_forked) {
        pthread_mutex_unlock(&sim.lock);
    }
    return result <= 0 ? sim_api.codes[-result] : result;
}

int sim_end_release(int result, int deferred)
{
    return sim_end(result != SIM_OK ? result : deferred);
}

int sim_check_out(const void *out)
{
    return out != NULL ? SIM_OK : sim_fail(SIM_INVALID, "a result is to be returned at NULL");
}

int sim_initialize(void)
{
    int result = sim_check_settings();

    if (result == SIM_OK) {
        sim.initialized = true;
    }
    return result;
}

int sim_finalize(void)
{
    sim.initialized = false;
    return SIM_OK;
}

void sim_run_callback(void (*function)(void *), void *argument)
{
    pthread_mutex_unlock(&sim.lock);
    in_callback = true;
    function(argument);
    in_callback = false;
    pthread_mutex_lock(&sim.lock);
}
