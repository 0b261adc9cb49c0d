/* The simulator's state and variables, its devices, and each thread's current device and error text. */
#include "device.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

struct sim sim = {.devices = 2};
bool sim_forked;

static __thread struct sim_current current;
static __thread bool called_back; /* by the simulator */

static __thread struct {
    char text[2][SIM_MESSAGE_MAX]; /* the last one, and the one that was asked for */
    bool set;
} message;

static char misconfigured[SIM_MESSAGE_MAX]; /* what is wrong with the variables */

static void forked_child(void)
{
    sim_forked = true;
}

/* The lock is held for less time than falling asleep takes, so who finds it held looks again for a moment. */
__attribute__((constructor)) static void prepare(void)
{
    pthread_mutexattr_t attributes;

    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&sim.lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    pthread_atfork(NULL, NULL, forked_child);
}

static void say(const char *format, va_list arguments)
{
    vsnprintf(message.text[0], SIM_MESSAGE_MAX, format, arguments);
    message.set = true;
}

int sim_fail(int reason, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    return reason;
}

int sim_misuse(enum sim_misuse misuse, int reason, const char *format, ...)
{
    va_list arguments;

    sim.counters.misuses[misuse]++;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    return reason;
}

const char *sim_message(void)
{
    if (!message.set) {
        return NULL;
    }
    message.set = false;
    snprintf(message.text[1], SIM_MESSAGE_MAX, "%s", message.text[0]);
    return message.text[1];
}

char *sim_cut(char *text, const char *separator)
{
    char *end = text + strcspn(text, separator);

    if (*end == '\0') {
        return NULL;
    }
    *end = '\0';
    return end + 1;
}

/* Takes the number in that a variable holds, if it is set. False where it is none within the limits. */
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
    unsigned long long devices = (unsigned long long)sim.devices, seed = 0;
    const char *set = getenv("KVFERRY_SIM_SEED");
    int result;

    if (!read_number("KVFERRY_SIM_DEVICES", 1, SIM_DEVICES_MAX, &devices) ||
        !read_number("KVFERRY_SIM_SEED", 0, UINT64_MAX, &seed)) {
        return SIM_INVALID;
    }
    sim.devices = (int)devices;
    sim.adversarial = set != NULL && *set != '\0';
    sim.seed = seed;
    result = sim_parse_cost(getenv("KVFERRY_SIM_COST"));
    return result != SIM_OK ? result : sim_parse_faults(getenv("KVFERRY_SIM_FAULTS"), true);
}

/* Takes the variables in when the first call is made. Where one makes no sense, the runtime cannot be initialised. */
static void configure_once(void)
{
    if (!sim.configured && configure() != SIM_OK) {
        snprintf(misconfigured, sizeof misconfigured, "%s", message.text[0]);
        fprintf(stderr, SIM_NAME ": %s\n", misconfigured);
    }
    sim.configured = true;
}

bool sim_control(void)
{
    if (sim_forked) {
        return false;
    }
    pthread_mutex_lock(&sim.lock);
    configure_once();
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
    if (*misconfigured != '\0') {
        return sim_fail(SIM_INVALID, "%s", misconfigured);
    }
    sim.initialized = true;
    return SIM_OK;
}

int sim_finalize(void)
{
    sim.initialized = false;
    return SIM_OK;
}

int sim_check_device(int device)
{
    if (device < 0 || device >= sim.devices) {
        return sim_fail(SIM_NO_SUCH_DEVICE, "there is no device %d, only 0 to %d", device, sim.devices - 1);
    }
    return sim.device[device].lost ? sim_fail(SIM_LOST, "device %d is lost", device) : SIM_OK;
}

int sim_trouble(int device)
{
    const struct device *d = &sim.device[device];

    if (d->lost) {
        return sim_fail(SIM_LOST, "device %d is lost", device);
    }
    return d->broken != SIM_OK ? sim_fail(d->broken, "an operation on device %d has failed", device) : SIM_OK;
}

int sim_hold(int device)
{
    int result = sim_check_device(device);

    if (result == SIM_OK) {
        sim.device[device].held++;
        sim.device[device].sets++;
    }
    return result;
}

int sim_unhold(int device, bool *last)
{
    int result = sim_check_device(device);
    struct device *d;

    *last = false;
    if (result != SIM_OK && result != SIM_LOST) {
        return result;
    }
    d = &sim.device[device];
    if (d->held == 0) {
        return sim_misuse(MISUSE_reset_without_set, SIM_INVALID, "device %d is given back more often than it was taken",
                          device);
    }
    d->resets++;
    if (--d->held == 0) {
        *last = true;
        d->epoch++;
        d->broken = SIM_OK;
    }
    return result;
}

struct sim_current sim_held_device(int device)
{
    struct sim_current held = {device + 1, sim.device[device].epoch};

    return held;
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

int sim_enable_peer(int peer)
{
    int device = sim_current(), result = sim_check_device(peer);

    if (result == SIM_OK && peer == device) {
        result = sim_fail(SIM_INVALID, "device %d is no peer of itself", peer);
    }
    if (result == SIM_OK) {
        sim.device[device].peers |= (uint64_t)1 << peer;
    }
    return result;
}

void sim_call_back(void (*function)(void *), void *argument)
{
    pthread_mutex_unlock(&sim.lock);
    called_back = true;
    function(argument);
    called_back = false;
    pthread_mutex_lock(&sim.lock);
}

int64_t sim_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int sim_sharpen_timers(void)
{
    int before = prctl(PR_GET_TIMERSLACK, 0ul, 0ul, 0ul, 0ul);

    prctl(PR_SET_TIMERSLACK, 1000ul, 0ul, 0ul, 0ul);
    return before;
}

void sim_blunt_timers(int sharpened)
{
    prctl(PR_SET_TIMERSLACK, (unsigned long)sharpened, 0ul, 0ul, 0ul);
}
