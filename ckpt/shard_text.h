/* SPDX-License-Identifier: Apache-2.0 */
/* Private to ckpt/shard*.c: the text of a safetensors header as tables, not yet checked
 * against each other or the file. */
#ifndef QF_CKPT_SHARD_TEXT_H
#define QF_CKPT_SHARD_TEXT_H

#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Offsets fit 32 bits: no table is larger than the text, which is 100 MB at most. */
struct qf_raw_tensor {
    uint64_t begin; /* data_offsets */
    uint64_t end;
    uint32_t name;  /* offset in strings; rises in the order of the text */
    uint32_t shape; /* index in dims */
    uint32_t rank;
    uint32_t dtype; /* enum qf_dtype */
};

struct qf_raw_pair {
    uint32_t key; /* offset in strings; rises in the order of the text */
    uint32_t value;
};

struct qf_shard_text {
    struct qf_buf strings; /* ended by NULs */
    struct qf_buf dims;    /* of uint64_t */
    struct qf_buf tensors; /* of struct qf_raw_tensor */
    struct qf_buf pairs;   /* of struct qf_raw_pair; equal keys may repeat */
};

/* Fills a zeroed *out; qf_shard_text_fini frees it in every case. -EBADMSG, -ENOMEM. */
int qf_shard_text_parse(const char *text, size_t size, struct qf_shard_text *out,
                        struct qf_err *err) QF_MUST_CHECK;
void qf_shard_text_fini(struct qf_shard_text *tables);
/* Writes "header: tensor 'NAME': what" (name may be NULL); returns -EBADMSG. */
int qf_shard_refuse(struct qf_err *err, const char *name, const char *what);

#ifdef __cplusplus
}
#endif
#endif
