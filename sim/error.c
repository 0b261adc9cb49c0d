/* Each thread's error text. */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>

static __thread struct {
    char text[2][SIM_MESSAGE_MAX]; /* the last one, and the last one that sim_message returned */
    bool set;
} message;

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
