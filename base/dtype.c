/* SPDX-License-Identifier: Apache-2.0 */
/* Names and sizes as in safetensors 0.8 (safetensors/src/tensor.rs, enum Dtype). */
#include "base/dtype.h"

#include <assert.h>
#include <string.h>

static const struct {
    const char *name;
    unsigned bits;
} dtypes[QF_DTYPE_COUNT] = {
    [QF_F32] = {"F32", 32},
    [QF_F16] = {"F16", 16},
    [QF_BF16] = {"BF16", 16},
    [QF_BOOL] = {"BOOL", 8},
    [QF_F4] = {"F4", 4},
    [QF_F6_E2M3] = {"F6_E2M3", 6},
    [QF_F6_E3M2] = {"F6_E3M2", 6},
    [QF_U8] = {"U8", 8},
    [QF_I8] = {"I8", 8},
    [QF_F8_E5M2] = {"F8_E5M2", 8},
    [QF_F8_E4M3] = {"F8_E4M3", 8},
    [QF_F8_E8M0] = {"F8_E8M0", 8},
    [QF_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [QF_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [QF_I16] = {"I16", 16},
    [QF_U16] = {"U16", 16},
    [QF_I32] = {"I32", 32},
    [QF_U32] = {"U32", 32},
    [QF_F64] = {"F64", 64},
    [QF_I64] = {"I64", 64},
    [QF_U64] = {"U64", 64},
    [QF_C64] = {"C64", 64},
};

static const char *const torch_names[QF_FLOAT_COUNT] = {
    [QF_F32] = "float32",
    [QF_F16] = "float16",
    [QF_BF16] = "bfloat16",
};

enum qf_dtype qf_dtype_from_name(const char *name, size_t size)
{
    for (int i = 0; i < QF_DTYPE_COUNT; i++)
        if (strlen(dtypes[i].name) == size && memcmp(dtypes[i].name, name, size) == 0)
            return (enum qf_dtype)i;
    return QF_DTYPE_NONE;
}

const char *qf_dtype_name(enum qf_dtype dtype)
{
    assert(dtype < QF_DTYPE_COUNT);
    return dtypes[dtype].name;
}

unsigned qf_dtype_bits(enum qf_dtype dtype)
{
    assert(dtype < QF_DTYPE_COUNT);
    return dtypes[dtype].bits;
}

size_t qf_dtype_size(enum qf_dtype dtype)
{
    assert(qf_dtype_bits(dtype) % 8 == 0);
    return qf_dtype_bits(dtype) / 8;
}

bool qf_dtype_is_float(enum qf_dtype dtype)
{
    return dtype < QF_FLOAT_COUNT;
}

enum qf_dtype qf_dtype_from_torch(const char *name)
{
    if (strncmp(name, "torch.", 6) == 0)
        name += 6;
    for (int i = 0; i < QF_FLOAT_COUNT; i++)
        if (strcmp(torch_names[i], name) == 0)
            return (enum qf_dtype)i;
    return QF_DTYPE_NONE;
}

const char *qf_dtype_torch_name(enum qf_dtype dtype)
{
    return dtype < QF_FLOAT_COUNT ? torch_names[dtype] : NULL;
}
