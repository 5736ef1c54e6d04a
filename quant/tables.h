/* SPDX-License-Identifier: Apache-2.0 */
/* The constants of the formats, as binary32 bits. */
#ifndef QF_QUANT_TABLES_H
#define QF_QUANT_TABLES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* nf4: code = number of thresholds < y. */
extern const uint32_t qf_nf4_thresholds[15];
/* fp4: rank = number of thresholds < |y|; code = rank ^ ((rank & 2) << 1), + 8 for
 * y < 0. */
extern const uint32_t qf_fp4_thresholds[7];
/* quant_map, by code. */
extern const uint32_t qf_nf4_values[16];
extern const uint32_t qf_fp4_values[16];
/* nested_quant_map: the dynamic 8-bit map, ascending. */
extern const uint32_t qf_dynamic_values[256];

/* The code of 0.0, which fills up an odd count and makes up a block of zeros. */
#define QF_NF4_ZERO 7u
#define QF_FP4_ZERO 0u

#ifdef __cplusplus
}
#endif
#endif
