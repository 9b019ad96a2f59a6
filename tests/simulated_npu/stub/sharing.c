/* Memory and events that another process opens by a key. */
#define _GNU_SOURCE
#include "machine.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EVENT_HANDLE_BYTES = 64 };

typedef struct {
    char reserved[EVENT_HANDLE_BYTES];
} EventHandle;

/* What this process has opened, to be closed by its key. */
typedef struct Opened {
    char key[64];
    void *start;
    size_t bytes;
    struct Opened *next;
} Opened;

static Opened *opened;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

/* Puts a file behind memory at the same address, with what is in it; -1 where that fails. */
int sharing_file(char *start, size_t bytes) {
    int file = memfd_create("npusim", MFD_CLOEXEC);
    if (file < 0) return -1;
    for (size_t done = 0; done < bytes;) {
        ssize_t now = write(file, start + done, bytes - done);
        if (now <= 0) break;
        done += (size_t)now;
    }
    struct stat written;
    void *mapped = MAP_FAILED;
    if (!fstat(file, &written) && (size_t)written.st_size == bytes) {
        mapped = mmap(start, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    }
    if (mapped == MAP_FAILED) {
        close(file);
        return -1;
    }
    return file;
}

/* The key is a path that processes of the same user can open. */
int aclrtIpcMemGetExportKey(void *pointer, size_t bytes, char *key, size_t length, uint64_t flags) {
    Block *block = (Block *)((char *)pointer - HEADER);
    pthread_mutex_lock(&guard);
    if (block->file <= 0) block->file = sharing_file(pointer, block->bytes);
    pthread_mutex_unlock(&guard);
    if (block->file < 0) return fault_set(OUT_OF_MEMORY, __func__);
    snprintf(key, length, "/proc/%d/fd/%d", getpid(), block->file);
    return OK;
}

int aclrtIpcMemImportByKey(void **pointer, const char *key, uint64_t flags) {
    struct stat found;
    int file = open(key, O_RDWR | O_CLOEXEC);
    if (file < 0) return fault_set(INVALID_PARAM, __func__);
    void *start = MAP_FAILED;
    if (!fstat(file, &found)) start = mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (start == MAP_FAILED) return fault_set(INVALID_PARAM, __func__);
    Opened *entry = calloc(1, sizeof *entry);
    snprintf(entry->key, sizeof entry->key, "%s", key);
    entry->start = *pointer = start;
    entry->bytes = (size_t)found.st_size;
    pthread_mutex_lock(&guard);
    entry->next = opened;
    opened = entry;
    pthread_mutex_unlock(&guard);
    return OK;
}

int aclrtIpcMemClose(const char *key) {
    pthread_mutex_lock(&guard);
    Opened **at = &opened;
    while (*at && strcmp((*at)->key, key)) at = &(*at)->next;
    Opened *entry = *at;
    if (entry) *at = entry->next;
    pthread_mutex_unlock(&guard);
    if (!entry) return OK; /* the process that exported it: the memory goes with its block */
    munmap(entry->start, entry->bytes);
    free(entry);
    return OK;
}

/* Work is done when its call returns: an event of another process has nothing to wait for. */
int aclrtIpcGetEventHandle(void *event, EventHandle *handle) {
    memset(handle, 0, sizeof *handle);
    return OK;
}

int aclrtIpcOpenEventHandle(EventHandle handle, void **event) {
    *event = calloc(1, sizeof(Token));
    return OK;
}
