/* Injected faults: calls that fail, operations that fail or hang, and devices that are lost. */
#include "faults.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { FAULTS_MAX = 64 };

enum fault_of { OF_CALL, OF_EXEC, OF_DEVICE };

static struct fault {
    enum fault_of of;
    int call, device;
    unsigned long long number, seen; /* at which occurrence it happens, and how many there were */
    bool onwards;
    int result; /* a code of the API, a reason, or FAULT_HANG */
} faults[FAULTS_MAX];
static size_t faults_set;

/* Whether a name is a function of the other library's API. A process has one environment for both. */
static bool of_other_api(const char *name)
{
    static const char *const prefixes[] = {"acl", "cu"};
    size_t i;

    for (i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0 && strcmp(prefixes[i], sim_api.prefix) != 0) {
            return true;
        }
    }
    return false;
}

/* Finds the function or event that a name stands for. */
static bool parse_subject(struct fault *fault, const char *name)
{
    int call;

    fault->of = strcmp(name, "exec") == 0 ? OF_EXEC : strcmp(name, "lost") == 0 ? OF_DEVICE : OF_CALL;
    fault->result = fault->of == OF_EXEC ? SIM_DMA_ERROR : SIM_BROKEN;
    for (call = 0; fault->of == OF_CALL; call++) {
        if (call == sim_api.call_count) {
            return false;
        }
        if (strcmp(sim_api.calls[call], name) == 0) {
            fault->call = call;
            break;
        }
    }
    return true;
}

/* Parses the text behind "=". */
static bool parse_result(struct fault *fault, char **text)
{
    long code;

    if (fault->of == OF_EXEC && strncmp(*text, "hang", 4) == 0) {
        fault->result = FAULT_HANG;
        *text += 4;
        return true;
    }
    code = strtol(*text, text, 10);
    fault->result = (int)code;
    return code > 0 && code <= INT_MAX;
}

/* Parses "SUBJECT:[D@]N[=RESULT][+]". */
static bool parse_fault(struct fault *fault, char *text)
{
    char *name = text;

    memset(fault, 0, sizeof *fault);
    strsep(&text, ":");
    if (text == NULL || !parse_subject(fault, name)) {
        return false;
    }
    if (fault->of == OF_DEVICE) {
        fault->device = (int)strtol(text, &text, 10);
        if (*text++ != '@' || fault->device < 0 || fault->device >= sim.devices) {
            return false;
        }
    }
    if (*text < '0' || *text > '9') {
        return false;
    }
    fault->number = strtoull(text, &text, 10);
    if (*text == '=' && (fault->of == OF_DEVICE || (text++, !parse_result(fault, &text)))) {
        return false;
    }
    fault->onwards = *text == '+' && fault->of != OF_DEVICE;
    text += fault->onwards;
    return *text == '\0' && (fault->number > 0 || fault->of == OF_DEVICE);
}

/* Replaces all faults. Devices that were lost or broken work again. */
static void install(const struct fault *parsed, size_t count)
{
    size_t i;

    memcpy(faults, parsed, count * sizeof *parsed);
    faults_set = count;
    for (i = 0; i < SIM_DEVICES_MAX; i++) {
        sim.device[i].lost = false;
        sim.device[i].broken = SIM_OK;
    }
    for (i = 0; i < count; i++) {
        if (faults[i].of == OF_DEVICE && faults[i].number == 0) {
            sim.device[faults[i].device].lost = true;
        }
    }
}

int sim_parse_faults(const char *spec, bool tolerant)
{
    struct fault parsed[FAULTS_MAX];
    char *text = strdup(spec != NULL ? spec : ""), *part, *rest;
    size_t count = 0;
    int result = text != NULL ? SIM_OK : sim_fail(SIM_NO_MEMORY, "there is no memory for a list of faults");

    for (part = text != NULL ? strtok_r(text, ",", &rest) : NULL; part != NULL && result == SIM_OK;
         part = strtok_r(NULL, ",", &rest)) {
        if (tolerant && of_other_api(part)) {
            continue;
        }
        if (count == FAULTS_MAX) {
            result = sim_fail(SIM_INVALID, "more than %d faults", FAULTS_MAX);
        } else if (!parse_fault(&parsed[count++], part)) {
            result = sim_fail(SIM_INVALID, "fault %zu of \"%.120s\" is not understood", count, spec);
        }
    }
    free(text);
    if (result == SIM_OK) {
        install(parsed, count);
    }
    return result;
}

/* Counts one occurrence, and returns whether the fault happens at it. */
static bool happens(struct fault *fault)
{
    fault->seen++;
    if (fault->seen != fault->number && !(fault->onwards && fault->seen > fault->number)) {
        return false;
    }
    sim.counters.faults++;
    return true;
}

int sim_call_fault(int call)
{
    int result = SIM_OK;
    size_t i;

    for (i = 0; i < faults_set; i++) {
        if (faults[i].of == OF_CALL && faults[i].call == call && happens(&faults[i])) {
            result = sim_fail(faults[i].result, "%s, call %llu: a fault on purpose", sim_api.calls[call],
                              faults[i].seen);
        }
    }
    return result;
}

int sim_exec_fault(int device)
{
    int result = SIM_OK;
    size_t i;

    for (i = 0; i < faults_set; i++) {
        if (faults[i].of == OF_EXEC && happens(&faults[i])) {
            result = faults[i].result;
        }
    }
    return sim_device_error(device) != SIM_OK ? sim_device_error(device) : result;
}

bool sim_executed(int device)
{
    bool lost = false;
    size_t i;

    sim.counters.executed++;
    for (i = 0; i < faults_set; i++) {
        if (faults[i].of == OF_DEVICE && faults[i].device == device && happens(&faults[i])) {
            sim.device[device].lost = lost = true;
        }
    }
    return lost;
}

void sim_release_hangs(void)
{
    size_t i, kept = 0;

    for (i = 0; i < faults_set; i++) {
        if (faults[i].result != FAULT_HANG) {
            faults[kept++] = faults[i];
        }
    }
    faults_set = kept;
    sim.hang_releases++;
}
