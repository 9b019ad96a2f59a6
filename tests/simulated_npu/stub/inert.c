/* Functions that torch_npu looks up and that have nothing to do here: they succeed, or report "none". */
#include "machine.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CANN_VERSION_NUMBER = 90200000 };
static const char CANN_VERSION[] = "9.2.0";

/* aclCannAttr: what a 910B and later can; earlier chips saturate instead of making infinities, and have no bf16. */
static const int ATTRIBUTES[] = {0 /* INF_NAN */, 1 /* BF16 */};

static int is_910b_or_later(void) {
    const char *name = aclrtGetSocName();
    return !strncmp(name, "Ascend910B", 10) || !strncmp(name, "Ascend910_9", 11) || !strncmp(name, "Ascend950", 9);
}

int aclGetCannAttribute(int what, int *value) {
    *value = (what == ATTRIBUTES[0] || what == ATTRIBUTES[1]) && is_910b_or_later();
    return OK;
}

int aclGetCannAttributeList(const int **list, size_t *count) {
    *list = ATTRIBUTES;
    *count = sizeof ATTRIBUTES / sizeof *ATTRIBUTES;
    return OK;
}

int aclsysGetCANNVersion(int package, void *version) {
    memset(version, 0, 64);
    memcpy(version, CANN_VERSION, sizeof CANN_VERSION);
    return OK;
}

int aclsysGetVersionStr(char *package, char *version) {
    memcpy(version, CANN_VERSION, sizeof CANN_VERSION);
    return OK;
}

int aclsysGetVersionNum(char *package, int *version) {
    *version = CANN_VERSION_NUMBER;
    return OK;
}

int aclrtGetSysParamOpt(int option, int64_t *value) {
    *value = 0;
    return OK;
}

int aclrtCtxGetSysParamOpt(int option, int64_t *value) { return aclrtGetSysParamOpt(option, value); }

int aclrtSetOpExecuteTimeOutV2(uint64_t microseconds, uint64_t *kept) {
    *kept = microseconds;
    return OK;
}

int aclrtDeviceGetBareTgid(int *pid) {
    *pid = getpid();
    return OK;
}

typedef struct {
    char *data;
    size_t bytes;
} Buffer;

void *aclCreateDataBuffer(void *data, size_t bytes) {
    Buffer *buffer = malloc(sizeof *buffer);
    *buffer = (Buffer){data, bytes};
    return buffer;
}
int aclDestroyDataBuffer(void *buffer) {
    free(buffer);
    return OK;
}
void *aclCreateTensorDesc(int type, int dimensions, const int64_t *sizes, int format) { return calloc(1, 64); }
void aclDestroyTensorDesc(void *desc) { free(desc); }

#define DOES_NOTHING(name) \
    int name(void) { return OK; }
