/* How many cores a card or a stream may use: kept and told, of no effect. */
#include "machine.h"
#include <string.h>

static uint32_t limits[MAX_CARDS][CORE_KINDS]; /* 0: all that there are */
static Token default_stream;

static uint32_t cores(int kind) { return kind == CUBE ? CUBE_COUNT : VECTOR_COUNT; }

static int is_valid(int id, int kind) { return id >= 0 && id < machine_visible(NULL) && kind >= 0 && kind < CORE_KINDS; }

static Token *token_of(void *stream) { return stream ? stream : &default_stream; }

int aclrtGetDeviceResLimit(int id, int kind, uint32_t *value) {
    if (!is_valid(id, kind)) return fault_set(INVALID_PARAM, __func__);
    *value = limits[id][kind] ? limits[id][kind] : cores(kind);
    return OK;
}

int aclrtSetDeviceResLimit(int id, int kind, uint32_t value) {
    if (!is_valid(id, kind) || !value || value > cores(kind)) return fault_set(INVALID_PARAM, __func__);
    limits[id][kind] = value;
    return OK;
}

int aclrtResetDeviceResLimit(int id) {
    if (!is_valid(id, CUBE)) return fault_set(INVALID_PARAM, __func__);
    memset(limits[id], 0, sizeof limits[id]);
    return OK;
}

int aclrtGetStreamResLimit(void *stream, int kind, uint32_t *value) {
    int id = 0;
    if (aclrtGetDevice(&id) || !is_valid(id, kind)) return fault_set(INVALID_PARAM, __func__);
    uint32_t own = token_of(stream)->limits[kind];
    if (!own) return aclrtGetDeviceResLimit(id, kind, value);
    *value = own;
    return OK;
}

int aclrtSetStreamResLimit(void *stream, int kind, uint32_t value) {
    if (!is_valid(0, kind) || !value || value > cores(kind)) return fault_set(INVALID_PARAM, __func__);
    token_of(stream)->limits[kind] = value;
    return OK;
}

int aclrtResetStreamResLimit(void *stream) {
    memset(token_of(stream)->limits, 0, sizeof default_stream.limits);
    return OK;
}
