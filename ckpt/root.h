/* SPDX-License-Identifier: Apache-2.0 */
/* Private to ckpt: opening inside the jail (contract: ckpt/srcfile.h). */
#ifndef QF_CKPT_ROOT_H
#define QF_CKPT_ROOT_H

#include "ckpt/srcfile.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Opens what `path` leads to with flags (and O_CLOEXEC). Returns a descriptor (owned)
 * or -errno. *real (may be NULL) becomes its path without links; owned. */
int qf_root_openat(const qf_root *root, const char *path, int flags,
                   char **real) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
