/* The process's environment. The header has the rule for programs that change it. */
#include "internal.h"

#include <string.h>

/* Grows a block from malloc to at least size bytes. NULL where there is no memory; the block is freed then. */
static char *grow(char *block, size_t *capacity, size_t size)
{
    char *grown;

    if (size <= *capacity) {
        return block;
    }
    while (*capacity < size) {
        *capacity = *capacity == 0 ? 4096 : 2 * *capacity;
    }
    grown = realloc(block, *capacity);
    if (grown == NULL) {
        free(block);
    }
    return grown;
}

char *kvferry_copy_environment(size_t *length)
{
    char **entry, *block;
    size_t capacity = 0;

    *length = 0;
    block = grow(NULL, &capacity, 1);
    for (entry = environ; block != NULL && entry != NULL && *entry != NULL; entry++) {
        size_t size = strlen(*entry) + 1;

        block = grow(block, &capacity, *length + size);
        if (block != NULL) {
            memcpy(block + *length, *entry, size);
            *length += size;
        }
    }
    return block;
}
