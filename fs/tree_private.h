/* SPDX-License-Identifier: Apache-2.0 */
/* What fs/tree.c shares with fs/file.c and fs/listing.c. */
#ifndef QF_FS_TREE_PRIVATE_H
#define QF_FS_TREE_PRIVATE_H

#include <stdatomic.h>

#include "base/path.h"
#include "fs/metrics.h"
#include "fs/tree.h"
#include "fs/views.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Something the kernel holds open. The first member of qf_file and qf_dir: a session
 * that ends by a signal releases nothing, so the tree closes what is left. */
struct qf_handle {
    struct qf_handle *prev, *next;
    void (*close)(struct qf_handle *handle);
};

struct qf_tree {
    struct qf_tree_options options;
    pthread_mutex_t handles_lock;
    struct qf_handle *handles;
    struct qf_views views;
    qf_catalog *catalog;
    qf_metrics *metrics;
    struct qf_node_table nodes;
    pthread_mutex_t search_lock; /* one search for an unknown id at a time */
    bool resumed; /* the kernel has ids and pages from a daemon before this one */
};

/* The files of the control directory. */
enum qf_control { QF_CONTROL_STATUS, QF_CONTROL_METRICS, QF_CONTROL_COUNT };
extern const char *const qf_control_names[QF_CONTROL_COUNT];
/* QF_CONTROL_COUNT: there is none of this name. */
enum qf_control qf_control_find(const char *name);

void qf_tree_add_handle(qf_tree *tree, struct qf_handle *handle,
                        void (*close)(struct qf_handle *handle));
/* Takes out what qf_tree_add_handle has put in; nothing if that was never done. */
void qf_tree_remove_handle(qf_tree *tree, struct qf_handle *handle);

/* What a place is. */
struct qf_target {
    struct qf_entry entry;
    struct qf_ident source; /* of the file in the store, when it was resolved */
    char *real; /* path without links, for what comes from the store; owned */
    qf_snapshot *snapshot;              /* held when file is not NULL */
    const struct qf_variant_file *file; /* not NULL: a file that the view changes */
    const struct qf_variant *variant;   /* its directory's */
};

/* Finds out what is at a place, as the store is now. `fresh`: does not trust what the
 * catalog has checked a moment ago. */
int qf_tree_resolve(qf_tree *tree, const struct qf_place *place, bool fresh,
                    struct qf_target *out) QF_MUST_CHECK;
/* Attributes of the source, without what a read-only tree cannot have. */
void qf_entry_set_stat(struct qf_entry *entry, const struct stat *source, uint64_t id);
void qf_entry_set_size(struct qf_entry *entry, uint64_t size);
/* Of contents that this identifies. */
uint64_t qf_generation_of(const void *data, size_t size);
/* What cache keys know a source by. real: its path without links. */
struct qf_hash128 qf_shard_id(const char *real, const struct qf_model_shard *shard);
/* The same of a view shard's. */
struct qf_hash128 qf_target_source_id(const struct qf_target *target);
void qf_target_fini(struct qf_target *target);

/* The place of an id, also of one the kernel was never told by this process.
 * *generation is 0 for such. */
int qf_tree_place(qf_tree *tree, uint64_t id, struct qf_place *place,
                  uint64_t *generation) QF_MUST_CHECK;
/* -ESTALE, and in doubt until the kernel looks it up again, unless the generation now
 * is the one that the kernel was told (0: it was told none). */
int qf_tree_check_generation(qf_tree *tree, uint64_t id, uint64_t told,
                             uint64_t now) QF_MUST_CHECK;

/* The entries of a directory of the store that the mount shows. Calls `each` with name
 * and type (DT_DIR or DT_REG) until it returns non-zero, which is then returned. */
int qf_tree_list(const qf_tree *tree, const char *path,
                 int (*each)(void *arg, const char *name, unsigned type),
                 void *arg) QF_MUST_CHECK;
/* The path whose id in one of the views is `id`, by walking the store. */
int qf_tree_search(qf_tree *tree, uint64_t id, struct qf_place *place) QF_MUST_CHECK;

/* -ELOOP when a directory reached through links is one of its own ancestors. */
int qf_tree_check_loop(const qf_tree *tree, const char *path, const char *real);

#ifdef __cplusplus
}
#endif
#endif
