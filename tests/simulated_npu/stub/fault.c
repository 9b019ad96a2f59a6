/* Faults on purpose: $NPUSIM_FAULT says which call fails, on which card, from which time on, and how. */
#define _GNU_SOURCE
#include "machine.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_FAULTS = 32 };

/* name[@card][+calls]=code|hang|kill   or a word:   lost@card[+calls]   busy@card */
typedef struct {
    char name[64];
    int card;  /* -1: every card */
    int spare; /* calls that still succeed */
    int code;
    int hang, kill;
} Fault;

static Fault faults[MAX_FAULTS];
static int fault_count = -1;
static __thread char last_text[1024];

static void parse(const char *item, Fault *fault) {
    memset(fault, 0, sizeof *fault);
    fault->card = -1;
    size_t length = strcspn(item, "@+=");
    snprintf(fault->name, sizeof fault->name, "%.*s", (int)length, item);
    const char *at = item + length;
    if (*at == '@') fault->card = (int)strtol(at + 1, (char **)&at, 10);
    if (*at == '+') fault->spare = (int)strtol(at + 1, (char **)&at, 10);
    if (*at != '=') return;
    fault->hang = strcmp(at + 1, "hang") == 0;
    fault->kill = strcmp(at + 1, "kill") == 0;
    fault->code = atoi(at + 1);
}

static void load(void) {
    const char *given = getenv("NPUSIM_FAULT");
    char text[2048], *rest = NULL;
    int count = 0;
    snprintf(text, sizeof text, "%s", given ? given : "");
    for (char *item = strtok_r(text, ";", &rest); item && count < MAX_FAULTS; item = strtok_r(NULL, ";", &rest)) {
        parse(item, &faults[count++]);
    }
    fault_count = count;
}

static Fault *find(const char *name, int physical) {
    if (fault_count < 0) load();
    for (int i = 0; i < fault_count; i++) {
        if (strcmp(faults[i].name, name) == 0 && (faults[i].card < 0 || faults[i].card == physical)) return &faults[i];
    }
    return NULL;
}

int fault_says(const char *word, int physical) { return find(word, physical) != NULL; }

const char *fault_text(void) { return last_text; }

static const char *reason_of(int code) {
    switch (code) {
        case INVALID_DEVICE: return "EE1001: The argument is invalid.Reason: Set device failed, invalid device.";
        case CONTEXT_NULL: return "EE1001: The argument is invalid. Reason: the context is empty, set a device first.";
        case STREAM_CAPTURED: return "EE1001: The argument is invalid. Reason: the stream is captured.";
        case STREAM_NOT_CAPTURED: return "EE1001: The argument is invalid. Reason: the stream is not in capture status.";
        case CAPTURE_MODE_NOT_SUPPORTED:
            return "EE1001: The argument is invalid. Reason: a stream is captured, the current operation is not supported.";
        case CAPTURE_UNMATCHED: return "EE1001: The argument is invalid. Reason: the capture was not begun on this stream.";
        case CAPTURE_INVALIDATED: return "EE9999: Inner Error! The capture status is invalidated.";
        case OUT_OF_MEMORY: return "EL0004: Failed to allocate memory. Possible Cause: Available memory is insufficient.";
        case LOST_HEARTBEAT: return "EE9999: Inner Error! the heartbeat of the device is lost.";
        case DEVICE_OPEN_FAILED: return "EE9999: Inner Error! halDeviceOpen failed, the device cannot be opened.";
        case 507011: case 507018: return "EE9999: Inner Error! Aicpu kernel execute failed.";
        case 507014: return "EZ9999: Inner Error! The aicore execution times out.";
        case 507015: case 507035: return "EZ9999: Inner Error! The aicore execution is abnormal.";
        case 507046: return "EE1002: Stream synchronize timed out.";
        case 507048: return "EI0002: The wait execution of the Notify register times out.";
        default: return "EE9999: Inner Error!";
    }
}

/* What aclGetRecentErrMsg will say, in the runtime's manner: message code, then the call that failed. */
int fault_set_text(const char *text, int code, const char *call) {
    const char *given = getenv("NPUSIM_FAULT_TEXT");
    snprintf(last_text, sizeof last_text, "%s\n        TraceBack (most recent call last):\n        %s failed, result = %d.\n",
             given ? given : text, call, code);
    return code;
}

int fault_set(int code, const char *call) { return fault_set_text(reason_of(code), code, call); }

static int pending;
static char pending_call[64];

void fault_set_later(int code, const char *call) {
    snprintf(pending_call, sizeof pending_call, "%s", call);
    __atomic_store_n(&pending, code, __ATOMIC_RELEASE);
}

int fault_pending(void) {
    int code = __atomic_load_n(&pending, __ATOMIC_ACQUIRE);
    return code ? fault_set(code, pending_call) : OK;
}

int fault_check(const char *call, int physical) {
    Fault *lost = find("lost", physical);
    if (lost && physical >= 0 && __atomic_fetch_sub(&lost->spare, 1, __ATOMIC_RELAXED) <= 0) {
        lost->spare = 0;
        return fault_set(strcmp(call, "aclrtSetDevice") == 0 ? DEVICE_OPEN_FAILED : LOST_HEARTBEAT, call);
    }
    Fault *fault = find(call, physical);
    if (!fault || __atomic_fetch_sub(&fault->spare, 1, __ATOMIC_RELAXED) > 0) return OK;
    fault->spare = 0;
    if (fault->kill) kill(getpid(), SIGKILL);
    while (fault->hang) sleep(1000);
    return fault->code ? fault_set(fault->code, call) : OK;
}
