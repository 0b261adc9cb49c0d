/* Copies within this process. The kernel makes them, so that an address that is not mapped gives an error and no signal. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* The most that one system call copies. The kernel's limit is below 2 GiB. */
#define COPY_STEP ((size_t)1 << 30)
#define PIPE_STEP ((size_t)1 << 16)

/* How many bytes process_vm_readv moved, or -1 and errno. */
static ssize_t copy_once(char *dst, const char *src, size_t length)
{
    struct iovec to, from;

    to.iov_base = dst;
    from.iov_base = (void *)src;
    to.iov_len = from.iov_len = length < COPY_STEP ? length : COPY_STEP;
    return process_vm_readv(getpid(), &to, 1, &from, 1, 0);
}

/* Reads exactly length bytes that are in the pipe. */
static int drain_pipe(int end, char *dst, size_t length)
{
    while (length > 0) {
        ssize_t moved = read(end, dst, length);

        if (moved <= 0) {
            return -1;
        }
        dst += moved;
        length -= (size_t)moved;
    }
    return 0;
}

/* Copies through a pipe, if process_vm_readv is forbidden. 0, or -1 and errno. */
static int copy_by_pipe(char *dst, const char *src, size_t length)
{
    int ends[2], failed = 0, saved;

    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        return -1;
    }
    while (length > 0 && !failed) {
        ssize_t moved = write(ends[1], src, length < PIPE_STEP ? length : PIPE_STEP);

        failed = moved <= 0 || drain_pipe(ends[0], dst, (size_t)moved) != 0;
        if (!failed) {
            dst += moved;
            src += moved;
            length -= (size_t)moved;
        }
    }
    saved = errno;
    close(ends[0]);
    close(ends[1]);
    errno = saved;
    return failed ? -1 : 0;
}

int kvferry_copy(void *dst, const void *src, size_t length)
{
    char *to = dst;
    const char *from = src;

    ENTER(KVFERRY_ERR_FORKED);
    while (length > 0) {
        ssize_t moved = copy_once(to, from, length);

        if (moved > 0) {
            to += moved;
            from += moved;
            length -= (size_t)moved;
        } else if ((errno == EPERM || errno == ENOSYS) && copy_by_pipe(to, from, length) == 0) {
            return 0;
        } else {
            kvferry_explain("copying %zu bytes from %p to %p: %s", length, (const void *)from, (void *)to, strerror(errno));
            return -1;
        }
    }
    return 0;
}
