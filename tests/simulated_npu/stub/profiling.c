/* Profilers find their functions and get no records: nothing runs on a device that could be timed. */
#include <stddef.h>
#include <stdint.h>

enum { MSPTI_SUCCESS = 0, MSPTI_MAX_LIMIT_REACHED = 3 };

#define DOES_NOTHING(name) \
    int name(void) { return 0; }
DOES_NOTHING(aclprofDestroyConfig)
DOES_NOTHING(aclprofDestroyStepInfo)
DOES_NOTHING(aclprofFinalize)
DOES_NOTHING(aclprofGetStepTimestamp)
DOES_NOTHING(aclprofInit)
DOES_NOTHING(aclprofMarkEx)
DOES_NOTHING(aclprofRegisterDeviceCallback)
DOES_NOTHING(aclprofSetConfig)
DOES_NOTHING(aclprofStart)
DOES_NOTHING(aclprofStop)
DOES_NOTHING(aclprofWarmup)
DOES_NOTHING(msptiActivityDisable)
DOES_NOTHING(msptiActivityEnable)
DOES_NOTHING(msptiActivityFlushAll)
DOES_NOTHING(msptiActivityIsEnabled)
DOES_NOTHING(msptiActivityPopExternalCorrelationId)
DOES_NOTHING(msptiActivityPushExternalCorrelationId)
DOES_NOTHING(msptiActivityRegisterCallbacks)
DOES_NOTHING(msptiUnsubscribe)

/* Callers only ask whether there is one. */
static char thing;

void *aclprofCreateConfig(void) { return &thing; }
void *aclprofCreateStepInfo(void) { return &thing; }

int msptiSubscribe(void **subscriber, void *callback, void *data) {
    *subscriber = &thing;
    return MSPTI_SUCCESS;
}

int msptiActivityGetNextRecord(uint8_t *buffer, size_t valid, void **record) {
    *record = NULL;
    return MSPTI_MAX_LIMIT_REACHED;
}
