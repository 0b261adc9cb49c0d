/* The devices, and the current device of each thread. */
#include "device.h"

static __thread struct sim_current current;

int sim_check_device(int device)
{
    if (device < 0 || device >= sim.devices) {
        return sim_fail(SIM_NO_SUCH_DEVICE, "there is no device %d, only 0 to %d", device, sim.devices - 1);
    }
    return sim.device[device].lost ? sim_fail(SIM_LOST, "device %d is lost", device) : SIM_OK;
}

int sim_device_error(int device)
{
    const struct device *d = &sim.device[device];

    if (d->lost) {
        return sim_fail(SIM_LOST, "device %d is lost", device);
    }
    return d->broken != SIM_OK ? sim_fail(d->broken, "an operation on device %d has failed", device) : SIM_OK;
}

int sim_retain_device(int device)
{
    int result = sim_check_device(device);

    if (result == SIM_OK) {
        sim.device[device].retained++;
        sim.device[device].sets++;
    }
    return result;
}

/* Ends the access of a device to others, and of others to it. */
static void end_peers(int device)
{
    int other;

    sim.device[device].peers = 0;
    for (other = 0; other < sim.devices; other++) {
        sim.device[other].peers &= ~((uint64_t)1 << device);
    }
}

int sim_release_device(int device, bool *last)
{
    int result = sim_check_device(device);
    struct device *d;

    *last = false;
    if (result != SIM_OK && result != SIM_LOST) {
        return result;
    }
    d = &sim.device[device];
    if (d->retained == 0) {
        return sim_misuse(MISUSE_reset_without_set, SIM_INVALID, "device %d is given back more often than it was taken",
                          device);
    }
    d->resets++;
    if (--d->retained == 0) {
        *last = true;
        d->epoch++;
        d->broken = SIM_OK;
        end_peers(device);
    }
    return result;
}

struct sim_current sim_current_for(int device)
{
    struct sim_current result = {device + 1, sim.device[device].epoch};

    return result;
}

struct sim_current sim_get_current(void)
{
    return current;
}

void sim_set_current(struct sim_current wanted)
{
    current = wanted;
}

int sim_device_of(struct sim_current which)
{
    int device = which.device - 1;

    return device >= 0 && which.epoch == sim.device[device].epoch ? device : -1;
}

int sim_current(void)
{
    return sim_device_of(current);
}

bool sim_is_peer(int device, int peer)
{
    return (sim.device[device].peers >> peer & 1) != 0;
}

int sim_enable_peer(int peer)
{
    int device = sim_current(), result = sim_check_device(peer);

    if (result == SIM_OK && peer == device) {
        result = sim_fail(SIM_INVALID, "device %d is no peer of itself", peer);
    }
    if (result == SIM_OK && sim.no_peers) {
        result = sim_fail(SIM_NO_PEER, "device %d cannot access the memory of device %d", device, peer);
    }
    if (result == SIM_OK && sim_is_peer(device, peer)) {
        result = sim_fail(SIM_PEER_ENABLED, "device %d has access to the memory of device %d already", device, peer);
    }
    if (result == SIM_OK) {
        sim.device[device].peers |= (uint64_t)1 << peer;
    }
    return result;
}
