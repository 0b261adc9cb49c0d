/* The report: leaks, misuse, calls and copies. */
#include "report.h"

#include "call.h"
#include "event.h"
#include "streams.h"
#include "virtual.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_OF(name) #name,
static const char *const misuse_names[MISUSES] = {SIM_MISUSES(NAME_OF)};
static const char *const kind_names[KINDS] = {"h2h", "h2d", "d2h", "d2d"};

/* A string that is appended to. Its length counts what did not fit, too. */
struct text {
    char *out;
    size_t size, length;
};

static void add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(struct text *text, const char *format, ...)
{
    size_t room = text->length < text->size ? text->size - text->length : 0;
    va_list arguments;
    int written;

    va_start(arguments, format);
    written = vsnprintf(room > 0 ? text->out + text->length : NULL, room, format, arguments);
    va_end(arguments);
    text->length += written > 0 ? (size_t)written : 0;
}

static void add_leaks(struct text *text)
{
    static const enum sim_memory device_memory[] = {MEMORY_DEVICE, MEMORY_MANAGED};
    static const enum sim_memory host_memory[] = {MEMORY_HOST, MEMORY_REGISTERED};
    size_t allocations, bytes, ranges;
    long sets = 0;
    int device;

    for (device = 0; device < sim.devices; device++) {
        sets += sim.device[device].retained;
    }
    sim_count_virtual(&allocations, &bytes, &ranges);
    sim_count_memory(device_memory, 2, &allocations, &bytes);
    add(text, "  \"leaked\": {\"device_allocations\": %zu, \"device_bytes\": %zu, ", allocations, bytes);
    allocations = bytes = 0;
    sim_count_memory(host_memory, 2, &allocations, &bytes);
    add(text, "\"host_allocations\": %zu, \"host_bytes\": %zu, \"virtual_ranges\": %zu, ", allocations, bytes, ranges);
    add(text, "\"streams\": %zu, \"events\": %zu, \"device_sets\": %ld},\n", sim_count_streams(), sim_count_events(),
        sets);
}

static void add_counts(struct text *text, const char *name, const char *const *names, const uint64_t *counts, size_t n)
{
    const char *separator = "";
    size_t i;

    add(text, "  \"%s\": {", name);
    for (i = 0; i < n; i++) {
        add(text, "%s\"%s\": %llu", separator, names[i], (unsigned long long)counts[i]);
        separator = ", ";
    }
    add(text, "},\n");
}

static void add_devices(struct text *text)
{
    int i;

    add(text, "  \"devices\": [");
    for (i = 0; i < sim.devices; i++) {
        const struct device *device = &sim.device[i];

        add(text, "%s{\"sets\": %ld, \"resets\": %ld, \"lost\": %s}", i > 0 ? ", " : "", device->sets, device->resets,
            device->lost ? "true" : "false");
    }
    add(text, "]\n");
}

size_t sim_write_report(char *out, size_t size)
{
    struct text text = {out, size, 0};
    const struct counters *counters = &sim.counters;

    add(&text, "{\n");
    add_leaks(&text);
    add_counts(&text, "misuse", misuse_names, counters->misuses, MISUSES);
    add_counts(&text, "copies", kind_names, counters->copies, KINDS);
    add_counts(&text, "copied_bytes", kind_names, counters->copied_bytes, KINDS);
    add(&text, "  \"pageable_copies\": %llu,\n", (unsigned long long)counters->pageable_copies);
    add(&text, "  \"executed\": %llu,\n", (unsigned long long)counters->executed);
    add(&text, "  \"busy_streams\": %zu,\n", sim_count_busy_streams());
    add(&text, "  \"worked_ns\": %lld,\n", (long long)counters->worked);
    add(&text, "  \"faults\": %llu,\n", (unsigned long long)counters->faults);
    add_counts(&text, "calls", sim_api.calls, counters->calls, (size_t)sim_api.call_count);
    add_devices(&text);
    add(&text, "}\n");
    return text.length;
}

/* Opens the report's file, whose name has the suffix of this library. */
static FILE *open_report(const char *where)
{
    char name[4096];

    if (snprintf(name, sizeof name, "%s%s", where, sim_api.report_suffix) >= (int)sizeof name) {
        return NULL;
    }
    return fopen(name, "w");
}

static void write_report(const char *where)
{
    size_t length = sim_write_report(NULL, 0);
    char *report = malloc(length + 1);
    bool standard = strcmp(where, "stderr") == 0;
    FILE *file = report == NULL ? NULL : standard ? stderr : open_report(where);

    if (file == NULL) {
        fprintf(stderr, SIM_NAME ": no report can be written to %s%s\n", where, sim_api.report_suffix);
    } else {
        sim_write_report(report, length + 1);
        fputs(report, file);
        if (!standard) {
            fclose(file);
        }
    }
    free(report);
}

/* Prints one line, where something was misused. */
static void print_misuse(void)
{
    char line[1024];
    struct text text = {line, sizeof line, 0};
    size_t i;

    for (i = 0; i < MISUSES; i++) {
        if (sim.counters.misuses[i] > 0) {
            add(&text, " %s %llu", misuse_names[i], (unsigned long long)sim.counters.misuses[i]);
        }
    }
    if (text.length > 0) {
        fprintf(stderr, SIM_NAME ": %s was misused:%s\n", sim_api.runtime, line);
    }
}

/* Called at the end of the process. Workers may still run. */
__attribute__((destructor)) static void report_at_exit(void)
{
    const char *where = getenv("KVFERRY_SIM_REPORT");

    if (!sim_begin_control()) {
        return;
    }
    if (where != NULL && *where != '\0') {
        write_report(where);
    } else {
        print_misuse();
    }
    pthread_mutex_unlock(&sim.lock);
}
