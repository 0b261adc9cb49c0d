/*
 * The loader's functions. Forks of the process wait until they have returned: glibc lets a thread fork while another opens
 * a library, and the child then has the loader's state of that moment. For example, the parent has already unmapped
 * ld.so.cache, and the child's loader unmaps that address again, whatever is mapped there by then.
 */
#ifndef KVFERRY_DL_H
#define KVFERRY_DL_H

/* dlopen(3), dlclose(3). A fork waits for them, except one by the library's own code that they run. */
void *kvferry_dl_open(const char *path, int flags);
void kvferry_dl_close(void *library);

/* The number of libraries that the process has loaded so far, those included that it has unloaded. A fork waits for it. */
unsigned long long kvferry_dl_loads(void);

#endif
