/* SPDX-License-Identifier: Apache-2.0 */
/* MNT/.quantfs/status: one key=value a line. The keys are part of the interface. */
#ifndef QF_FS_STATUS_H
#define QF_FS_STATUS_H

#include "base/buf.h"
#include "fs/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

void qf_status_text(const struct qf_tree_options *options, const qf_catalog *catalog,
                    struct qf_buf *out);

#ifdef __cplusplus
}
#endif
#endif
