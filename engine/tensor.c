/* SPDX-License-Identifier: Apache-2.0 */
/* Most tensors are read as they lie. Those with heads have the rows of each head in two
 * halves, of which the view wants one row each in turn: row 2j + k of a head is row
 * k * half + j of it in the source. Rows are read one by one, or, where a head is
 * small, picked out of the whole head. */
#include "engine/tensor.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/decode.h"

/* Larger heads are read row by row. */
#define HEAD_SIZE_MAX ((size_t)128 << 10)

struct rows {
    const qf_srcfile *src;
    const struct qf_tensor *tensor;
    uint64_t *bytes_read;
    uint64_t row_size; /* bytes */
    uint64_t head_rows;
};

/* The place in its head of the row that the view has at `row` of the head. */
static uint64_t stored_row(const struct rows *r, uint64_t row)
{
    return row % 2 * (r->head_rows / 2) + row / 2;
}

/* [off, off + size) of head `head`, as the view has it. */
static int read_head_whole(const struct rows *r, uint64_t head, char *to, size_t size,
                           uint64_t off)
{
    size_t head_size = (size_t)(r->head_rows * r->row_size);
    char *whole = malloc(head_size);
    if (whole == NULL)
        return -ENOMEM;
    int rc = qf_decode_read(r->src, r->tensor, whole, head_size, head * head_size,
                            r->bytes_read);
    while (rc == 0 && size > 0) {
        uint64_t skip = off % r->row_size, left = r->row_size - skip;
        size_t n = left < size ? (size_t)left : size;
        memcpy(to, whole + stored_row(r, off / r->row_size) * r->row_size + skip, n);
        to += n;
        off += n;
        size -= n;
    }
    free(whole);
    return rc;
}

static int read_head_rows(const struct rows *r, uint64_t head, char *to, size_t size,
                          uint64_t off)
{
    int rc = 0;
    while (rc == 0 && size > 0) {
        uint64_t skip = off % r->row_size, left = r->row_size - skip;
        uint64_t row = head * r->head_rows + stored_row(r, off / r->row_size);
        size_t n = left < size ? (size_t)left : size;
        rc = qf_decode_read(r->src, r->tensor, to, n, row * r->row_size + skip,
                            r->bytes_read);
        to += n;
        off += n;
        size -= n;
    }
    return rc;
}

static int read_rows(const struct rows *r, char *to, size_t size, uint64_t off)
{
    uint64_t head_size = r->head_rows * r->row_size;
    int rc = 0;
    while (rc == 0 && size > 0) {
        uint64_t left = head_size - off % head_size;
        size_t n = left < size ? (size_t)left : size;
        rc = (head_size <= HEAD_SIZE_MAX
                  ? read_head_whole
                  : read_head_rows)(r, off / head_size, to, n, off % head_size);
        to += n;
        off += n;
        size -= n;
    }
    return rc;
}

int qf_tensor_read(const qf_shard_file *file, uint32_t tensor, void *buf, size_t size,
                   uint64_t off, uint64_t *bytes_read)
{
    const struct qf_layout_tensor *t = &file->layout->tensors[tensor];
    const qf_srcfile *src = qf_shard_file_source(file, tensor)->src;
    if (t->heads == 0)
        return qf_decode_read(src, t->src, buf, size, off, bytes_read);
    uint64_t row_count = t->src->shape[0];
    assert(row_count != 0 && row_count % (2 * (uint64_t)t->heads) == 0);
    const struct rows rows = {.src = src,
                              .tensor = t->src,
                              .bytes_read = bytes_read,
                              .row_size = t->src->size / row_count,
                              .head_rows = row_count / t->heads};
    return size != 0 ? read_rows(&rows, buf, size, off) : 0;
}
