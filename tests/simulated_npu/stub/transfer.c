/* Sends and receives: one by one, in a batch, or all those of a group when it ends. */
#include "comm.h"
#include <pthread.h>
#include <stdlib.h>

typedef struct {
    int is_receive; /* HcclSendRecvType: 0 send, 1 receive */
    void *buffer;
    uint64_t count;
    int type;
    uint32_t peer;
} Transfer;

typedef struct {
    Transfer what;
    Comm *comm;
    size_t done;
} Job;

/* All go on together, so that two ranks that send to each other first do not wait for ever. */
static int run(Job *jobs, size_t count) {
    double waited = 0;
    for (;;) {
        size_t moved = 0;
        Comm *open = NULL;
        for (size_t i = 0; i < count; i++) {
            Job *job = &jobs[i];
            size_t left = job->what.count * type_size(job->what.type) - job->done;
            char *at = (char *)job->what.buffer + job->done;
            size_t now = job->what.is_receive ? comm_pull(job->comm, job->what.peer, at, left)
                                              : comm_push(job->comm, job->what.peer, at, left);
            job->done += now;
            moved += now;
            if (now < left) open = job->comm;
        }
        if (!open) return HCCL_SUCCESS;
        int code = moved ? HCCL_SUCCESS : comm_pause(open, &waited);
        if (code) return code;
    }
}

/* The open group. It belongs to the process: torch_npu opens it on one thread and calls on another. */
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static int depth;
static Job *group;
static size_t grouped;

static int is_left_to_group(const Job *jobs, size_t count) {
    pthread_mutex_lock(&guard);
    int inside = depth > 0;
    if (inside) {
        group = realloc(group, (grouped + count) * sizeof *group);
        for (size_t i = 0; i < count; i++) group[grouped++] = jobs[i];
    }
    pthread_mutex_unlock(&guard);
    return inside;
}

static int transfer(const Transfer *transfers, uint32_t count, void *comm, void *stream, const char *call) {
    Job jobs[count];
    int code = hccl_check(stream, call);
    for (uint32_t i = 0; i < count; i++) jobs[i] = (Job){transfers[i], comm, 0};
    if (!code && !is_left_to_group(jobs, count)) code = run(jobs, count);
    return hccl_outcome(code, call);
}

int HcclBatchSendRecv(Transfer *transfers, uint32_t count, void *comm, void *stream) {
    return transfer(transfers, count, comm, stream, __func__);
}

int HcclSend(void *buffer, uint64_t count, int type, uint32_t to, void *comm, void *stream) {
    return transfer(&(Transfer){0, buffer, count, type, to}, 1, comm, stream, __func__);
}

int HcclRecv(void *buffer, uint64_t count, int type, uint32_t from, void *comm, void *stream) {
    return transfer(&(Transfer){1, buffer, count, type, from}, 1, comm, stream, __func__);
}

int HcclGroupStart(void) {
    pthread_mutex_lock(&guard);
    depth++;
    pthread_mutex_unlock(&guard);
    return HCCL_SUCCESS;
}

int HcclGroupEnd(void) {
    Job *jobs = NULL;
    size_t count = 0;
    pthread_mutex_lock(&guard);
    if (depth > 0 && --depth == 0) {
        jobs = group, count = grouped;
        group = NULL, grouped = 0;
    }
    pthread_mutex_unlock(&guard);
    int code = run(jobs, count);
    free(jobs);
    return hccl_outcome(code, __func__);
}

/* What rank i has for rank j is counts[i * size + j], known to all; rows and columns lie one behind the other. */
int HcclAlltoAllVC(const void *from, const void *matrix, int type, void *to, int to_type, void *comm, void *stream) {
    const uint64_t *counts = matrix;
    const uint32_t size = ((Comm *)comm)->size, rank = ((Comm *)comm)->rank;
    uint64_t given[MAX_RANKS], given_at[MAX_RANKS], got[MAX_RANKS], got_at[MAX_RANKS], out = 0, in = 0;
    for (uint32_t i = 0; i < size; i++) {
        given[i] = counts[rank * size + i], given_at[i] = out, out += given[i];
        got[i] = counts[i * size + rank], got_at[i] = in, in += got[i];
    }
    return HcclAlltoAllV(from, given, given_at, type, to, got, got_at, to_type, comm, stream);
}
