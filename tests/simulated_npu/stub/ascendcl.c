/* A stub of the Ascend runtime: devices, contexts and memory, which is the host's.
 *
 * Only names, argument lists and return codes are those of the real one. */
#define _GNU_SOURCE
#include "graph.h"
#include "machine.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { READ_WRITE = PROT_READ | PROT_WRITE };
typedef int aclError;

/* As in the real runtime a thread has no device until it sets one: torch_npu relies on the error that this gives. */
static __thread int device = -1;
static int contexts[MAX_CARDS];

static int card(void) { return machine_physical(device); }

int machine_current(void) { return card(); }

/* ---- process and device ---- */

aclError aclInit(const char *config) {
    RETURN_FAULT();
    return OK;
}

aclError aclFinalize(void) { return OK; }

/* torch_npu starts a thread that asks every microsecond for finished work: on a few processors the ranks would starve
 * each other. Threads inherit how late their timers may be. */
static void calm_down(void) { prctl(PR_SET_TIMERSLACK, 2000000UL); }

aclError aclrtSetDevice(int id) {
    int visible = machine_visible(NULL);
    if (id < 0 || id >= visible) {
        char text[128];
        snprintf(text, sizeof text,
                 "EE1001: The argument is invalid.Reason: Set device failed, invalid device, set device=%d, valid device "
                 "range is [0, %d)",
                 id, visible);
        return fault_set_text(text, INVALID_DEVICE, __func__);
    }
    int code = fault_check(__func__, machine_physical(id));
    if (code) return code;
    device = id;
    calm_down();
    return OK;
}

aclError aclrtResetDevice(int id) { return OK; }

aclError aclrtGetDevice(int *id) {
    if (device < 0) return CONTEXT_NULL;
    *id = device;
    return OK;
}

aclError aclrtGetDeviceCount(uint32_t *count) {
    RETURN_FAULT();
    *count = (uint32_t)machine_visible(NULL);
    return OK;
}

/* The driver's count (libascend_hal.so) knows nothing of visible ids. */
aclError drvGetDevNum(uint32_t *count) {
    *count = (uint32_t)machine_cards();
    return OK;
}

const char *aclrtGetSocName(void) {
    const char *name = getenv("NPUSIM_SOC");
    return name ? name : "Ascend910B3";
}

const char *aclGetRecentErrMsg(void) { return fault_text(); }

aclError aclrtGetCurrentContext(void **context) {
    if (device < 0) return CONTEXT_NULL;
    *context = &contexts[device];
    return OK;
}

aclError aclrtSetCurrentContext(void *context) {
    device = (int)((int *)context - contexts);
    return OK;
}

aclError aclrtCreateContext(void **context, int id) {
    *context = &contexts[id];
    return OK;
}

aclError aclrtGetPrimaryCtxState(int id, uint32_t *flags, int *active) {
    *active = id == device;
    return OK;
}

enum { AI_CORE_NUMBER, VECTOR_CORE_NUMBER, L2_SIZE, L2_BYTES = 192 << 20 };

/* The older way to ask; torch_npu asks for the size of the cache in it. */
aclError aclGetDeviceCapability(uint32_t id, int what, int64_t *value) {
    switch (what) {
        case AI_CORE_NUMBER: *value = CUBE_COUNT; return OK;
        case VECTOR_CORE_NUMBER: *value = VECTOR_COUNT; return OK;
        case L2_SIZE: *value = L2_BYTES; return OK;
        default: return fault_set(NOT_SUPPORTED, __func__);
    }
}

enum { AI_CORES = 101, CUBE_CORES = 102, VECTOR_CORES = 201, TOTAL_MEMORY = 301, L2_CACHE = 302 };

