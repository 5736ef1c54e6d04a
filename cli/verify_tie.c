/* SPDX-License-Identifier: Apache-2.0 */
/* A difference is a tie only when a kernel of bitsandbytes would have made just this
 * code of just this source: so the weights themselves are read again, as they are
 * quantized (cast to the model's dtype, transposed), a block at a time. For dq the
 * checkpoint's own offset decides, since everything nested follows from it. */
#include "quant/ties.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/path.h"
#include "cli/verify.h"
#include "engine/decode.h"
#include "quant/half.h"
#include "quant/kernels.h"
#include "quant/tables.h"

/* Whole blocks of any size. */
#define PIECE_ELEMS ((uint64_t)QF_BLOCKSIZE_MAX * 16)

void qf_verify_tie_reset(struct qf_verify_hand *hand)
{
    qf_srcfile_close(hand->src);
    free(hand->whole);
    free(hand->absmax);
    hand->src = NULL;
    hand->whole = hand->absmax = NULL;
    hand->block = UINT64_MAX;
}

/* ---- the source as it is quantized ---- */

static int open_source(struct qf_verify_hand *hand)
{
    if (hand->src != NULL)
        return 0;
    const struct qf_verify_dir *dir = hand->verify->dir;
    char *path = qf_path_join(dir->source, hand->unit->shard);
    int rc =
        path != NULL ? qf_srcfile_open(dir->root, path, &hand->src, NULL) : -ENOMEM;
    free(path);
    return rc;
}

/* `count` stored elements, widened from the model's dtype. */
static int read_stored(struct qf_verify_hand *hand, uint64_t first, size_t count,
                       float *out)
{
    const struct qf_kernels *k = qf_kernels_best();
    const struct qf_plan *plan = hand->unit->planned->plan;
    enum qf_dtype from = plan->src_dtype, to = plan->spec.dtype;
    size_t width = qf_dtype_size(from);
    char *raw = malloc(count * width), *cast = malloc(count * sizeof(float));
    int rc = raw != NULL && cast != NULL ? open_source(hand) : -ENOMEM;
    if (rc == 0)
        rc = qf_decode_read(hand->src, hand->unit->src, raw, count * width,
                            first * width, NULL);
    if (rc == 0) {
        k->cast[from][to](raw, count, cast);
        k->cast[to][QF_F32](cast, count, out);
        rc = qf_srcfile_check(hand->src);
    }
    free(raw);
    free(cast);
    return rc;
}

/* Stored [cols, rows]. */
static int read_transposed(struct qf_verify_hand *hand)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    float *stored = malloc((size_t)plan->elem_count * sizeof *stored);
    hand->whole = malloc((size_t)plan->elem_count * sizeof *hand->whole);
    int rc = stored != NULL && hand->whole != NULL
                 ? read_stored(hand, 0, (size_t)plan->elem_count, stored)
                 : -ENOMEM;
    for (uint64_t c = 0; rc == 0 && c < plan->cols; c++)
        for (uint64_t r = 0; r < plan->rows; r++)
            hand->whole[r * plan->cols + c] = stored[c * plan->rows + r];
    free(stored);
    if (rc != 0) {
        free(hand->whole);
        hand->whole = NULL;
    }
    return rc;
}

static int read_elements(struct qf_verify_hand *hand, uint64_t first, size_t count,
                         float *out)
{
    int rc = 0;
    if (!hand->unit->planned->plan->transposed)
        return read_stored(hand, first, count, out);
    if (hand->whole == NULL)
        rc = read_transposed(hand);
    if (rc == 0)
        memcpy(out, hand->whole + first, count * sizeof *out);
    return rc;
}

/* NaN is ignored, as the definition does. */
static float max_abs(const float *x, size_t count)
{
    float most = 0;
    for (size_t i = 0; i < count; i++)
        most = fmaxf(most, fabsf(x[i]));
    return most;
}

