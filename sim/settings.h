/* The environment variables. */
#ifndef SIM_SETTINGS_H
#define SIM_SETTINGS_H

void sim_read_settings(void); /* reads them at its first call only */
int sim_check_settings(void); /* SIM_INVALID where one was not understood */

#endif
