/* SPDX-License-Identifier: Apache-2.0 */
/* Extended attributes of what a mount shows, all of them read-only and named
 * user.quantfs.*:
 *
 *   files that a view changes   .codec .settings .source .size_source .key .digest
 *   other files of a view       .source
 *   directories of a model      .codec .settings, or .reason: why it passes through
 *
 * .source is the path in the store, .key the identity of the contents: the same key
 * means the same bytes, without reading them. .digest is a checksum of the bytes, where
 * it is known without encoding any: JSON files, sealed shards. */
#ifndef QF_FS_XATTR_H
#define QF_FS_XATTR_H

#include "base/buf.h"
#include "base/err.h"
#include "fs/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Appends the value. -ENODATA: there is none of this name; -EOPNOTSUPP: nothing here
 * has attributes of that namespace (who asks for all files then stops asking). */
int qf_xattr_get(qf_tree *tree, uint64_t id, const char *name,
                 struct qf_buf *out) QF_MUST_CHECK;
/* Appends the names, each with its NUL. Those of directories are not listed: `ls -l`
 * asks for lists, and it would read the headers of every model in a directory. */
int qf_xattr_list(qf_tree *tree, uint64_t id, struct qf_buf *out) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