/* The block's values, and its absmax. */
static int get_block(struct qf_verify_hand *hand, uint64_t block)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    uint64_t first = block * plan->spec.blocksize, left = plan->elem_count - first;
    if (hand->block == block)
        return 0;
    hand->value_count =
        left < plan->spec.blocksize ? (size_t)left : plan->spec.blocksize;
    hand->block = UINT64_MAX;
    int rc = read_elements(hand, first, hand->value_count, hand->values);
    if (rc != 0)
        return rc;
    hand->block = block;
    hand->block_absmax = max_abs(hand->values, hand->value_count);
    hand->block_nan = false;
    for (size_t i = 0; i < hand->value_count; i++)
        hand->block_nan = hand->block_nan || isnan(hand->values[i]);
    return 0;
}

/* ---- 4 bits ---- */

/* bitsandbytes' CUDA kernels give code 0 to all of a block of zeros. */
static int is_all_code_0(const struct qf_verify_hand *hand, uint64_t block, bool *out)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    uint8_t codes[QF_BLOCKSIZE_MAX / 2];
    size_t size = (hand->value_count + 1) / 2;
    int rc = qf_verify_read_theirs(hand, hand->unit->src->name, codes, size,
                                   block * plan->spec.blocksize / 2);
    size_t zeros = 0;
    while (rc == 0 && zeros < hand->value_count &&
           (zeros % 2 == 0 ? codes[zeros / 2] >> 4 : codes[zeros / 2] & 15) == 0)
        zeros++;
    *out = zeros == hand->value_count;
    return rc;
}

static float clip(float x)
{
    return isnan(x) ? x : fminf(fmaxf(x, -1.0f), 1.0f);
}

/* The CPU kernel takes no absmax below 1e-38, divides in a last block that is short,
 * and lets NaN through. */
static unsigned cpu_code(const struct qf_verify_hand *hand, bool fp4, size_t at)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    float absmax = hand->block_nan ? NAN : fmaxf(hand->block_absmax, 1e-38f);
    float x = hand->values[at];
    bool is_short = hand->value_count < plan->spec.blocksize;
    return qf_cpu_code_4bit(fp4, clip(is_short ? x / absmax : x * (1.0f / absmax)));
}

int qf_verify_tie_4bit(struct qf_verify_hand *hand, uint64_t index, unsigned code,
                       enum qf_verify_tie *out)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    bool fp4 = plan->spec.codec == QF_CODEC_FP4, zeros = false;
    *out = QF_TIE_COUNT;
    if (index >= plan->elem_count)
        return 0; /* the code that fills up an odd count */
    uint64_t block = index / plan->spec.blocksize;
    size_t at = (size_t)(index % plan->spec.blocksize);
    int rc = get_block(hand, block);
    if (rc != 0)
        return rc;
    if (hand->block_absmax == 0 && code == 0)
        rc = is_all_code_0(hand, block, &zeros);
    if (zeros)
        *out = QF_TIE_ZERO_BLOCK;
    else if (hand->block_nan && cpu_code(hand, fp4, at) == code)
        *out = QF_TIE_NAN;
    else if (qf_tie_4bit(fp4, hand->values[at] * (1.0f / hand->block_absmax), code))
        *out = QF_TIE_THRESHOLD;
    else if (cpu_code(hand, fp4, at) == code)
        *out = QF_TIE_CPU_CODE;
    return rc;
}

int qf_verify_tie_absmax(struct qf_verify_hand *hand, uint64_t block, float value,
                         enum qf_verify_tie *out)
{
    int rc = get_block(hand, block);
    *out = QF_TIE_COUNT;
    if (rc == 0 && hand->block_nan && isnan(value))
        *out = QF_TIE_NAN;
    else if (rc == 0 && hand->block_absmax < 1e-38f && value == 1e-38f &&
             hand->value_count < hand->unit->planned->plan->spec.blocksize)
        *out = QF_TIE_ZERO_BLOCK;
    return rc;
}

