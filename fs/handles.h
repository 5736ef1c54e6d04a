/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel has open, by the number that it was told (fh). Each open is in the
 * journal, if there is one: a daemon that goes on from it has the numbers and opens
 * what is behind one when it is first used, or answers -ESTALE when that is no longer
 * what was opened. All calls are thread-safe. */
#ifndef QF_FS_HANDLES_H
#define QF_FS_HANDLES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "fs/file.h"
#include "fs/journal.h"
#include "fs/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_handles qf_handles;

/* What is told about an open; of a directory, generation is its listing's. */
struct qf_handle_info {
    uint64_t node, generation;
    uint64_t unique;   /* of the request that opened it */
    int32_t backing;   /* passthrough's; 0: none */
    uint32_t is_shard; /* a view shard, of which passthrough keeps count */
};

/* journal: borrowed, or NULL. */
int qf_handles_new(qf_tree *tree, qf_journal *journal, qf_handles **out) QF_MUST_CHECK;
/* Closes nothing: the tree does. NULL is allowed. */
void qf_handles_free(qf_handles *handles);
/* Takes up what the journal has, and calls `each` for it. */
int qf_handles_restore(qf_handles *handles,
                       void (*each)(void *arg, const struct qf_handle_info *info),
                       void *arg) QF_MUST_CHECK;
/* The kernel sends this request again, so it never heard of what was opened for it: the
 * handle goes. False: there was none. */
bool qf_handles_drop(qf_handles *handles, uint64_t unique, struct qf_handle_info *info);

/* Take the file or directory over, also on failure (-ENOMEM). */
int qf_handles_add_file(qf_handles *handles, const struct qf_handle_info *info,
                        qf_file *file, uint64_t *fh) QF_MUST_CHECK;
int qf_handles_add_dir(qf_handles *handles, const struct qf_handle_info *info,
                       qf_dir *dir, uint64_t *fh) QF_MUST_CHECK;
/* A reference to the file; qf_file_close gives it back. -EBADF; -ESTALE and what
 * qf_file_open returns when it has to be opened again. */
int qf_handles_file(qf_handles *handles, uint64_t fh, qf_file **out) QF_MUST_CHECK;
/* Borrowed until the handle is released. */
int qf_handles_dir(qf_handles *handles, uint64_t fh, qf_dir **out) QF_MUST_CHECK;
/* Closes what is behind it. False: there is no such handle. */
bool qf_handles_release(qf_handles *handles, uint64_t fh, struct qf_handle_info *info);

#ifdef __cplusplus
}
#endif
#endif
