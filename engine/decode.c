/* SPDX-License-Identifier: Apache-2.0 */
/* A piece is PIECE_ELEMS elements at most and, in 4 bits, begins with a block: its
 * codes and scales are read, multiplied out in binary32 and rounded once. Of the first
 * and the last piece only the bytes asked for are copied out. */
#include "engine/decode.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "ckpt/bnb.h"
#include "quant/dequant.h"
#include "quant/kernels.h"

#define PIECE_ELEMS 16384u
#define BLOCKS_MAX  (PIECE_ELEMS / QF_BNB_BLOCKSIZE_MIN)

_Static_assert(PIECE_ELEMS % QF_BNB_BLOCKSIZE_MAX == 0, "a piece is whole blocks");

/* What one piece is made in. Rows of int8 may have one element. */
struct decoder {
    const qf_srcfile *src;
    const struct qf_tensor *tensor;
    const struct qf_kernels *kernels;
    uint64_t *bytes_read;
    uint8_t codes[PIECE_ELEMS];
    float scales[PIECE_ELEMS];
    uint8_t nested[BLOCKS_MAX];
    float nested_absmax[BLOCKS_MAX + 1];
    float values[PIECE_ELEMS];
    uint8_t rounded[PIECE_ELEMS * sizeof(float)];
};

static int read_at(const qf_srcfile *src, void *out, size_t size, uint64_t off,
                   uint64_t *bytes_read)
{
    int rc = qf_srcfile_read(src, out, size, off);
    if (rc == 0 && bytes_read != NULL)
        *bytes_read += size;
    return rc;
}

static int fetch(struct decoder *d, void *out, size_t size, uint64_t off)
{
    return read_at(d->src, out, size, off, d->bytes_read);
}

/* ---- 4-bit ---- */

static int read_absmax(struct decoder *d, const struct qf_coded *coded, uint64_t block,
                       size_t count)
{
    if (!coded->nested)
        return fetch(d, d->scales, count * sizeof(float),
                     coded->absmax_off + block * sizeof(float));
    uint64_t first = block / coded->nested_blocksize;
    uint64_t last = (block + count - 1) / coded->nested_blocksize;
    int rc = fetch(d, d->nested, count, coded->absmax_off + block);
    if (rc == 0)
        rc = fetch(d, d->nested_absmax, (size_t)(last - first + 1) * sizeof(float),
                   coded->nested_absmax_off + first * sizeof(float));
    if (rc == 0)
        qf_dequant_absmax(d->nested, block, count, coded->nested_map, d->nested_absmax,
                          coded->nested_blocksize, coded->nested_offset, d->scales);
    return rc;
}

static int decode_4bit(struct decoder *d, uint64_t first, size_t count)
{
    const struct qf_coded *coded = d->tensor->coded;
    int rc = fetch(d, d->codes, (count + 1) / 2, d->tensor->off + first / 2);
    if (rc == 0)
        rc = read_absmax(d, coded, first / coded->blocksize,
                         (size_t)qf_div_up(count, coded->blocksize));
    if (rc == 0)
        d->kernels->dequant_4bit(d->codes, count, coded->blocksize, coded->map,
                                 d->scales, d->values);
    return rc;
}

/* ---- int8 ---- */

static int decode_int8(struct decoder *d, uint64_t first, size_t count)
{
    const struct qf_coded *coded = d->tensor->coded;
    uint64_t cols = coded->row_size, row = first / cols;
    size_t rows = (size_t)((first + count - 1) / cols - row + 1);
    int rc = fetch(d, d->codes, count, d->tensor->off + first);
    if (rc == 0)
        rc = fetch(d, d->scales, rows * sizeof(float),
                   coded->scb_off + row * sizeof(float));
    for (size_t done = 0; rc == 0 && done < count;) {
        uint64_t left = cols - (first + done) % cols;
        size_t run = left < count - done ? (size_t)left : count - done;
        d->kernels->dequant_int8((const int8_t *)d->codes + done, run,
                                 d->scales[(first + done) / cols - row],
                                 d->values + done);
        done += run;
    }
    return rc;
}

/* ---- */

/* The piece with byte `at` of the tensor in `dtype`, up to byte `end` if it has that;
 * *begin is its first byte and *size what it has. */
static int decode_piece(struct decoder *d, enum qf_dtype dtype, uint64_t at,
                        uint64_t end, uint64_t *begin, size_t *size)
{
    const struct qf_coded *coded = d->tensor->coded;
    size_t width = qf_dtype_size(dtype);
    uint64_t first = at / width;
    bool int8 = coded->kind == QF_CODED_INT8;
    if (!int8)
        first -= first % coded->blocksize;
    uint64_t left = qf_div_up(end, width) - first;
    size_t count = left < PIECE_ELEMS ? (size_t)left : PIECE_ELEMS;
    int rc = int8 ? decode_int8(d, first, count) : decode_4bit(d, first, count);
    if (rc == 0)
        d->kernels->cast[QF_F32][dtype](d->values, count, d->rounded);
    *begin = first * width;
    *size = count * width;
    return rc;
}

int qf_decode_as(const qf_srcfile *src, const struct qf_tensor *tensor,
                 enum qf_dtype dtype, void *out, size_t size, uint64_t off,
                 uint64_t *bytes_read)
{
    assert(tensor->coded != NULL && qf_dtype_is_float(dtype));
    struct decoder *d = malloc(sizeof *d);
    if (d == NULL)
        return -ENOMEM;
    d->src = src;
    d->tensor = tensor;
    d->kernels = qf_kernels_best();
    d->bytes_read = bytes_read;
    char *to = out;
    int rc = 0;
    while (size > 0 && rc == 0) {
        uint64_t begin;
        size_t have;
        rc = decode_piece(d, dtype, off, off + size, &begin, &have);
        if (rc != 0)
            break;
        size_t skip = (size_t)(off - begin);
        size_t n = have - skip < size ? have - skip : size;
        memcpy(to, d->rounded + skip, n);
        to += n;
        off += n;
        size -= n;
    }
    free(d);
    return rc;
}

int qf_decode_read(const qf_srcfile *src, const struct qf_tensor *tensor, void *out,
                   size_t size, uint64_t off, uint64_t *bytes_read)
{
    if (tensor->coded != NULL)
        return qf_decode_as(src, tensor, tensor->dtype, out, size, off, bytes_read);
    return read_at(src, out, size, tensor->off + off, bytes_read);
}