/* ---- int8 ---- */

int qf_verify_tie_int8(struct qf_verify_hand *hand, uint64_t index, int code,
                       enum qf_verify_tie *out)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    const struct qf_part *part = qf_plan_part(plan, QF_PART_SCB);
    uint64_t row = index / plan->cols;
    float x, scb;
    *out = QF_TIE_COUNT;
    int rc = read_elements(hand, index, 1, &x);
    if (rc == 0)
        rc = qf_verify_read_mine(hand, &scb, sizeof scb,
                                 hand->unit->offs[part - plan->parts] +
                                     row * sizeof scb);
    if (rc != 0)
        return rc;
    x = qf_f32_of_bits(qf_f16_to_f32_bits(qf_f32_bits_to_f16(qf_f32_bits(x))));
    if (qf_tie_int8(x * (1.0f / scb * 127.0f), code))
        *out = QF_TIE_HALF;
    return 0;
}

/* ---- dq ---- */

/* Of all blocks of the tensor, read in large pieces. */
static int get_absmax(struct qf_verify_hand *hand)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    uint64_t block = plan->spec.blocksize, end = plan->elem_count;
    if (hand->absmax != NULL)
        return 0;
    float *values = malloc(PIECE_ELEMS * sizeof *values);
    float *absmax = malloc(((size_t)plan->block_count + 1) * sizeof *absmax);
    int rc = values != NULL && absmax != NULL ? 0 : -ENOMEM;
    for (uint64_t first = 0; first < end && rc == 0; first += PIECE_ELEMS) {
        uint64_t count = end - first < PIECE_ELEMS ? end - first : PIECE_ELEMS;
        rc = read_elements(hand, first, (size_t)count, values);
        for (uint64_t i = 0; i < count && rc == 0; i += block)
            absmax[(first + i) / block] =
                max_abs(values + i, (size_t)(count - i < block ? count - i : block));
    }
    free(values);
    if (rc == 0)
        hand->absmax = absmax;
    else
        free(absmax);
    return rc;
}

/* What follows from the checkpoint's offset, of the nested block that holds `index`. */
static int requantize(struct qf_verify_hand *hand, uint64_t nested, uint8_t *codes,
                      float *nested_absmax)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    uint64_t first = nested * QF_NESTED_BLOCKSIZE, left = plan->block_count - first;
    int rc = get_absmax(hand);
    if (rc == 0)
        qf_kernels_best()->nested(hand->absmax + first,
                                  left < QF_NESTED_BLOCKSIZE ? (size_t)left
                                                             : QF_NESTED_BLOCKSIZE,
                                  hand->offset, codes, nested_absmax);
    return rc;
}

int qf_verify_tie_nested_absmax(struct qf_verify_hand *hand, uint64_t index,
                                float value, enum qf_verify_tie *out)
{
    uint8_t codes[QF_NESTED_BLOCKSIZE];
    float mine;
    *out = QF_TIE_COUNT;
    int rc = requantize(hand, index, codes, &mine);
    if (rc == 0 && value == mine)
        *out = QF_TIE_OFFSET;
    return rc;
}

int qf_verify_tie_nested_code(struct qf_verify_hand *hand, uint64_t index,
                              unsigned code, enum qf_verify_tie *out)
{
    uint8_t codes[QF_NESTED_BLOCKSIZE];
    float mine;
    *out = QF_TIE_COUNT;
    int rc = requantize(hand, index / QF_NESTED_BLOCKSIZE, codes, &mine);
    if (rc != 0)
        return rc;
    if (codes[index % QF_NESTED_BLOCKSIZE] == code)
        *out = QF_TIE_OFFSET;
    else if (qf_tie_cpu_nested(hand->absmax[index] - hand->offset, mine, code))
        *out = QF_TIE_CPU_NESTED;
    return 0;
}
