/* What begins and ends each call of a face. */
#include "call.h"

#include "faults.h"
#include "settings.h"

static __thread bool called_back; /* by the simulator */

bool sim_control(void)
{
    if (sim_forked) {
        return false;
    }
    pthread_mutex_lock(&sim.lock);
    sim_read_settings();
    return true;
}

int sim_begin_giving_back(int call, enum sim_needs needs, int *later)
{
    int device;

    *later = SIM_OK;
    if (!sim_control()) {
        return sim_fail(SIM_FORKED, "%s in a child of fork(): devices work only in the process that initialised them",
                        sim_face.calls[call]);
    }
    sim.counters.calls[call]++;
    if (called_back) {
        return sim_fail(SIM_NOT_PERMITTED, "%s by a function that a stream calls", sim_face.calls[call]);
    }
    if (needs != NEEDS_NOTHING && !sim.initialized) {
        return sim_fail(SIM_UNINITIALIZED, "%s before the runtime was initialised", sim_face.calls[call]);
    }
    device = sim_current();
    if (needs == NEEDS_DEVICE && device < 0) {
        return sim_misuse(MISUSE_no_device_set, SIM_NO_DEVICE_SET, "%s on a thread with no device set",
                          sim_face.calls[call]);
    }
    *later = sim_call_fault(call);
    if (*later == SIM_OK && needs == NEEDS_DEVICE) {
        *later = sim_trouble(device);
    }
    return SIM_OK;
}

int sim_begin(int call, enum sim_needs needs)
{
    int later, result = sim_begin_giving_back(call, needs, &later);

    return result != SIM_OK ? result : later;
}

int sim_given_back(int result, int later)
{
    return result != SIM_OK ? result : later;
}

int sim_end(int result)
{
    if (!sim_forked) {
        pthread_mutex_unlock(&sim.lock);
    }
    return result <= 0 ? sim_face.codes[-result] : result;
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

void sim_call_back(void (*function)(void *), void *argument)
{
    pthread_mutex_unlock(&sim.lock);
    called_back = true;
    function(argument);
    called_back = false;
    pthread_mutex_lock(&sim.lock);
}
