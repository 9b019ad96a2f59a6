/* A communicator of the simulated HCCL: a file that its ranks map, with a barrier, windows and mailboxes. */
#ifndef NPUSIM_COMM_H
#define NPUSIM_COMM_H
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MAX_RANKS = 64,
    WINDOW = 4 << 20, /* bytes that a rank shows the others at a time */
    MAILBOX = 1 << 20, /* bytes on their way from one rank to another */
    NAME_LENGTH = 128,
};

/* HcclResult */
enum { HCCL_SUCCESS = 0, HCCL_PARAMETER = 1, HCCL_NOT_SUPPORTED = 5, HCCL_TIMEOUT = 9 };

/* HcclDataType and HcclReduceOp */
enum { INT8, INT16, INT32, FP16, FP32, INT64, UINT64, UINT8, UINT16, UINT32, FP64, BF16, INT128 };
enum { REDUCE_SUM, REDUCE_PROD, REDUCE_MAX, REDUCE_MIN };

/* What a rank is about to do: compared, so that ranks that diverge are found out. */
typedef struct {
    char call[32];
    uint64_t count, rounds;
    int32_t type, operation, root;
    int32_t pid;
} Intent;

typedef struct {
    uint64_t sent, received; /* bytes ever written and read; they never differ by more than MAILBOX */
} Mailbox;

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t ready, attached, arrived;
    uint64_t generation;
    Intent intents[2][MAX_RANKS]; /* of this call and of the next one, which a fast rank may begin already */
    Mailbox mailboxes[MAX_RANKS][MAX_RANKS]; /* [from][to] */
} Shared;

typedef struct {
    char name[NAME_LENGTH];
    uint32_t size, rank;
    uint64_t calls; /* that this rank has begun */
    Shared *shared;
    char *windows, *letters;
    size_t bytes;
    int failed; /* a collective timed out: the communicator is of no use any more */
} Comm;

int HcclAlltoAllV(const void *from, const uint64_t *from_counts, const uint64_t *from_places, int type, void *to,
                  const uint64_t *to_counts, const uint64_t *to_places, int to_type, void *comm, void *stream);

int comm_open(const char *name, uint32_t size, uint32_t rank, Comm **made);
void comm_close(Comm *comm);
char *window_of(Comm *comm, uint32_t rank);
int comm_barrier(Comm *comm);                       /* HCCL_SUCCESS, or HCCL_TIMEOUT after HCCL_EXEC_TIMEOUT seconds */
int comm_begin(Comm *comm, const Intent *intent);   /* a barrier that compares what ranks are about to do */
uint64_t comm_most_rounds(Comm *comm);              /* of the intents of all ranks, after comm_begin */
size_t comm_push(Comm *comm, uint32_t to, const char *bytes, size_t length);  /* bytes taken, maybe 0 */
size_t comm_pull(Comm *comm, uint32_t from, char *bytes, size_t length);      /* bytes given, maybe 0 */
int comm_pause(Comm *comm, double *waited);         /* waits for a change of mailboxes; HCCL_TIMEOUT if too long */

int hccl_check(void *stream, const char *call);      /* before a call that communicates: OK, or what it must return */
int hccl_outcome(int code, const char *call);       /* what a call returns to torch_npu for the outcome of its work */

size_t type_size(int type);
int reduce_into(void *total, const void *part, size_t count, int type, int operation);
#endif
