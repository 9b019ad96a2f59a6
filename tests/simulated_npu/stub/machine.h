/* The simulated machine: cards, memory shared by processes, faults. Settings come from the environment. */
#ifndef NPUSIM_MACHINE_H
#define NPUSIM_MACHINE_H
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { MAX_CARDS = 64, MAX_PROCESSES = 512, HEADER = 4096 };

/* A 910B3 has 20 AI cores and 40 vector cores. */
enum { CUBE, VECTOR, CORE_KINDS, CUBE_COUNT = 20, VECTOR_COUNT = 40 };

/* Return codes of the real runtime (names of its error_codes/rt_error_codes.h). */
enum {
    OK = 0,
    INVALID_PARAM = 107000,
    INVALID_DEVICE = 107001,
    CONTEXT_NULL = 107002,
    STREAM_CAPTURED = 107027,
    STREAM_NOT_CAPTURED = 107029,
    CAPTURE_MODE_NOT_SUPPORTED = 107030,
    CAPTURE_UNMATCHED = 107036,
    NOT_SUPPORTED = 207000,
    OUT_OF_MEMORY = 207001,
    LOST_HEARTBEAT = 507010,
    DEVICE_OPEN_FAILED = 507033,
    CAPTURE_INVALIDATED = 507903,
};

/* One process that uses cards. The layout is read by bin/npu-smi too: keep them in step. */
typedef struct {
    int32_t pid;
    uint32_t reserved;
    uint64_t started; /* clock ticks since boot, so that a re-used pid is not taken for the old one */
    char name[16];
    uint64_t used[MAX_CARDS]; /* bytes of every physical card */
} Process;

/* Memory of a card: this in the HEADER bytes before what the caller gets. */
typedef struct {
    size_t bytes;
    int card;
    int file; /* that other processes open, 0 while there is none */
} Block;

/* A stream or an event. */
typedef struct {
    struct timespec recorded;
    uint32_t limits[CORE_KINDS];
    uint32_t capture; /* the graph that the stream is captured for, or that was when the event was recorded */
    uint32_t update;  /* the graph that replaces a group's work */
} Token;

int aclrtGetDevice(int *id);
int aclrtSetDevice(int id);
const char *aclrtGetSocName(void);
int machine_cards(void);               /* cards in the machine */
int machine_visible(int *physical);    /* cards this process may see; their physical ids */
int machine_current(void);             /* the card of this thread, or -1 */
int machine_physical(int logical);     /* the card behind a visible index */
size_t machine_capacity(void);         /* bytes of a card */
size_t machine_used(int physical);     /* bytes in use by all living processes */
int machine_take(int physical, size_t bytes); /* OK or OUT_OF_MEMORY */
void machine_give(int physical, size_t bytes);
int sharing_file(char *start, size_t bytes);  /* the file that is from now on behind this memory, or -1 */
const char *machine_folder(void); /* where processes meet: $NPUSIM_STATE, else a folder of the user */

/* Faults of $NPUSIM_FAULT, see ../README.md. fault_check returns what the call must return; it may also never
 * return ("hang", "kill"). fault_text is what the runtime says about the last failure of this thread. */
int fault_check(const char *call, int physical);
int fault_says(const char *word, int physical);
const char *fault_text(void);
int fault_set(int code, const char *call);                              /* says why, and returns code */
int fault_set_text(const char *text, int code, const char *call);       /* the same in other words */
void fault_set_later(int code, const char *call);                       /* the next wait for the device fails */
int fault_pending(void);                                                /* its code, or OK */

/* What most calls of the runtime begin with. */
#define RETURN_FAULT()                                        \
    do {                                                      \
        int code_ = fault_check(__func__, machine_current()); \
        if (code_) return code_;                              \
    } while (0)
#define NEED_DEVICE()                                                      \
    do {                                                                   \
        if (machine_current() < 0) return fault_set(CONTEXT_NULL, __func__); \
    } while (0)
#endif
