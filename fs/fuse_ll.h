/* SPDX-License-Identifier: Apache-2.0 */
/* libfuse's low-level operations over a tree: translation only. One of the two files
 * that know libfuse. */
#ifndef QF_FS_FUSE_LL_H
#define QF_FS_FUSE_LL_H

#include "fs/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

struct fuse_lowlevel_ops;

/* The session's userdata. */
struct qf_fuse_context {
    qf_tree *tree;     /* borrowed */
    double attr_ttl_s; /* how long the kernel may trust names and attributes */
};

const struct fuse_lowlevel_ops *qf_fuse_ops(void);

#ifdef __cplusplus
}
#endif
#endif
