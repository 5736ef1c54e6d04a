/* SPDX-License-Identifier: Apache-2.0 */
/* What the subcommands of `quantfs cache` share. */
#ifndef QF_CLI_CACHE_H
#define QF_CLI_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "cache/admin.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_cache_args {
    const char *command; /* "cache prune" */
    const char *dir;
    const char *model; /* pattern, or NULL */
    const char *view;  /* or NULL */
    uint64_t older_s;  /* 0: not asked for */
    bool gone;
    bool json;
    bool dry_run;
    bool deep;
    uint64_t data_before; /* bytes of data.mdb before it was opened */
    qf_store *store;      /* open */
};

/* Each returns the exit code. */
int qf_cache_stat(const struct qf_cache_args *args);
int qf_cache_list(const struct qf_cache_args *args);
int qf_cache_verify(const struct qf_cache_args *args);
int qf_cache_prune(const struct qf_cache_args *args);
int qf_cache_clear(const struct qf_cache_args *args);
int qf_cache_compact(const struct qf_cache_args *args);
int qf_cache_pin(const struct qf_cache_args *args);
int qf_cache_unpin(const struct qf_cache_args *args);

/* Bytes of data.mdb. */
uint64_t qf_cache_data_size(const char *dir);
/* Prints "quantfs cache SUBCOMMAND: what"; returns QF_CLI_FAILED. */
int qf_cache_failed(const struct qf_cache_args *args, int rc);
/* The list, or false and the exit code is QF_CLI_FAILED. */
bool qf_cache_load(const struct qf_cache_args *args, struct qf_admin_list *list);

/* The model's directory; of an unknown origin "". Returns owned, NULL without memory.
 */
char *qf_cache_path(const struct qf_admin_origin *origin);
/* Whether --model and --view name it: the pattern is matched with the directory and
 * with the path in the store. */
bool qf_cache_named(const struct qf_cache_args *args,
                    const struct qf_admin_origin *origin);
/* The model's directory is no more. A store that is empty is taken for one that is not
 * mounted: nothing in it is gone. */
bool qf_cache_gone(const struct qf_admin_origin *origin);

/* `, "model": …, "view": …` and what is kept of it. */
void qf_cache_json_origin(struct qf_buf *out, const struct qf_admin_origin *origin);

struct qf_cache_deep {
    uint64_t samples;
    uint64_t bytes;
    uint64_t different;
    uint64_t skipped; /* origins whose source is not there or cannot be read */
};

/* Encodes a sample of what is kept of the origin anew and compares; prints what is
 * different. -ENOMEM and the like. */
int qf_cache_deep(const struct qf_cache_args *args,
                  const struct qf_admin_origin *origin,
                  struct qf_cache_deep *out) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
