/* SPDX-License-Identifier: Apache-2.0 */
/* The text of a safetensors header as we write it: compact, __metadata__ first with
 * "format":"pt", padded with blanks to a multiple of 8 (docs/FORMATS.md section 4).
 * Private to view/. */
#ifndef QF_VIEW_HEADER_H
#define QF_VIEW_HEADER_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/dtype.h"
#include "base/err.h"
#include "ckpt/shard.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tensors are aligned to their dtypes by what lies before them. */
#define QF_HEADER_ALIGN    8u
#define QF_DTYPE_WIDTH_MAX 8u

/* What a tensor of this dtype is aligned to: bytes, at least 1. */
unsigned qf_header_width(enum qf_dtype dtype);

void qf_header_begin(const struct qf_metadata_entry *metadata, size_t count,
                     struct qf_buf *header);
/* One tensor at data bytes [off, end). */
void qf_header_add(const char *name, enum qf_dtype dtype, uint32_t rank,
                   const uint64_t *shape, uint64_t off, uint64_t end,
                   struct qf_buf *header);
/* Closes it; *out (owned) becomes the 8 + N bytes. -ENOMEM, -EFBIG. */
int qf_header_finish(struct qf_buf *header, char **out, size_t *size,
                     struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
