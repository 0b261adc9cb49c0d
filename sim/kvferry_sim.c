/* The functions that control the simulator. */
#include "kvferry_sim.h"

#include "call.h"
#include "cost.h"
#include "faults.h"
#include "report.h"
#include "stream.h"

#include <string.h>

SIM_EXPORT int kvferry_sim_faults(const char *spec)
{
    int result;

    if (!sim_begin_control()) {
        return -1;
    }
    result = sim_parse_faults(spec, false);
    stream_wake_all();
    pthread_mutex_unlock(&sim.lock);
    return result == SIM_OK ? 0 : -1;
}

SIM_EXPORT int kvferry_sim_cost(const char *spec)
{
    int result;

    if (!sim_begin_control()) {
        return -1;
    }
    result = sim_parse_cost(spec);
    pthread_mutex_unlock(&sim.lock);
    return result == SIM_OK ? 0 : -1;
}

SIM_EXPORT int kvferry_sim_seed(unsigned long long seed, int on)
{
    if (!sim_begin_control()) {
        return -1;
    }
    sim.seed = seed;
    sim.adversarial = on != 0;
    stream_wake_all();
    pthread_mutex_unlock(&sim.lock);
    return 0;
}

SIM_EXPORT int kvferry_sim_peers(int on)
{
    int device;

    if (!sim_begin_control()) {
        return -1;
    }
    sim.no_peers = on == 0;
    for (device = 0; device < sim.devices && sim.no_peers; device++) {
        sim.device[device].peers = 0;
    }
    pthread_mutex_unlock(&sim.lock);
    return 0;
}

SIM_EXPORT void kvferry_sim_release_hangs(void)
{
    if (sim_begin_control()) {
        sim_release_hangs();
        stream_wake_all();
        pthread_mutex_unlock(&sim.lock);
    }
}

SIM_EXPORT size_t kvferry_sim_report(char *out, size_t size)
{
    size_t length;

    if (!sim_begin_control()) {
        return 0;
    }
    length = sim_write_report(out, size);
    pthread_mutex_unlock(&sim.lock);
    return length;
}

SIM_EXPORT void kvferry_sim_reset_counters(void)
{
    int device;

    if (!sim_begin_control()) {
        return;
    }
    memset(&sim.counters, 0, sizeof sim.counters);
    for (device = 0; device < sim.devices; device++) {
        sim.device[device].sets = sim.device[device].resets = 0;
    }
    pthread_mutex_unlock(&sim.lock);
}

SIM_EXPORT const char *kvferry_sim_message(void)
{
    return sim_message();
}
