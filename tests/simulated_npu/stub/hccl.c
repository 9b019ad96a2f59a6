/* A stub of HCCL, so that torch_npu's own ProcessGroupHCCL runs: collectives of processes through shared memory.
 *
 * A collective has happened when its call returns. If peers do not come in time, the call succeeds, as it only queues
 * work on the device, and the next wait for the device reports 507048 like the real one. */
#define _GNU_SOURCE
#include "comm.h"
#include "graph.h"
#include "machine.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { ROOT_INFO_BYTES = 4108, NOTIFY_WAIT_TIMEOUT = 507048 };

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Of a call that peers did not answer the next wait for the device tells. */
int hccl_outcome(int code, const char *call) {
    if (code == HCCL_TIMEOUT) {
        fault_set_later(NOTIFY_WAIT_TIMEOUT, call);
        return HCCL_SUCCESS;
    }
    if (code == HCCL_PARAMETER) fault_set_text("EI0005: The arguments for collective communication are inconsistent between ranks.", code, call);
    return code;
}

/* Before any call that communicates. A graph would have to meet the peers again at each replay. */
int hccl_check(void *stream, const char *call) {
    if (!graph_of(stream)) return fault_check(call, machine_current());
    return fault_set_text("npusim: communication on a captured stream is not simulated.", HCCL_NOT_SUPPORTED, call);
}

static int begin(Comm *comm, void *stream, const char *call, uint64_t count, int type, int operation, int root, uint64_t rounds) {
    int code = hccl_check(stream, call);
    if (code) return code;
    Intent intent = {.count = count, .rounds = rounds, .type = type, .operation = operation, .root = root, .pid = getpid()};
    snprintf(intent.call, sizeof intent.call, "%s", call);
    return comm_begin(comm, &intent);
}

/* ---- communicators ---- */

int HcclGetRootInfo(char *info) {
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, 0) != sizeof random) return HCCL_PARAMETER;
    memset(info, 0, ROOT_INFO_BYTES);
    snprintf(info, NAME_LENGTH, "%d-%016llx", getpid(), (unsigned long long)random);
    return fault_check(__func__, machine_current());
}

int HcclCommInitRootInfo(uint32_t size, const char *info, uint32_t rank, void **made) {
    int code = fault_check(__func__, machine_current());
    if (code) return code;
    code = comm_open(info, size, rank, (Comm **)made);
    if (code == HCCL_TIMEOUT) {
        fault_set_text("EI0006: Getting socket times out. Reason: some ranks did not connect within HCCL_CONNECT_TIMEOUT.", code, __func__);
    }
    return code;
}

int HcclCommInitRootInfoConfig(uint32_t size, const char *info, uint32_t rank, const void *config, void **made) {
    return HcclCommInitRootInfo(size, info, rank, made);
}

int HcclCommDestroy(void *comm) {
    comm_close(comm);
    return HCCL_SUCCESS;
}

int HcclGetCommName(void *comm, char *name) {
    snprintf(name, NAME_LENGTH, "%s", ((Comm *)comm)->name);
    return HCCL_SUCCESS;
}

int HcclGetCommAsyncError(void *comm, int *error) {
    *error = HCCL_SUCCESS;
    return HCCL_SUCCESS;
}

int HcclGetRankSize(void *comm, uint32_t *size) {
    *size = ((Comm *)comm)->size;
    return HCCL_SUCCESS;
}

int HcclGetRankId(void *comm, uint32_t *rank) {
    *rank = ((Comm *)comm)->rank;
    return HCCL_SUCCESS;
}

int HcclSetConfig(int what, int value) { return HCCL_SUCCESS; }

/* Nothing that a communicator's configuration could change is simulated. */
uint32_t HcclGetCommConfigCapability(void) { return 0; }

/* ---- collectives: show a piece, meet, read the others' pieces, meet again ---- */

/* Every rank's `bytes` reach every rank in pieces; `use` is called for each piece of each rank. */
typedef int (*Use)(void *context, uint32_t rank, size_t offset, const char *piece, size_t bytes);

static int show_and_read(Comm *comm, const char *bytes, size_t length, Use use, void *context) {
    for (size_t offset = 0; offset < length; offset += WINDOW) {
        size_t piece = smaller(WINDOW, length - offset);
        if (bytes) memcpy(window_of(comm, comm->rank), bytes + offset, piece);
        int code = comm_barrier(comm);
        for (uint32_t rank = 0; !code && rank < comm->size; rank++) {
            code = use(context, rank, offset, window_of(comm, rank), piece);
        }
        if (!code) code = comm_barrier(comm);
        if (code) return code;
    }
    return HCCL_SUCCESS;
}

typedef struct {
    char *to;
    size_t length;
    int type, operation, wanted, root;
} Target;

