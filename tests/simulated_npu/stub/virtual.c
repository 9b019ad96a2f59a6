/* Virtual memory of expandable segments: an address range, and pages that are mapped into it and may be shared. */
#define _GNU_SOURCE
#include "machine.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE };

/* Pages of a card, mapped once at most. */
typedef struct Pages {
    size_t bytes;
    int card; /* -1: of another process, which pays for them */
    int file; /* that processes share, 0 while there is none */
    char *at;
    struct Pages *next; /* among those that are mapped */
} Pages;

static Pages *mapped;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

int aclrtReserveMemAddress(void **pointer, size_t bytes, size_t alignment, void *wish, uint64_t flags) {
    *pointer = mmap(wish, bytes, PROT_NONE, RESERVED, -1, 0);
    return *pointer == MAP_FAILED ? fault_set(OUT_OF_MEMORY, __func__) : OK;
}

int aclrtReleaseMemAddress(void *pointer) { return OK; }

static Pages *create(size_t bytes, int card, int file) {
    Pages *pages = calloc(1, sizeof *pages);
    *pages = (Pages){.bytes = bytes, .card = card, .file = file};
    return pages;
}

int aclrtMallocPhysical(void **handle, size_t bytes, const void *properties, uint64_t flags) {
    NEED_DEVICE();
    RETURN_FAULT();
    if (machine_take(machine_current(), bytes)) return fault_set(OUT_OF_MEMORY, __func__);
    *handle = create(bytes, machine_current(), 0);
    return OK;
}

int aclrtFreePhysical(void *handle) {
    Pages *pages = handle;
    if (pages->card >= 0) machine_give(pages->card, pages->bytes);
    if (pages->file > 0) close(pages->file);
    free(pages);
    return OK;
}

int aclrtMapMem(void *pointer, size_t bytes, size_t offset, void *handle, uint64_t flags) {
    Pages *pages = handle;
    int shared = pages->file > 0;
    int kind = shared ? MAP_SHARED : RESERVED;
    if (mmap(pointer, bytes, PROT_READ | PROT_WRITE, kind | MAP_FIXED, shared ? pages->file : -1, 0) == MAP_FAILED) {
        return fault_set(INVALID_PARAM, __func__);
    }
    pages->at = pointer;
    pthread_mutex_lock(&guard);
    pages->next = mapped;
    mapped = pages;
    pthread_mutex_unlock(&guard);
    return OK;
}

/* The addresses stay reserved; the host gets its memory back. */
int aclrtUnmapMem(void *pointer) {
    pthread_mutex_lock(&guard);
    Pages **at = &mapped;
    while (*at && (*at)->at != pointer) at = &(*at)->next;
    Pages *pages = *at;
    if (pages) *at = pages->next;
    pthread_mutex_unlock(&guard);
    if (!pages) return fault_set(INVALID_PARAM, __func__);
    mmap(pointer, pages->bytes, PROT_NONE, RESERVED | MAP_FIXED, -1, 0);
    pages->at = NULL;
    return OK;
}

/* The number names a file of this process, which processes of the same user can open. */
int aclrtMemExportToShareableHandle(void *handle, int kind, uint64_t flags, uint64_t *number) {
    Pages *pages = handle;
    pthread_mutex_lock(&guard);
    if (pages->file <= 0 && pages->at) pages->file = sharing_file(pages->at, pages->bytes);
    pthread_mutex_unlock(&guard);
    if (pages->file <= 0) return fault_set(INVALID_PARAM, __func__);
    *number = (uint64_t)getpid() << 32 | (uint32_t)pages->file;
    return OK;
}

int aclrtMemImportFromShareableHandle(uint64_t number, int id, void **handle) {
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, "/proc/%u/fd/%u", (unsigned)(number >> 32), (unsigned)number);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return fault_set(INVALID_PARAM, __func__);
    if (fstat(file, &found)) {
        close(file);
        return fault_set(INVALID_PARAM, __func__);
    }
    *handle = create((size_t)found.st_size, -1, file);
    return OK;
}
