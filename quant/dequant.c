/* SPDX-License-Identifier: Apache-2.0 */
/* Every product is rounded to binary32 before the next operation: bitsandbytes' kernels
 * look a code up, multiply by the absmax and convert; int8 is multiplied by the row's
 * absmax and then by the constant 1/127, never divided. */
#include "quant/dequant.h"

#include <math.h>

#include "quant/float8.h"
#include "quant/kernels_impl.h"
#include "quant/tables.h"

void qf_dequant_map(enum qf_codec codec, float out[16])
{
    const uint32_t *bits = codec == QF_CODEC_FP4 ? qf_fp4_values : qf_nf4_values;
    for (int i = 0; i < 16; i++)
        out[i] = qf_f32_of_bits(bits[i]);
}

void qf_dequant_nested(const uint8_t *codes, size_t count, const float *nested_absmax,
                       float offset, float *absmax)
{
    for (size_t i = 0; i < count; i++) {
        float value = qf_f32_of_bits(qf_dynamic_values[codes[i]]) *
                      nested_absmax[i / QF_NESTED_BLOCKSIZE];
        absmax[i] = value + offset;
    }
}

void qf_dequant_absmax(const uint8_t *codes, uint64_t first, size_t count,
                       const float *map, const float *nested_absmax,
                       uint32_t nested_blocksize, float offset, float *absmax)
{
    uint64_t before = first / nested_blocksize;
    for (size_t i = 0; i < count; i++) {
        float value =
            map[codes[i]] * nested_absmax[(first + i) / nested_blocksize - before];
        absmax[i] = value + offset;
    }
}

void qf_dequant_4bit_scalar(const uint8_t *packed, size_t n, size_t blocksize,
                            const float *map, const float *absmax, float *out)
{
    for (size_t i = 0; i < n; i++) {
        unsigned code = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15u;
        out[i] = map[code] * absmax[i / blocksize];
    }
}

void qf_dequant_int8_scalar(const int8_t *codes, size_t n, float scb, float *out)
{
    for (size_t i = 0; i < n; i++) {
        float scaled = (float)codes[i] * scb;
        out[i] = scaled * QF_INT8_RECIPROCAL;
    }
}

static float value_of(enum qf_scaled scaled, uint8_t code)
{
    switch (scaled) {
    case QF_SCALED_I8_MUL:
    case QF_SCALED_I8_DIV:
        return (float)(int8_t)code;
    case QF_SCALED_I8_PACKED:
        return (float)(code - 128);
    case QF_SCALED_I4_PACKED:
        return (float)((code & 15) - 8);
    case QF_SCALED_F8_E5M2:
        return qf_f8_to_f32(qf_float8_e5m2(), code);
    default:
        return qf_f8_to_f32(qf_float8_e4m3(), code);
    }
}

void qf_dequant_values(enum qf_scaled scaled, float out[256])
{
    for (unsigned code = 0; code < 256; code++)
        out[code] = value_of(scaled, (uint8_t)code);
}

void qf_dequant_scaled(enum qf_scaled scaled, const float values[256],
                       const uint8_t *codes, size_t first, size_t n, float scale,
                       float *out)
{
    if (scaled != QF_SCALED_I4_PACKED) {
        for (size_t i = 0; i < n; i++)
            out[i] = values[codes[first + i]] * scale;
        return;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = values[codes[(first + i) / 2] >> (first + i) % 2 * 4 & 15] * scale;
}

void qf_errors_scalar(const float *x, const float *y, size_t n,
                      struct qf_error_lanes *lanes)
{
    for (size_t i = 0; i < n; i++) {
        size_t lane = i % QF_ERROR_LANES;
        if (!isfinite(x[i])) {
            lanes->x_not_finite++;
            continue;
        }
        if (!isfinite(y[i])) {
            lanes->y_not_finite++;
            continue;
        }
        double a = (double)x[i];
        double b = (double)y[i];
        double d = a - b;
        lanes->error[lane] += d * d;
        lanes->xx[lane] += a * a;
        lanes->yy[lane] += b * b;
        lanes->xy[lane] += a * b;
        if (fabs(d) > lanes->max_abs[lane])
            lanes->max_abs[lane] = fabs(d);
    }
}