static int add_up(void *context, uint32_t rank, size_t offset, const char *piece, size_t bytes) {
    Target *target = context;
    if (!target->wanted) return HCCL_SUCCESS;
    if (rank == 0) {
        memcpy(target->to + offset, piece, bytes);
        return HCCL_SUCCESS;
    }
    return reduce_into(target->to + offset, piece, bytes / type_size(target->type), target->type, target->operation);
}

static int place(void *context, uint32_t rank, size_t offset, const char *piece, size_t bytes) {
    Target *target = context;
    memcpy(target->to + rank * target->length + offset, piece, bytes);
    return HCCL_SUCCESS;
}

static int take_from_root(void *context, uint32_t rank, size_t offset, const char *piece, size_t bytes) {
    Target *target = context;
    if (target->wanted && (int)rank == target->root) memcpy(target->to + offset, piece, bytes);
    return HCCL_SUCCESS;
}

int HcclAllReduce(void *from, void *to, uint64_t count, int type, int operation, void *comm, void *stream) {
    int code = begin(comm, stream, __func__, count, type, operation, 0, 0);
    Target target = {.to = to, .type = type, .operation = operation, .wanted = 1};
    if (!code) code = show_and_read(comm, from, count * type_size(type), add_up, &target);
    return hccl_outcome(code, __func__);
}

int HcclReduce(void *from, void *to, uint64_t count, int type, int operation, uint32_t root, void *comm, void *stream) {
    int code = begin(comm, stream, __func__, count, type, operation, (int)root, 0);
    Target target = {.to = to, .type = type, .operation = operation, .wanted = ((Comm *)comm)->rank == root};
    if (!code) code = show_and_read(comm, from, count * type_size(type), add_up, &target);
    return hccl_outcome(code, __func__);
}

int HcclAllGather(void *from, void *to, uint64_t count, int type, void *comm, void *stream) {
    int code = begin(comm, stream, __func__, count, type, 0, 0, 0);
    Target target = {.to = to, .length = count * type_size(type)};
    if (!code) code = show_and_read(comm, from, target.length, place, &target);
    return hccl_outcome(code, __func__);
}

int HcclBroadcast(void *buffer, uint64_t count, int type, uint32_t root, void *comm, void *stream) {
    int code = begin(comm, stream, __func__, count, type, 0, (int)root, 0);
    int is_root = ((Comm *)comm)->rank == root;
    Target target = {.to = buffer, .wanted = !is_root, .root = (int)root};
    if (!code) code = show_and_read(comm, is_root ? buffer : NULL, count * type_size(type), take_from_root, &target);
    return hccl_outcome(code, __func__);
}

int HcclBarrier(void *comm, void *stream) { return hccl_outcome(begin(comm, stream, __func__, 0, 0, 0, 0, 0), __func__); }

/* ---- collectives in which every pair of ranks has a piece of its own ---- */

typedef struct {
    const char *from;           /* NULL: this rank gives nothing */
    const uint64_t *from_bytes; /* for every rank, and where they start */
    const uint64_t *from_start;
    char *to;
    const uint64_t *to_bytes; /* from every rank, and where they go */
    const uint64_t *to_start;
    int reduces, type, operation; /* add up what comes instead of placing it */
} Exchange;

static int read_round(Comm *comm, const Exchange *x, size_t offset, size_t slot) {
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        if (x->to_bytes[rank] <= offset) continue;
        size_t bytes = smaller(slot, x->to_bytes[rank] - offset);
        const char *piece = window_of(comm, rank) + comm->rank * slot;
        char *to = x->to + x->to_start[rank] + offset;
        if (x->reduces && rank > 0) {
            int code = reduce_into(to, piece, bytes / type_size(x->type), x->type, x->operation);
            if (code) return code;
        } else {
            memcpy(to, piece, bytes);
        }
    }
    return HCCL_SUCCESS;
}

static int exchange(Comm *comm, void *stream, const char *call, const Exchange *x, uint64_t count, int type, int operation, int root) {
    size_t slot = WINDOW / comm->size / 16 * 16, most = 0;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        if (x->from && x->from_bytes[rank] > most) most = x->from_bytes[rank];
        if (x->to_bytes[rank] > most) most = x->to_bytes[rank];
    }
    int code = begin(comm, stream, call, count, type, operation, root, (most + slot - 1) / slot);
    uint64_t rounds = code ? 0 : comm_most_rounds(comm);
    for (uint64_t round = 0; round < rounds && !code; round++) {
        size_t offset = round * slot;
        for (uint32_t rank = 0; x->from && rank < comm->size; rank++) {
            if (x->from_bytes[rank] <= offset) continue;
            size_t bytes = smaller(slot, x->from_bytes[rank] - offset);
            memcpy(window_of(comm, comm->rank) + rank * slot, x->from + x->from_start[rank] + offset, bytes);
        }
        code = comm_barrier(comm);
        if (!code) code = read_round(comm, x, offset, slot);
        if (!code) code = comm_barrier(comm);
    }
    return hccl_outcome(code, call);
}

