/*
 * The loader's functions, with the forks of the process kept out of the middle of them. glibc lets a thread fork while
 * another opens a library, and the child then has the loader's state of that moment: a mapping of ld.so.cache, say, that is
 * already gone, and that the child's loader unmaps once more, whatever is there by then.
 */
#ifndef KVFERRY_DL_H
#define KVFERRY_DL_H

/* dlopen(3), dlclose(3). A fork waits for them, except one by the library's own code that they run. */
void *kvferry_dl_open(const char *path, int flags);
void kvferry_dl_close(void *library);

/* How many libraries the process has loaded up to now, those that were unloaded again included. A fork waits for it. */
unsigned long long kvferry_dl_loads(void);

#endif
