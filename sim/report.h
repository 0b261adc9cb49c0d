/* The report: what is leaked, what was misused, what was called and copied. */
#ifndef SIM_REPORT_H
#define SIM_REPORT_H

#include <stddef.h>

size_t sim_write_report(char *out, size_t size);

#endif
