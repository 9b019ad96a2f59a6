/* Streams and events. Streams are synchronous: work is done when its call returns, so a missing synchronisation is never
 * caught here. */
#include "graph.h"
#include "machine.h"
#include <stdlib.h>
#include <time.h>

typedef int aclError;

static long synchronisations;

/* How often this process waited for a device: read by simnpu.trace. */
long npusim_synchronisations(void) { return synchronisations; }

static void *token(void) { return calloc(1, sizeof(Token)); }

#define CREATE(name, ...)                   \
    aclError name(void **made, ##__VA_ARGS__) { \
        NEED_DEVICE();                      \
        RETURN_FAULT();                     \
        *made = token();                    \
        return OK;                          \
    }
/* The plain call gives a thread that has no device the first one; torch_npu itself uses the other. */
aclError aclrtCreateStream(void **made) {
    if (machine_current() < 0) {
        int code = aclrtSetDevice(0);
        if (code) return code;
    }
    RETURN_FAULT();
    *made = token();
    return OK;
}

CREATE(aclrtCreateStreamWithConfig, uint32_t priority, uint32_t flags)
CREATE(aclrtCreateEvent)
CREATE(aclrtCreateEventWithFlag, uint32_t flags)
CREATE(aclrtCreateEventExWithFlag, uint32_t flags)

aclError aclrtDestroyEvent(void *event) {
    free(event);
    return OK;
}

aclError aclrtRecordEvent(void *event, void *stream) {
    RETURN_FAULT();
    if (!event) return OK;
    clock_gettime(CLOCK_MONOTONIC, &((Token *)event)->recorded);
    ((Token *)event)->capture = stream ? ((Token *)stream)->capture : 0;
    return OK;
}

/* What was recorded is done: there is nothing to wait for, but a stream that waits for a captured one is captured too. */
aclError aclrtStreamWaitEvent(void *stream, void *event) {
    graph_join(stream, event);
    return OK;
}

aclError aclrtEventElapsedTime(float *milliseconds, void *begin, void *end) {
    const struct timespec *from = &((Token *)begin)->recorded, *to = &((Token *)end)->recorded;
    *milliseconds = (float)((double)(to->tv_sec - from->tv_sec) * 1e3 + (double)(to->tv_nsec - from->tv_nsec) / 1e6);
    return OK;
}

aclError aclrtEventGetTimestamp(void *event, uint64_t *microseconds) {
    const struct timespec *at = &((Token *)event)->recorded;
    *microseconds = (uint64_t)at->tv_sec * 1000000 + (uint64_t)at->tv_nsec / 1000;
    return OK;
}

aclError aclrtQueryEventStatus(void *event, int *status) {
    RETURN_FAULT();
    *status = 1; /* complete */
    return fault_pending();
}

aclError aclrtQueryEventWaitStatus(void *event, int *status) {
    *status = 1;
    return OK;
}

aclError aclrtStreamQuery(void *stream, int *status) {
    RETURN_FAULT();
    *status = 0; /* complete */
    return OK;
}

#define WAIT(name, what, ...)                          \
    aclError name(__VA_ARGS__) {                       \
        synchronisations++;                            \
        RETURN_FAULT();                                \
        int code_ = graph_refuses_wait(what, __func__); \
        return code_ ? code_ : fault_pending();        \
    }
WAIT(aclrtSynchronizeEvent, event, void *event)
WAIT(aclrtSynchronizeStream, stream, void *stream)
WAIT(aclrtSynchronizeStreamWithTimeout, stream, void *stream, int milliseconds)
WAIT(aclrtSynchronizeDevice, NULL, void)
WAIT(aclrtSynchronizeDeviceWithTimeout, NULL, int milliseconds)

aclError aclrtDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 7;
    *greatest = 0;
    return OK;
}

aclError aclrtStreamGetId(void *stream, int *id) {
    *id = 1;
    return OK;
}
