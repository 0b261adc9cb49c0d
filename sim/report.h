/* The report: leaks, misuse, calls and copies. */
#ifndef SIM_REPORT_H
#define SIM_REPORT_H

#include <stddef.h>

size_t sim_write_report(char *out, size_t size);

#endif
