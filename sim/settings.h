/* The environment variables. */
#ifndef SIM_SETTINGS_H
#define SIM_SETTINGS_H

void sim_read_settings(void); /* once, when the first call is made */
int sim_check_settings(void); /* SIM_INVALID where one makes no sense: the runtime cannot be initialised then */

#endif
