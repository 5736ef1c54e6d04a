/* SPDX-License-Identifier: Apache-2.0 */
/* Seal records: what only the whole tensor can tell (dq's nested absmax). Private to
 * engine/. */
#ifndef QF_ENGINE_SEAL_H
#define QF_ENGINE_SEAL_H

#include "engine/chunk.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Pieces that the store keeps it in. */
uint64_t qf_seal_pieces(const qf_shard_file *file, uint32_t tensor);
/* Whether the store has it; copies it to `out` unless that is NULL. Counts nothing. */
bool qf_seal_peek(qf_shard_file *file, uint32_t tensor, void *out);
/* Fills `out` (qf_plan_seal_size bytes) from the store. False: it is not all there. */
bool qf_seal_load(qf_shard_file *file, uint32_t tensor, void *out);
/* Computes it from the tensor's chunk records, encoding those that are missing. */
int qf_seal_make(qf_shard_file *file, uint32_t tensor, void *out) QF_MUST_CHECK;
/* Queues it for the store; done(arg) is called once, when `data` is no longer needed.
 */
void qf_seal_store(qf_shard_file *file, uint32_t tensor, const void *data,
                   qf_store_done *done, void *arg);

#ifdef __cplusplus
}
#endif
#endif
