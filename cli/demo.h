/* SPDX-License-Identifier: Apache-2.0 */
/* The demo model: something to mount on a machine that holds no model yet.
 * Private to cli/. */
#ifndef QF_CLI_DEMO_H
#define QF_CLI_DEMO_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes a Llama of 24 million random bfloat16 parameters (two shards, an index, a
 * config; 47 MB) into directory `dir`, which is made if it is missing. Every run writes
 * the same bytes. -EEXIST when dir holds anything already; a failed run leaves nothing
 * of its own behind. */
int qf_demo_write(const char *dir, struct qf_err *err) QF_MUST_CHECK;
/* The same with larger tensors and as many layers as come nearest to `size` bytes, at
 * least one (31 MB). *stop not 0: -EINTR. */
int qf_demo_write_large(const char *dir, uint64_t size, const atomic_int *stop,
                        struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
