/* SPDX-License-Identifier: Apache-2.0 */
/* What serves a store: root, backends, cache, engine and tree, opened with the options
 * of a mount. Everything of a mount but FUSE. */
#ifndef QF_CLI_STACK_H
#define QF_CLI_STACK_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "cache/store.h"
#include "engine/engine.h"
#include "fs/opts.h"
#include "fs/passthrough.h"
#include "fs/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_stack_options {
    const struct qf_mount_options *mount; /* borrowed until qf_stack_close */
    const char *store_path;               /* the same */
    const char *overrides;  /* text for all models, in place of the policy file's; NULL:
                             * that one's. Borrowed until qf_stack_open returns */
    const char *mountpoint; /* refused where a mount cannot be; NULL: there is none */
    /* Without the cache on disk the stack is of no use: no other store in its place,
     * and no passthrough either, which would seal shards. */
    bool cache_only;
};

struct qf_stack {
    const struct qf_mount_options *options;
    struct qf_view views[QF_VIEWS_MAX]; /* those of the options, with the policy file's
                                         * overrides as they were at first */
    size_t view_count;
    char *policy; /* text of overrides for all models, or NULL */
    size_t policy_size;
    uint64_t cache_size, cache_min_free; /* of the limits file, or the options */
    char cache[QF_OPT_TEXT_SIZE];        /* its directory; "": none */
    qf_root *root;
    qf_backend *cpu;
    qf_backend *gpu; /* NULL: none is used */
    qf_store *store;
    qf_engine *engine;
    qf_passthrough *passthrough; /* NULL with cache_only */
    qf_tree *tree;
};

/* The views that -o names, or those that a mount shows by default. -EINVAL. */
int qf_stack_default_views(struct qf_mount_options *options,
                           struct qf_err *err) QF_MUST_CHECK;

/* Opens all of it; after an error qf_stack_close is called, too. */
int qf_stack_open(struct qf_stack *stack, const struct qf_stack_options *options,
                  struct qf_err *err) QF_MUST_CHECK;
/* Reads the policy file and the limits file again. What is wrong with one of them is
 * said in err, and nothing of it is taken; the other is. */
int qf_stack_reload(struct qf_stack *stack, struct qf_err *err) QF_MUST_CHECK;
/* A zeroed stack is closed already. */
void qf_stack_close(struct qf_stack *stack);
/* The one that encodes. */
const char *qf_stack_backend_name(const struct qf_stack *stack);

#ifdef __cplusplus
}
#endif
#endif