DOES_NOTHING(aclAppLog)
DOES_NOTHING(aclGenGraphAndDumpForOp)
DOES_NOTHING(aclGetTensorDescDimV2)
DOES_NOTHING(aclGetTensorDescFormat)
DOES_NOTHING(aclGetTensorDescNumDims)
DOES_NOTHING(aclGetTensorDescType)
DOES_NOTHING(aclSetCompileopt)
DOES_NOTHING(aclSetTensorDescName)
DOES_NOTHING(aclSetTensorFormat)
DOES_NOTHING(aclSetTensorPlaceMent)
DOES_NOTHING(aclSetTensorShape)
DOES_NOTHING(aclmdlFinalizeDump)
DOES_NOTHING(aclmdlInitDump)
DOES_NOTHING(aclmdlRICaptureThreadExchangeMode)
DOES_NOTHING(aclmdlRIDebugPrint)
DOES_NOTHING(aclmdlSetDump)
DOES_NOTHING(aclopCreateAttr)
DOES_NOTHING(aclopDestroyAttr)
DOES_NOTHING(aclopSetAttrBool)
DOES_NOTHING(aclopSetAttrDataType)
DOES_NOTHING(aclopSetAttrFloat)
DOES_NOTHING(aclopSetAttrInt)
DOES_NOTHING(aclopSetAttrListBool)
DOES_NOTHING(aclopSetAttrListFloat)
DOES_NOTHING(aclopSetAttrListInt)
DOES_NOTHING(aclopSetAttrListListInt)
DOES_NOTHING(aclopSetAttrString)
DOES_NOTHING(aclopSetCompileFlag)
DOES_NOTHING(aclrtCmoAsync)
DOES_NOTHING(aclrtCtxSetSysParamOpt)
DOES_NOTHING(aclrtDestroyStream)
DOES_NOTHING(aclrtDestroyStreamForce)
DOES_NOTHING(aclrtDeviceEnablePeerAccess)
DOES_NOTHING(aclrtIpcMemSetImportPid)
DOES_NOTHING(aclrtMemSetPidToShareableHandle)
DOES_NOTHING(aclrtPeekAtLastError)
DOES_NOTHING(aclrtProcessReport)
DOES_NOTHING(aclrtResetEvent)
DOES_NOTHING(aclrtSetDefaultSearchStream)
DOES_NOTHING(aclrtSetDeviceSatMode)
DOES_NOTHING(aclrtSetExceptionInfoCallback)
DOES_NOTHING(aclrtSetOpExecuteTimeOut)
DOES_NOTHING(aclrtSetOpWaitTimeout)
DOES_NOTHING(aclrtSetStreamAttribute)
DOES_NOTHING(aclrtSetStreamFailureMode)
DOES_NOTHING(aclrtSetStreamOverflowSwitch)
DOES_NOTHING(aclrtSetSysParamOpt)
DOES_NOTHING(aclrtSubscribeReport)
DOES_NOTHING(aclrtUnSubscribeReport)
DOES_NOTHING(aclrtUseStreamResInCurrentThread)
DOES_NOTHING(MsprofGetHashId)
DOES_NOTHING(MsprofRegisterCallback)
DOES_NOTHING(MsprofReportAdditionalInfo)
DOES_NOTHING(MsprofReportApi)
DOES_NOTHING(MsprofReportCompactInfo)
DOES_NOTHING(MsprofSysCycleTime)

/* Functions that would have to do something: a caller must hear that they cannot. */
#define IS_REFUSED(name) \
    int name(void) { return fault_set(NOT_SUPPORTED, #name); }

static int fill(const Buffer *value, Buffer *to) {
    for (size_t at = 0; value->bytes && at + value->bytes <= to->bytes; at += value->bytes) {
        memcpy(to->data + at, value->data, value->bytes);
    }
    return OK;
}

/* Along the first axis: one after the other. */
static int pack(int count, const Buffer *const *parts, Buffer *to) {
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        if (at + parts[i]->bytes > to->bytes) return fault_set(INVALID_PARAM, "Pack");
        memcpy(to->data + at, parts[i]->data, parts[i]->bytes);
        at += parts[i]->bytes;
    }
    return OK;
}

/* Of one axis: the paddings are two numbers, the value is one of the input's type. */
static int pad(const Buffer *from, const Buffer *paddings, const Buffer *value, Buffer *to) {
    size_t before = (size_t)((const int64_t *)paddings->data)[0] * value->bytes;
    if (paddings->bytes != 2 * sizeof(int64_t) || before + from->bytes > to->bytes) return fault_set(INVALID_PARAM, "PadV3");
    fill(value, to);
    memcpy(to->data + before, from->data, from->bytes);
    return OK;
}

/* torch_npu's process group fills, pads and stacks tensors by this older way, past the dispatcher; no other operator comes
 * here. The inputs of Fill are the sizes, and one value of the output's type. */
int aclopCompileAndExecute(const char *type, int inputs, const void *const *input_descs, const Buffer *const *input,
                           int outputs, const void *const *output_descs, Buffer *const *output) {
    if (strcmp(type, "Fill") == 0 && inputs == 2 && outputs == 1) return fill(input[1], output[0]);
    if (strcmp(type, "PadV3") == 0 && inputs == 3 && outputs == 1) return pad(input[0], input[1], input[2], output[0]);
    if (strcmp(type, "Pack") == 0 && outputs == 1) return pack(inputs, input, output[0]);
    char text[128];
    snprintf(text, sizeof text, "npusim: the older operator %.32s of %d inputs and %d outputs is not simulated", type,
             inputs, outputs);
    return fault_set_text(text, NOT_SUPPORTED, __func__);
}
IS_REFUSED(aclrtBinaryGetFunction)
IS_REFUSED(aclrtBinaryLoadFromData)
IS_REFUSED(aclrtGetFunctionAddr)
IS_REFUSED(rtDevBinaryRegister)
IS_REFUSED(rtFunctionRegister)
IS_REFUSED(rtGetC2cCtrlAddr)
IS_REFUSED(rtKernelLaunch)
