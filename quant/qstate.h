/* SPDX-License-Identifier: Apache-2.0 */
/* The quant_state JSON of a 4-bit weight, in bitsandbytes' exact spelling. Its length
 * follows from the plan alone: nested_offset has a field of fixed width. */
#ifndef QF_QUANT_QSTATE_H
#define QF_QUANT_QSTATE_H

#include <stddef.h>
#include <stdint.h>

#include "quant/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Length of the text without padding (no NUL is counted or written). */
size_t qf_qstate_size(const struct qf_codec_spec *spec, uint64_t rows, uint64_t cols);
/* Writes the text and fills up with blanks to `size` bytes (at least qf_qstate_size).
 * nested_offset is written for dq only. */
void qf_qstate_write(const struct qf_codec_spec *spec, uint64_t rows, uint64_t cols,
                     float nested_offset, char *out, size_t size);
/* The nested_offset of a text that qf_qstate_write has made for dq; NaN in any other.
 */
float qf_qstate_nested_offset(const char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
