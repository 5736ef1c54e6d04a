/* SPDX-License-Identifier: Apache-2.0 */
/* The stored bytes of a tensor, in the order in which its view shows them. Private to
 * engine/. */
#ifndef QF_ENGINE_TENSOR_H
#define QF_ENGINE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#include "engine/chunk.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Exactly `size` bytes at `off` (0: the tensor's first byte); as qf_decode_read. */
int qf_tensor_read(const qf_shard_file *file, uint32_t tensor, void *buf, size_t size,
                   uint64_t off, uint64_t *bytes_read) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
