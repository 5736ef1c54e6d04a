/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of a source tensor: those that the file has or, of a coded tensor (ckpt/bnb.h),
 * those of the weight that it stands for. Any range, in buffers of bounded size. */
#ifndef QF_ENGINE_DECODE_H
#define QF_ENGINE_DECODE_H

#include <stddef.h>
#include <stdint.h>

#include "ckpt/shard.h"
#include "ckpt/srcfile.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes [off, off + size) of the tensor, in its dtype. `bytes_read` grows by what was
 * read of the file; NULL: nobody counts. The errors of qf_srcfile_read, -ENOMEM. */
int qf_decode_read(const qf_srcfile *src, const struct qf_tensor *tensor, void *out,
                   size_t size, uint64_t off, uint64_t *bytes_read) QF_MUST_CHECK;
/* The same of a coded tensor, which is rounded to `dtype` instead of its own. */
int qf_decode_as(const qf_srcfile *src, const struct qf_tensor *tensor,
                 enum qf_dtype dtype, void *out, size_t size, uint64_t off,
                 uint64_t *bytes_read) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
