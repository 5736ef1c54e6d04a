/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the files of kernels of scaled codecs. Each has, inlined into every entry,
 *
 *   group_absmax(dtype, src, n, group, absmax)
 *   quantize(scaled, dtype, src, n, group, factors, codes)
 *
 * and makes the entries of its table of them here. */
#ifndef QF_QUANT_SCALED_TABLE_H
#define QF_QUANT_SCALED_TABLE_H

#define QF_SCALED_ENTRY(name, scaled, suffix, dtype)                                   \
    static void name##_##suffix(const void *src, size_t n, size_t group,               \
                                const float *factors, void *codes)                     \
    {                                                                                  \
        quantize(scaled, dtype, src, n, group, factors, codes);                        \
    }

#define QF_SCALED_ENTRIES(suffix, dtype)                                               \
    static void group_absmax_##suffix(const void *src, size_t n, size_t group,         \
                                      float *absmax)                                   \
    {                                                                                  \
        group_absmax(dtype, src, n, group, absmax);                                    \
    }                                                                                  \
    QF_SCALED_ENTRY(i8_mul, QF_SCALED_I8_MUL, suffix, dtype)                           \
    QF_SCALED_ENTRY(i8_div, QF_SCALED_I8_DIV, suffix, dtype)                           \
    QF_SCALED_ENTRY(i8_packed, QF_SCALED_I8_PACKED, suffix, dtype)                     \
    QF_SCALED_ENTRY(i4_packed, QF_SCALED_I4_PACKED, suffix, dtype)                     \
    QF_SCALED_ENTRY(e4m3, QF_SCALED_F8_E4M3, suffix, dtype)                            \
    QF_SCALED_ENTRY(e5m2, QF_SCALED_F8_E5M2, suffix, dtype)                            \
    QF_SCALED_ENTRY(e4m3_block, QF_SCALED_F8_E4M3_BLOCK, suffix, dtype)

#define QF_SCALED_ENTRIES_OF_ALL_DTYPES                                                \
    QF_SCALED_ENTRIES(f32, QF_F32)                                                     \
    QF_SCALED_ENTRIES(f16, QF_F16)                                                     \
    QF_SCALED_ENTRIES(bf16, QF_BF16)

/* { by dtype } */
#define QF_SCALED_ROW(name)                                                            \
    {                                                                                  \
        [QF_F32] = name##_f32, [QF_F16] = name##_f16, [QF_BF16] = name##_bf16          \
    }

/* Initializes qf_kernels.scaled. */
#define QF_SCALED_ROWS                                                                 \
    {                                                                                  \
        [QF_SCALED_I8_MUL] = QF_SCALED_ROW(i8_mul),                                    \
        [QF_SCALED_I8_DIV] = QF_SCALED_ROW(i8_div),                                    \
        [QF_SCALED_I8_PACKED] = QF_SCALED_ROW(i8_packed),                              \
        [QF_SCALED_I4_PACKED] = QF_SCALED_ROW(i4_packed),                              \
        [QF_SCALED_F8_E4M3] = QF_SCALED_ROW(e4m3),                                     \
        [QF_SCALED_F8_E5M2] = QF_SCALED_ROW(e5m2),                                     \
        [QF_SCALED_F8_E4M3_BLOCK] = QF_SCALED_ROW(e4m3_block),                         \
    }

#endif
