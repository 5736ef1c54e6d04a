/* SPDX-License-Identifier: Apache-2.0 */
/* Writes safetensors files for tests. */
#ifndef QF_TESTS_SUPPORT_STFILE_H
#define QF_TESTS_SUPPORT_STFILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"

struct stfile_tensor {
    const char *name;
    enum qf_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
    const void *data; /* NULL: a pattern made from the name */
};

/* The bytes of a file that holds the tensors in this order, with the metadata
 * {"format":"pt"}. Returns owned. */
unsigned char *stfile_make(const struct stfile_tensor *tensors, size_t count,
                           size_t *size);
/* The same, written to dir/path. */
void stfile_write(const char *dir, const char *path,
                  const struct stfile_tensor *tensors, size_t count);
/* 8 bytes of length, `header`, then data_size zero bytes. Returns owned. */
unsigned char *stfile_raw(const char *header, size_t data_size, size_t *size);

#endif
