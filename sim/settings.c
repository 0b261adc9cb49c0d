/* The environment variables. */
#include "settings.h"

#include "cost.h"
#include "error.h"
#include "faults.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static char misconfigured[SIM_MESSAGE_MAX]; /* which variable is wrong, and why */

/* Reads the number in a variable, if that is set. False where it is not within the limits. */
static bool read_number(const char *name, unsigned long long low, unsigned long long high, unsigned long long *out)
{
    const char *text = getenv(name);
    char *end;

    if (text == NULL || *text == '\0') {
        return true;
    }
    errno = 0;
    *out = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || *text == '-' || *out < low || *out > high) {
        sim_fail(SIM_INVALID, "%s=%s is no number from %llu to %llu", name, text, low, high);
        return false;
    }
    return true;
}

static int configure(void)
{
    unsigned long long devices = (unsigned long long)sim.devices, seed = 0, peers = 1;
    const char *set = getenv("KVFERRY_SIM_SEED");
    int result;

    if (!read_number("KVFERRY_SIM_DEVICES", 1, SIM_DEVICES_MAX, &devices) ||
        !read_number("KVFERRY_SIM_PEERS", 0, 1, &peers) || !read_number("KVFERRY_SIM_SEED", 0, UINT64_MAX, &seed)) {
        return SIM_INVALID;
    }
    sim.devices = (int)devices;
    sim.no_peers = peers == 0;
    sim.adversarial = set != NULL && *set != '\0';
    sim.seed = seed;
    result = sim_parse_cost(getenv("KVFERRY_SIM_COST"));
    return result != SIM_OK ? result : sim_parse_faults(getenv("KVFERRY_SIM_FAULTS"), true);
}

int sim_check_settings(void)
{
    return *misconfigured == '\0' ? SIM_OK : sim_fail(SIM_INVALID, "%s", misconfigured);
}

void sim_read_settings(void)
{
    if (!sim.configured && configure() != SIM_OK) {
        snprintf(misconfigured, sizeof misconfigured, "%s", sim_message());
        fprintf(stderr, SIM_NAME ": %s\n", misconfigured);
        sim_check_settings(); /* so that sim_message returns the text, too */
    }
    sim.configured = true;
}
