/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/ties.h"

#include <math.h>
#include <stddef.h>

#include "quant/half.h"
#include "quant/tables.h"

static int64_t ordered(float x)
{
    uint32_t u = qf_f32_bits(x);
    return (u & 0x80000000u) != 0 ? -(int64_t)(u & 0x7fffffffu) : (int64_t)u;
}

bool qf_within_ulps(float a, float b, int ulps)
{
    if (isnan(a) || isnan(b))
        return isnan(a) && isnan(b);
    int64_t d = ordered(a) - ordered(b);
    return d >= -ulps && d <= ulps;
}

static float moved(float x, float to)
{
    for (int i = 0; i < QF_TIE_ULPS; i++)
        x = nextafterf(x, to);
    return x;
}

static unsigned count_below(const uint32_t *thresholds, unsigned count, float y)
{
    unsigned n = 0;
    while (n < count && qf_f32_of_bits(thresholds[n]) < y)
        n++;
    return n;
}

static unsigned code_4bit(bool fp4, float y)
{
    if (!fp4)
        return count_below(qf_nf4_thresholds, 15, y);
    unsigned rank = count_below(qf_fp4_thresholds, 7, fabsf(y));
    return (rank ^ (rank & 2) << 1) + (y < 0 ? 8 : 0);
}

bool qf_tie_4bit(bool fp4, float y, unsigned code)
{
    if (y == 0) /* no error makes anything else of it */
        return code == code_4bit(fp4, y);
    return !isnan(y) && (code == code_4bit(fp4, moved(y, -INFINITY)) ||
                         code == code_4bit(fp4, moved(y, INFINITY)));
}

bool qf_tie_int8(float product, int code)
{
    return !isnan(product) && ((float)code == rintf(moved(product, -INFINITY)) ||
                               (float)code == rintf(moved(product, INFINITY)));
}

unsigned qf_cpu_code_4bit(bool fp4, float y)
{
    /* fp4's values in rising order, its zeros as argsort leaves them */
    static const uint8_t fp4_order[16] = {11, 10, 13, 12, 15, 14, 9, 0,
                                          8,  1,  6,  7,  4,  5,  2, 3};
    const uint32_t *values = fp4 ? qf_fp4_values : qf_nf4_values;
    unsigned n = 0;
    for (; n < 15; n++) {
        float a = qf_f32_of_bits(values[fp4 ? fp4_order[n] : n]);
        float b = qf_f32_of_bits(values[fp4 ? fp4_order[n + 1] : n + 1]);
        if (y <= (a + b) / 2)
            break;
    }
    return fp4 ? fp4_order[n] : n;
}

static unsigned cpu_nested(long step)
{
    float value = -1.0f + 2.0f * (float)(step & 0xffff) / 65535.0f;
    unsigned n = 0;
    while (n < 255 && 0.5f * (qf_f32_of_bits(qf_dynamic_values[n]) +
                              qf_f32_of_bits(qf_dynamic_values[n + 1])) <
                          value)
        n++;
    return n;
}

bool qf_tie_cpu_nested(float z, float nested_absmax, unsigned code)
{
    if (isnan(z) || isnan(nested_absmax))
        return false;
    if (nested_absmax == 0)
        return code == 0;
    float v = fminf(fmaxf(z * (1.0f / nested_absmax), -1.0f), 1.0f);
    float half = (v + 1.0f) * 0.5f;
    /* A compiler may fuse the last two operations. */
    return code == cpu_nested((long)fmaf(half, 65535.0f, 0.5f)) ||
           code == cpu_nested((long)(half * 65535.0f + 0.5f));
}