aclError aclrtGetDeviceInfo(uint32_t id, int what, int64_t *value) {
    switch (what) {
        case AI_CORES: case CUBE_CORES: *value = CUBE_COUNT; return OK;
        case VECTOR_CORES: *value = VECTOR_COUNT; return OK;
        case TOTAL_MEMORY: *value = (int64_t)machine_capacity(); return OK;
        case L2_CACHE: *value = L2_BYTES; return OK;
        default: return fault_set(NOT_SUPPORTED, __func__);
    }
}

aclError aclrtGetLogicDevIdByUserDevId(int user, int *logic) {
    *logic = user;
    return OK;
}

aclError aclrtGetPhyDevIdByLogicDevId(int logic, int *physical) {
    *physical = machine_physical(logic);
    return OK;
}

aclError aclrtQueryDeviceStatus(int id, int *status) {
    *status = 0;
    return OK;
}

aclError aclrtGetDeviceUtilizationRate(int id, void *rates) {
    memset(rates, 0, 4 * sizeof(int32_t));
    return OK;
}

aclError aclrtDeviceCanAccessPeer(int *can, int from, int to) {
    *can = 1;
    return OK;
}

/* ---- memory ---- */

aclError aclrtMalloc(void **pointer, size_t bytes, int policy) {
    NEED_DEVICE();
    RETURN_FAULT();
    if (machine_take(card(), bytes)) return fault_set(OUT_OF_MEMORY, __func__);
    /* pages are not touched, so cards may be larger than the host */
    char *start = mmap(NULL, bytes + HEADER, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) {
        machine_give(card(), bytes);
        return fault_set(OUT_OF_MEMORY, __func__);
    }
    *(Block *)start = (Block){.bytes = bytes, .card = card()};
    *pointer = start + HEADER;
    return OK;
}

aclError aclrtMallocAlign32(void **pointer, size_t bytes, int policy) { return aclrtMalloc(pointer, bytes, policy); }

aclError aclrtFree(void *pointer) {
    if (!pointer) return OK;
    char *start = (char *)pointer - HEADER;
    Block block = *(Block *)start;
    machine_give(block.card, block.bytes);
    munmap(start, block.bytes + HEADER);
    if (block.file > 0) close(block.file);
    return OK;
}

aclError aclrtGetMemInfo(int kind, size_t *free_bytes, size_t *total) {
    /* torch_npu asks before it has set a device: device properties are read that way */
    int physical = device < 0 ? machine_physical(0) : card();
    *total = machine_capacity();
    size_t used = machine_used(physical);
    *free_bytes = used < *total ? *total - used : 0;
    return OK;
}

aclError aclrtMallocHost(void **pointer, size_t bytes) {
    RETURN_FAULT();
    return posix_memalign(pointer, 64, bytes ? bytes : 1) ? OUT_OF_MEMORY : OK;
}

aclError aclrtFreeHost(void *pointer) {
    free(pointer);
    return OK;
}

aclError aclrtHostRegister(void *pointer, uint64_t bytes, int kind, void **on_card) {
    *on_card = pointer;
    return OK;
}

aclError aclrtHostUnregister(void *pointer) { return OK; }

aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, int kind) {
    RETURN_FAULT();
    if (bytes > room) return fault_set(INVALID_PARAM, __func__);
    memmove(to, from, bytes);
    return OK;
}

aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, int kind, void *stream) {
    Graph *graph = graph_of(stream);
    if (graph && bytes <= room) graph_add_move(graph, to, from, bytes, 0);
    return aclrtMemcpy(to, room, from, bytes, kind);
}

aclError aclrtMemset(void *to, size_t room, int value, size_t bytes) {
    memset(to, value, bytes);
    return OK;
}

aclError aclrtMemsetAsync(void *to, size_t room, int value, size_t bytes, void *stream) {
    Graph *graph = graph_of(stream);
    if (graph) graph_add_move(graph, to, NULL, bytes, value);
    memset(to, value, bytes);
    return OK;
}

aclError aclrtPointerGetAttributes(const void *pointer, void *attributes) { return OK; }