/* Equal pieces one after the other: bytes and starts for every rank. */
static void even(uint64_t *bytes, uint64_t *starts, uint32_t size, uint64_t length) {
    for (uint32_t rank = 0; rank < size; rank++) {
        bytes[rank] = length;
        starts[rank] = rank * length;
    }
}

static void scaled(uint64_t *to, const uint64_t *counts, uint32_t size, size_t unit) {
    for (uint32_t rank = 0; rank < size; rank++) to[rank] = counts[rank] * unit;
}

int HcclReduceScatter(void *from, void *to, uint64_t count, int type, int operation, void *comm, void *stream) {
    uint64_t bytes[MAX_RANKS], starts[MAX_RANKS], zeros[MAX_RANKS] = {0};
    even(bytes, starts, ((Comm *)comm)->size, count * type_size(type));
    Exchange x = {from, bytes, starts, to, bytes, zeros, 1, type, operation};
    return exchange(comm, stream, __func__, &x, count, type, operation, 0);
}

int HcclReduceScatterV(void *from, const uint64_t *counts, const uint64_t *displacements, void *to, uint64_t count,
                       int type, int operation, void *comm, void *stream) {
    uint64_t bytes[MAX_RANKS], starts[MAX_RANKS], own[MAX_RANKS], unused[MAX_RANKS], zeros[MAX_RANKS] = {0};
    uint32_t size = ((Comm *)comm)->size;
    scaled(bytes, counts, size, type_size(type));
    scaled(starts, displacements, size, type_size(type));
    even(own, unused, size, count * type_size(type));
    Exchange x = {from, bytes, starts, to, own, zeros, 1, type, operation};
    return exchange(comm, stream, __func__, &x, 0, type, operation, 0);
}

int HcclAllGatherV(void *from, uint64_t count, void *to, const uint64_t *counts, const uint64_t *displacements,
                   int type, void *comm, void *stream) {
    uint64_t own[MAX_RANKS], unused[MAX_RANKS], bytes[MAX_RANKS], starts[MAX_RANKS], zeros[MAX_RANKS] = {0};
    uint32_t size = ((Comm *)comm)->size;
    even(own, unused, size, count * type_size(type));
    scaled(bytes, counts, size, type_size(type));
    scaled(starts, displacements, size, type_size(type));
    Exchange x = {from, own, zeros, to, bytes, starts, 0, 0, 0};
    return exchange(comm, stream, __func__, &x, 0, type, 0, 0);
}

int HcclScatter(void *from, void *to, uint64_t count, int type, uint32_t root, void *comm, void *stream) {
    uint64_t bytes[MAX_RANKS], starts[MAX_RANKS], own[MAX_RANKS] = {0}, zeros[MAX_RANKS] = {0};
    even(bytes, starts, ((Comm *)comm)->size, count * type_size(type));
    own[root] = count * type_size(type);
    Exchange x = {((Comm *)comm)->rank == root ? from : NULL, bytes, starts, to, own, zeros, 0, 0, 0};
    return exchange(comm, stream, __func__, &x, count, type, 0, (int)root);
}

int HcclAlltoAllV(const void *from, const uint64_t *from_counts, const uint64_t *from_places, int type, void *to,
                  const uint64_t *to_counts, const uint64_t *to_places, int to_type, void *comm, void *stream) {
    uint64_t given[MAX_RANKS], given_at[MAX_RANKS], got[MAX_RANKS], got_at[MAX_RANKS];
    uint32_t size = ((Comm *)comm)->size;
    scaled(given, from_counts, size, type_size(type));
    scaled(given_at, from_places, size, type_size(type));
    scaled(got, to_counts, size, type_size(to_type));
    scaled(got_at, to_places, size, type_size(to_type));
    Exchange x = {from, given, given_at, to, got, got_at, 0, 0, 0};
    return exchange(comm, stream, __func__, &x, 0, type, 0, 0);
}

int HcclAlltoAll(const void *from, uint64_t count, int type, void *to, uint64_t to_count, int to_type, void *comm,
                 void *stream) {
    uint64_t bytes[MAX_RANKS], starts[MAX_RANKS];
    even(bytes, starts, ((Comm *)comm)->size, count * type_size(type));
    Exchange x = {from, bytes, starts, to, bytes, starts, 0, 0, 0};
    return exchange(comm, stream, __func__, &x, count, type, 0, 0);
}
