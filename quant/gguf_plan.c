/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>

#include "base/limits.h"
#include "quant/gguf.h"

/* What a cache may put around a record. */
#define RECORD_SIZE_MAX (QF_STORED_SIZE_MAX - 64u)

static const struct qf_gguf_info infos[] = {
    {"Q8_0", 8, 7, QF_DTYPE_NONE}, {"Q4_0", 2, 2, QF_DTYPE_NONE},
    {"Q4_1", 3, 3, QF_DTYPE_NONE}, {"Q5_0", 6, 8, QF_DTYPE_NONE},
    {"Q5_1", 7, 9, QF_DTYPE_NONE}, {"F16", 1, 1, QF_F16},
    {"BF16", 30, 32, QF_BF16},
};

const struct qf_gguf_info *qf_gguf_info(enum qf_codec codec)
{
    assert(codec >= QF_CODEC_GGUF_Q8_0 && codec <= QF_CODEC_GGUF_BF16);
    return &infos[codec - QF_CODEC_GGUF_Q8_0];
}

enum qf_gguf_block qf_gguf_block_of(enum qf_codec codec)
{
    assert(codec >= QF_CODEC_GGUF_Q8_0 && codec <= QF_CODEC_GGUF_Q5_1);
    return (enum qf_gguf_block)(codec - QF_CODEC_GGUF_Q8_0);
}

size_t qf_gguf_block_size(enum qf_gguf_block block)
{
    static const size_t sizes[QF_GGUF_BLOCK_COUNT] = {34, 18, 20, 22, 24};
    return sizes[block];
}

int qf_gguf_plan(struct qf_plan *plan, struct qf_err *err)
{
    enum qf_codec codec = plan->spec.codec;
    if (qf_gguf_info(codec)->dtype != QF_DTYPE_NONE)
        return qf_err_set(err, -ENOTSUP, "%s casts and has no blocks",
                          qf_codec_name(codec));
    if (plan->transposed || plan->cols % QF_GGUF_BLOCK != 0)
        return qf_err_set(err, -ENOTSUP,
                          "%s: rows of %llu elements%s are no whole number of blocks "
                          "of %u",
                          qf_codec_name(codec), (unsigned long long)plan->cols,
                          plan->transposed ? ", transposed," : "", QF_GGUF_BLOCK);
    size_t size = qf_gguf_block_size(qf_gguf_block_of(codec));
    plan->block_count = plan->elem_count / QF_GGUF_BLOCK;
    plan->chunk_elems = QF_CHUNK_ELEMS;
    while (plan->chunk_elems / QF_GGUF_BLOCK * size > RECORD_SIZE_MAX)
        plan->chunk_elems /= 2;
    plan->part_count = 1;
    plan->parts[0] = (struct qf_part){
        .role = QF_PART_CODES,
        .stage = QF_STAGE_CHUNK,
        .dtype = QF_U8,
        .rank = 1,
        .shape = {plan->block_count * size},
        .size = plan->block_count * size,
        .chunk_stride = plan->chunk_elems / QF_GGUF_BLOCK * size,
    };
    return 0;
}
