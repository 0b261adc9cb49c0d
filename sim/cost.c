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
};

struct cost {
    struct price kinds[KINDS], pageable;
    int64_t batch_element; /* each further one of a batched copy */
};

static const char defaults[] = "d2h=25/15,h2d=25/15,d2d=1000/2,pageable=3/15,batch=1";
static const struct cost free_of_charge;
static struct cost current; /* free before the variables are read */

int64_t sim_copy_cost(enum sim_kind kind, bool pageable, size_t size, size_t elements)
{
    const struct price *price = pageable ? &current.pageable : &current.kinds[kind];
    int64_t further = (int64_t)(elements - 1) * current.batch_element;

    return price->latency + further + (int64_t)((double)size * price->per_byte);
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

static bool parse_part(struct cost *cost, const char *name, const char *value)
{
    static const char *const names[KINDS] = {"h2h", "h2d", "d2h", "d2d"};
    enum sim_kind kind;

    if (strcmp(name, "batch") == 0) {
        return parse_microseconds(value, &cost->batch_element);
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

int sim_parse_cost(const char *spec)
{
    struct cost cost = free_of_charge;
    char text[2 * SIM_MESSAGE_MAX], *part, *rest, *value;

    if (spec != NULL && strcmp(spec, "0") == 0) {
        current = cost;
        return SIM_OK;
    }
    if (snprintf(text, sizeof text, "%s,%s", defaults, spec != NULL ? spec : "") >= (int)sizeof text) {
        return sim_fail(SIM_INVALID, "a list of costs of more than %zu characters", sizeof text - sizeof defaults);
    }
    for (part = strtok_r(text, ",", &rest); part != NULL; part = strtok_r(NULL, ",", &rest)) {
        value = part;
        strsep(&value, "=");
        if (value == NULL || !parse_part(&cost, part, value)) {
            return sim_fail(SIM_INVALID, "the cost %s=%s is neither KIND=GBPS/MICROSECONDS nor batch=MICROSECONDS",
                            part, value != NULL ? value : "");
        }
    }
    current = cost;
    return SIM_OK;
}
