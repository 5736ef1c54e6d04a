/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cache.h"
#include "cli/cli.h"
#include "cli/progress.h"

static int report(const struct qf_cache_args *args,
                  const struct qf_admin_removed *removed, size_t spared)
{
    if (args->json) {
        printf("{\"dry_run\": %s, \"values\": %" PRIu64 ", \"bytes\": %" PRIu64
               ", \"files\": %" PRIu64 ", \"file_bytes\": %" PRIu64
               ", \"pinned_spared\": %zu}\n",
               args->dry_run ? "true" : "false", removed->values, removed->bytes,
               removed->files, removed->file_bytes, spared);
        return QF_CLI_OK;
    }
    printf("%s: %s in %" PRIu64 " values and %s in %" PRIu64 " flat files\n",
           args->dry_run ? "would remove" : "removed",
           qf_bytes_text(removed->bytes).text, removed->values,
           qf_bytes_text(removed->file_bytes).text, removed->files);
    if (spared > 0)
        printf("pinned, and so spared: %zu (see quantfs cache unpin)\n", spared);
    return QF_CLI_OK;
}

static int remove_which(const struct qf_cache_args *args,
                        const struct qf_admin_which *which, size_t spared)
{
    struct qf_admin_removed removed;
    int rc = qf_admin_remove(args->store, which, args->dry_run, &removed);
    if (rc == 0)
        return report(args, &removed, spared);
    /* Steps that were done stay done. */
    report(args, &removed, spared);
    return qf_cache_failed(args, rc);
}

int qf_cache_prune(const struct qf_cache_args *args)
{
    struct qf_admin_list list;
    if (!qf_cache_load(args, &list))
        return QF_CLI_FAILED;
    uint64_t *ids = calloc(list.count + 1, sizeof *ids);
    struct qf_admin_which which = {.origins = ids};
    size_t spared = 0;
    for (size_t i = 0; i < list.count && ids != NULL; i++) {
        const struct qf_admin_origin *o = &list.origins[i];
        if (!qf_cache_named(args, o) || (args->gone && !qf_cache_gone(o)))
            continue;
        if (o->pinned)
            spared++;
        else
            ids[which.origin_count++] = o->id;
    }
    uint64_t now = (uint64_t)time(NULL);
    if (args->older_s != 0)
        which.before_s = now > args->older_s ? now - args->older_s : 1;
    int code = ids != NULL ? remove_which(args, &which, spared)
                           : qf_cache_failed(args, -ENOMEM);
    free(ids);
    qf_admin_list_fini(&list);
    return code;
}

int qf_cache_clear(const struct qf_cache_args *args)
{
    const struct qf_admin_which which = {.all = true};
    return remove_which(args, &which, 0);
}

/* It was done when the cache was opened. */
int qf_cache_compact(const struct qf_cache_args *args)
{
    uint64_t now = qf_cache_data_size(args->dir);
    if (args->json)
        printf("{\"data_bytes_before\": %" PRIu64 ", \"data_bytes\": %" PRIu64 "}\n",
               args->data_before, now);
    else
        printf("data.mdb: %s before, %s now\n", qf_bytes_text(args->data_before).text,
               qf_bytes_text(now).text);
    return QF_CLI_OK;
}

/* ---- pin ---- */

static int set_pins(const struct qf_cache_args *args, bool pinned)
{
    struct qf_admin_list list;
    if (!qf_cache_load(args, &list))
        return QF_CLI_FAILED;
    size_t count = 0;
    int rc = 0;
    for (size_t i = 0; i < list.count && rc == 0; i++) {
        const struct qf_admin_origin *o = &list.origins[i];
        if (o->id == 0 || !qf_cache_named(args, o))
            continue;
        rc = qf_admin_pin(args->store, o->id, pinned);
        if (rc == -ENOENT) { /* evicted or cleared meanwhile */
            rc = 0;
            continue;
        }
        count += rc == 0;
        if (rc == 0 && !args->json) {
            char *path = qf_cache_path(o);
            printf("%s %s %s\n", pinned ? "pinned:" : "unpinned:", o->view,
                   path != NULL ? path : "");
            free(path);
        }
    }
    qf_admin_list_fini(&list);
    if (rc != 0)
        return qf_cache_failed(args, rc);
    if (args->json)
        printf("{\"%s\": %zu}\n", pinned ? "pinned" : "unpinned", count);
    if (count > 0)
        return QF_CLI_OK;
    fprintf(stderr, "quantfs %s: nothing of %s is in the cache %s\n", args->command,
            args->model, args->dir);
    return QF_CLI_FAILED;
}

int qf_cache_pin(const struct qf_cache_args *args)
{
    return set_pins(args, true);
}

int qf_cache_unpin(const struct qf_cache_args *args)
{
    return set_pins(args, false);
}
