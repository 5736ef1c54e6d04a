/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/scales.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "quant/half.h"

/* torchao's smallest int8 scale: the eps of binary32. */
#define TORCHAO_SCALE_MIN 0x1p-23f

static float rounded_to(enum qf_dtype dtype, float x)
{
    uint32_t bits = qf_f32_bits(x);
    if (dtype == QF_F16)
        return qf_f32_of_bits(qf_f16_to_f32_bits(qf_f32_bits_to_f16(bits)));
    if (dtype == QF_BF16)
        return qf_f32_of_bits(qf_bf16_to_f32_bits(qf_f32_bits_to_bf16(bits)));
    return x;
}

/* The distance from 1 to the next number. */
static float eps_of(enum qf_dtype dtype)
{
    return dtype == QF_F16 ? 0x1p-10f : dtype == QF_BF16 ? 0x1p-7f : 0x1p-23f;
}

/* Half of what codes span: what the absmax is divided by. */
static float half_range(enum qf_scaled scaled)
{
    switch (scaled) {
    case QF_SCALED_I8_MUL:
    case QF_SCALED_I8_DIV:
    case QF_SCALED_I8_PACKED:
        return 127.5f;
    case QF_SCALED_I4_PACKED:
        return 7.5f;
    case QF_SCALED_F8_E5M2:
        return 57344.0f;
    default:
        return 448.0f;
    }
}

/* The scale of codecs that divide by it (and of torchao's int8, which nearly does). */
static float scale_of(const struct qf_codec_spec *spec, float absmax)
{
    const struct qf_codec_info *info = qf_codec_info(spec->codec);
    float scale = rounded_to(spec->dtype, absmax / half_range(info->scaled));
    if (info->scaled == QF_SCALED_I8_MUL)
        return scale > TORCHAO_SCALE_MIN ? scale : TORCHAO_SCALE_MIN;
    if (scale != 0)
        return scale;
    return info->family == QF_FAMILY_COMPRESSED_TENSORS ? eps_of(spec->dtype) : 1;
}

/* fp8: what the elements of a block are multiplied with; rounded twice. */
static float block_factor(float absmax)
{
    float factor = 1.0f / absmax * 448.0f;
    return absmax == 0 || isinf(factor) ? 1 : factor;
}

void qf_scale_factors(const struct qf_codec_spec *spec, const float *absmax, size_t n,
                      float *factors)
{
    enum qf_scaled scaled = qf_codec_info(spec->codec)->scaled;
    for (size_t i = 0; i < n; i++) {
        if (scaled == QF_SCALED_F8_E4M3_BLOCK)
            factors[i] = block_factor(absmax[i]);
        else if (scaled == QF_SCALED_I8_MUL)
            factors[i] = 1.0f / scale_of(spec, absmax[i]);
        else
            factors[i] = scale_of(spec, absmax[i]);
    }
}

static float stored_scale(const struct qf_codec_spec *spec, float absmax)
{
    if (qf_codec_info(spec->codec)->scaled == QF_SCALED_F8_E4M3_BLOCK)
        return 1.0f / block_factor(absmax);
    return scale_of(spec, absmax);
}

void qf_scale_store(const struct qf_codec_spec *spec, const float *absmax, size_t n,
                    void *stored)
{
    bool narrow = qf_codec_info(spec->codec)->family == QF_FAMILY_COMPRESSED_TENSORS &&
                  spec->dtype != QF_F32;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = qf_f32_bits(stored_scale(spec, absmax[i]));
        if (!narrow) {
            memcpy((char *)stored + 4 * i, &bits, sizeof bits);
            continue;
        }
        uint16_t half = spec->dtype == QF_F16 ? qf_f32_bits_to_f16(bits)
                                              : qf_f32_bits_to_bf16(bits);
        memcpy((char *)stored + 2 * i, &half, sizeof half);
    }
}
