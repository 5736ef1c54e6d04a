/* SPDX-License-Identifier: Apache-2.0 */
/* The element types of safetensors, by their names in the file format. */
#ifndef QF_BASE_DTYPE_H
#define QF_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The three that can be quantized come first: they index kernel tables. */
enum qf_dtype {
    QF_F32,
    QF_F16,
    QF_BF16,
    QF_FLOAT_COUNT,
    QF_BOOL = QF_FLOAT_COUNT,
    QF_F4,
    QF_F6_E2M3,
    QF_F6_E3M2,
    QF_U8,
    QF_I8,
    QF_F8_E5M2,
    QF_F8_E4M3,
    QF_F8_E8M0,
    QF_F8_E4M3FNUZ,
    QF_F8_E5M2FNUZ,
    QF_I16,
    QF_U16,
    QF_I32,
    QF_U32,
    QF_F64,
    QF_I64,
    QF_U64,
    QF_C64,
    QF_DTYPE_COUNT,
    QF_DTYPE_NONE = QF_DTYPE_COUNT
};

/* Returns QF_DTYPE_NONE for a name that safetensors does not know. */
enum qf_dtype qf_dtype_from_name(const char *name, size_t size);
/* "F32", "BF16", …: the name in a safetensors header. */
const char *qf_dtype_name(enum qf_dtype dtype);
/* Size of one element in bits (F4 has 4, F6 has 6). */
unsigned qf_dtype_bits(enum qf_dtype dtype);
/* Size of one element in bytes; only for types of whole bytes. */
size_t qf_dtype_size(enum qf_dtype dtype);
/* F32, F16 or BF16: what a codec takes. */
bool qf_dtype_is_float(enum qf_dtype dtype);
/* "float32", "float16", "bfloat16" (also with a "torch." before) and back;
 * QF_DTYPE_NONE and NULL for all others. */
enum qf_dtype qf_dtype_from_torch(const char *name);
const char *qf_dtype_torch_name(enum qf_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif
