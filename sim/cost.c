/* The cost model: a copy takes a latency, and its bytes at a bandwidth. */
#include "cost.h"

#include "error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The cost of one kind of copy, in nanoseconds. */
struct price {
    double per_byte;
    int64_t latency;
    int64_t further; /* each further element of a batch */
};

struct cost {
    struct price kinds[KINDS], pageable;
    int64_t row;    /* each further row of a matrix */
    int64_t kernel; /* the latency of a kernel, however much it copies */
};

static const char defaults[] = "d2h=25/15,h2d=25/15,d2d=1000/2,pageable=3/15,batch=1,row=1,kernel=15";

/* Costs of some devices, by name. What they leave out has its default. */
static const struct profile {
    const char *name, *costs;
} profiles[] = {
    /* A guess: copies within the device are cheap to start, and a batch saves little. Nobody has measured it. */
    {"npu-910b-guess", "d2h=25/15,h2d=25/15,d2d=1000/2,batch=13,row=1"},
    /* A device on which copies within it are no cheaper to start than others: gathering halves the rate. */
    {"npu-slow-within", "d2h=25/2.1,h2d=25/2.1,d2d=1000/4.2,batch=2.2,row=2.2"},
    /* Measured on an H200 with page-locked memory. */
    {"gpu-h200", "d2h=53/2.8,h2d=53/2.8,d2d=1500/2.8,batch-d2h=0.4,batch-h2d=1.4,row=0.5,kernel=8"},
};
static const struct cost free_of_charge;
static struct cost current; /* free before the variables are read */

int64_t sim_copy_cost(enum sim_kind kind, bool pageable, struct sim_work work)
{
    const struct price *price = pageable ? &current.pageable : &current.kinds[kind];
    int64_t further = work.made_of == SIM_ROWS ? current.row : current.kinds[kind].further;
    int64_t bytes = (int64_t)((double)work.size * price->per_byte);

    if (work.made_of == SIM_KERNEL) {
        return current.kernel + bytes;
    }
    return price->latency + (int64_t)(work.elements - 1) * further + bytes;
}

static bool parse_microseconds(const char *text, int64_t *nanoseconds)
{
    char *end;
    double microseconds = strtod(text, &end);

    if (end == text || *end != '\0' || !(microseconds >= 0 && microseconds <= 1e9)) {
        return false;
    }
    *nanoseconds = (int64_t)(microseconds * 1000);
    return true;
}

/* Parses "25/15": GB/s and microseconds. */
static bool parse_price(const char *text, struct price *price)
{
    char *end;
    double rate = strtod(text, &end);

    if (end == text || *end != '/' || !(rate >= 1e-4)) {
        return false;
    }
    price->per_byte = 1 / rate;
    return parse_microseconds(end + 1, &price->latency);
}

static const char *const names[KINDS] = {"h2h", "h2d", "d2h", "d2d"};

/* Parses what each further element of a batch costs: "batch" of every kind, "batch-h2d" of one. */
static bool parse_batch(struct cost *cost, const char *name, const char *value)
{
    bool found = false;
    enum sim_kind kind;

    for (kind = KIND_H2D; kind < KINDS; kind++) {
        if (*name == '\0' || (*name == '-' && strcmp(name + 1, names[kind]) == 0)) {
            found = true;
            if (!parse_microseconds(value, &cost->kinds[kind].further)) {
                return false;
            }
        }
    }
    return found;
}

static bool parse_part(struct cost *cost, const char *name, const char *value)
{
    enum sim_kind kind;

    if (strncmp(name, "batch", 5) == 0) {
        return parse_batch(cost, name + 5, value);
    }
    if (strcmp(name, "row") == 0) {
        return parse_microseconds(value, &cost->row);
    }
    if (strcmp(name, "kernel") == 0) {
        return parse_microseconds(value, &cost->kernel);
    }
    if (strcmp(name, "pageable") == 0) {
        return parse_price(value, &cost->pageable);
    }
    for (kind = KIND_H2D; kind < KINDS; kind++) {
        if (strcmp(name, names[kind]) == 0) {
            return parse_price(value, &cost->kinds[kind]);
        }
    }
    return false;
}

/* Parses a list of costs. With profiles_too, a part may be the name of a profile. */
static int parse_list(struct cost *cost, const char *spec, bool profiles_too)
{
    char text[2 * SIM_MESSAGE_MAX], *part, *rest, *value;
    size_t i;

    if (snprintf(text, sizeof text, "%s", spec) >= (int)sizeof text) {
        return sim_fail(SIM_INVALID, "a list of costs of more than %zu characters", sizeof text - 1);
    }
    for (part = strtok_r(text, ",", &rest); part != NULL; part = strtok_r(NULL, ",", &rest)) {
        bool known = false;

        for (i = 0; profiles_too && i < sizeof profiles / sizeof *profiles && !known; i++) {
            known = strcmp(part, profiles[i].name) == 0 && parse_list(cost, profiles[i].costs, false) == SIM_OK;
        }
        if (known) {
            continue;
        }
        value = part;
        strsep(&value, "=");
        if (value == NULL || !parse_part(cost, part, value)) {
            return sim_fail(SIM_INVALID, "the cost %s=%s is no KIND=GBPS/MICROSECONDS, batch=MICROSECONDS or profile",
                            part, value != NULL ? value : "");
        }
    }
    return SIM_OK;
}

int sim_parse_cost(const char *spec)
{
    struct cost cost = free_of_charge;
    int result = SIM_OK;

    if (spec == NULL || strcmp(spec, "0") != 0) {
        parse_list(&cost, defaults, false);
        result = parse_list(&cost, spec != NULL ? spec : "", true);
    }
    if (result == SIM_OK) {
        current = cost;
    }
    return result;
}
