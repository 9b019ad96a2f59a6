/* Sums, products, maxima and minima of the types that HCCL reduces. */
#include "comm.h"
#include <string.h>

static float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Rounds to the nearest, ties to even. */
static uint16_t to_bf16(float value) {
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    if (value != value) return 0x7fc0;
    return (uint16_t)((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

#define SAME(x) (x)
#define COMBINE(operation, a, b)                                     \
    ((operation) == REDUCE_SUM    ? (a) + (b)                        \
     : (operation) == REDUCE_PROD ? (a) * (b)                        \
     : (operation) == REDUCE_MAX  ? ((a) > (b) ? (a) : (b))          \
                                  : ((a) < (b) ? (a) : (b)))

#define REDUCER(name, stored, wide, load, store)                                              \
    static void name(void *total, const void *part, size_t count, int operation) {            \
        stored *to = total;                                                                   \
        const stored *from = part;                                                            \
        for (size_t i = 0; i < count; i++) {                                                  \
            wide a = load(to[i]), b = load(from[i]);                                          \
            to[i] = store((wide)COMBINE(operation, a, b));                                    \
        }                                                                                     \
    }
REDUCER(reduce_int8, int8_t, int8_t, SAME, SAME)
REDUCER(reduce_uint8, uint8_t, uint8_t, SAME, SAME)
REDUCER(reduce_int16, int16_t, int16_t, SAME, SAME)
REDUCER(reduce_int32, int32_t, int32_t, SAME, SAME)
REDUCER(reduce_int64, int64_t, int64_t, SAME, SAME)
REDUCER(reduce_uint64, uint64_t, uint64_t, SAME, SAME)
REDUCER(reduce_fp32, float, float, SAME, SAME)
REDUCER(reduce_fp64, double, double, SAME, SAME)
REDUCER(reduce_fp16, _Float16, float, SAME, (_Float16))
REDUCER(reduce_bf16, uint16_t, float, from_bf16, to_bf16)

size_t type_size(int type) {
    static const size_t sizes[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2, 16};
    return type >= 0 && type < (int)(sizeof sizes / sizeof *sizes) ? sizes[type] : 1; /* 8-bit floats */
}

int reduce_into(void *total, const void *part, size_t count, int type, int operation) {
    switch (type) {
        case INT8: reduce_int8(total, part, count, operation); break;
        case UINT8: reduce_uint8(total, part, count, operation); break;
        case INT16: reduce_int16(total, part, count, operation); break;
        case INT32: reduce_int32(total, part, count, operation); break;
        case INT64: reduce_int64(total, part, count, operation); break;
        case UINT64: reduce_uint64(total, part, count, operation); break;
        case FP16: reduce_fp16(total, part, count, operation); break;
        case FP32: reduce_fp32(total, part, count, operation); break;
        case FP64: reduce_fp64(total, part, count, operation); break;
        case BF16: reduce_bf16(total, part, count, operation); break;
        default: return HCCL_NOT_SUPPORTED;
    }
    return HCCL_SUCCESS;
}
