/* SPDX-License-Identifier: Apache-2.0 */
/* The tree that a mount shows: views on top, below each the store's directories, in
 * them files that pass through and files that a view changes. Knows nothing of FUSE.
 * All calls are thread-safe and take node ids (fs/node.h). */
#ifndef QF_FS_TREE_H
#define QF_FS_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/err.h"
#include "engine/engine.h"
#include "fs/catalog.h"
#include "fs/metrics.h"
#include "fs/node.h"
#include "fs/passthrough.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_tree qf_tree;
typedef struct qf_dir qf_dir;

struct qf_tree_options {
    const qf_root *root;         /* borrowed */
    const struct qf_view *views; /* those that the root lists; borrowed */
    size_t view_count;
    const char *policy; /* overrides for all models, or NULL; borrowed */
    size_t policy_size;
    bool alias_bnb;              /* NAME-bnb-4bit is another name of NAME */
    qf_engine *engine;           /* borrowed */
    qf_store *store;             /* borrowed; for the status file */
    qf_passthrough *passthrough; /* the same; NULL: there is none */
};

/* Models that nobody uses may keep this much memory. */
#define QF_CATALOG_MEMORY (UINT64_C(256) << 20)

/* st_ino is the node id; the generation changes when the contents do. */
struct qf_journal;

struct qf_entry {
    struct stat st;
    uint64_t generation;
};

int qf_tree_new(const struct qf_tree_options *options, qf_tree **out) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_tree_free(qf_tree *tree);

/* What the kernel was told is kept in the journal (borrowed) from now on. `restore`:
 * beginning with what a daemon before this one has told it. */
int qf_tree_keep(qf_tree *tree, struct qf_journal *journal, bool restore) QF_MUST_CHECK;

void qf_tree_keep_nothing(qf_tree *tree);

/* Another policy, valid for the views that the root lists; borrowed. When this returns
 * nobody reads the one before. What is open goes on as it was; the next open of a file
 * that is now another finds another generation. */
void qf_tree_set_policy(qf_tree *tree, const char *policy, size_t size);

/* The entry `name` of a directory, "." and ".." included; counts one reference of the
 * kernel's, which qf_tree_forget gives back. -ENOENT, -EXDEV (a link that leaves the
 * store), -ELOOP, … */
int qf_tree_lookup(qf_tree *tree, uint64_t parent, const char *name,
                   struct qf_entry *out) QF_MUST_CHECK;
void qf_tree_forget(qf_tree *tree, uint64_t id, uint64_t count);
/* -ESTALE when the contents are no longer those of the generation told last. */
int qf_tree_getattr(qf_tree *tree, uint64_t id, struct qf_entry *out) QF_MUST_CHECK;

/* A listing as it was when it was opened: "." and ".." first. */
int qf_tree_opendir(qf_tree *tree, uint64_t id, qf_dir **out) QF_MUST_CHECK;
size_t qf_dir_count(const qf_dir *dir);
/* A reading is over. The kernel closes a directory after the answer to the last one;
 * this puts the same order into memory. */
void qf_dir_read_done(qf_dir *dir);
/* The name of entry `index`, its id, and its type (DT_DIR or DT_REG). Borrowed. */
const char *qf_dir_entry(const qf_dir *dir, size_t index, uint64_t *id, unsigned *type);
/* Another one when names, types or their order are others. */
uint64_t qf_dir_generation(const qf_dir *dir);
/* NULL is allowed. */
void qf_dir_close(qf_dir *dir);

/* What a node is called, "nf4/path", for the log: "" for the root, and for one that the
 * kernel does not hold. Returns owned; NULL without memory. */
char *qf_tree_name(qf_tree *tree, uint64_t id) QF_MUST_CHECK;
/* The text of the status file. */
void qf_tree_status(qf_tree *tree, struct qf_buf *out);
/* Its counters; borrowed. */
qf_metrics *qf_tree_metrics(qf_tree *tree);

int qf_tree_statfs(qf_tree *tree, struct statvfs *out) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
