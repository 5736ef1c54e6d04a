/* SPDX-License-Identifier: Apache-2.0 */
/* The search in the dynamic 8-bit map, as bitsandbytes' CUDA kernel does it, and the
 * same function as a table. The search is not "nearest value": at a tie between two
 * neighbours the even index wins, whichever side it is on, because the walk ends on an
 * even pivot and both last comparisons are strict. So it is kept as it is, and the
 * table is made from it rather than from a second understanding of it. */
#include <assert.h>

#include "quant/half.h"
#include "quant/kernels_impl.h"
#include "quant/tables.h"

uint32_t qf_nested_lut[2 * QF_LUT_CELLS];

uint8_t qf_nested_code(float u)
{
    const uint32_t *map = qf_dynamic_values;
    int pivot = 127;
    int lower = 0;
    int upper = 255;
    for (int step = 64; step > 0; step >>= 1) {
        if (u > qf_f32_of_bits(map[pivot])) {
            lower = pivot;
            pivot += step;
        } else {
            upper = pivot;
            pivot -= step;
        }
    }
    float value = qf_f32_of_bits(map[pivot]);
    if (u > value) {
        float middle = (qf_f32_of_bits(map[upper]) + value) * 0.5f;
        return (uint8_t)(u > middle ? upper : pivot);
    }
    float middle = (qf_f32_of_bits(map[lower]) + value) * 0.5f;
    return (uint8_t)(u < middle ? lower : pivot);
}

static uint32_t lut_entry(uint32_t sign, uint32_t cell)
{
    uint32_t first = sign | (QF_LUT_FIRST + cell) << QF_LUT_SHIFT;
    uint32_t base = qf_nested_code(qf_f32_of_bits(cell == 0 ? sign : first));
    uint32_t last = qf_nested_code(qf_f32_of_bits(first | QF_LUT_LOW_MASK));
    if (first == 0x3f800000u || first == 0xbf800000u) /* |u| is at most 1 */
        last = base;
    if (base == last)
        return base << QF_LUT_BASE_SHIFT | QF_LUT_LOW_MASK;
    assert(sign == 0 ? last == base + 1 : last + 1 == base);
    uint32_t low = 0; /* code(first | low) == base, code(first | high) == last */
    uint32_t high = QF_LUT_LOW_MASK;
    assert(cell != 0 && qf_nested_code(qf_f32_of_bits(first)) == base);
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (qf_nested_code(qf_f32_of_bits(first | middle)) == base)
            low = middle;
        else
            high = middle;
    }
    return base << QF_LUT_BASE_SHIFT | low;
}

void qf_nested_lut_init(void)
{
    for (uint32_t cell = 0; cell < QF_LUT_CELLS; cell++) {
        qf_nested_lut[cell] = lut_entry(0, cell);
        qf_nested_lut[QF_LUT_CELLS + cell] = lut_entry(0x80000000u, cell);
    }
}
