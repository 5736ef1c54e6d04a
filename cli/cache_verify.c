/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/cache.h"
#include "cli/cli.h"
#include "cli/progress.h"

struct verify {
    const struct qf_cache_args *args;
    struct qf_admin_list list;
    struct qf_progress progress;
    bool started;
    struct qf_buf damaged; /* JSON */
};

static const struct qf_admin_origin *find(const struct verify *v, uint64_t id)
{
    for (size_t i = 0; i < v->list.count; i++)
        if (v->list.origins[i].id == id)
            return &v->list.origins[i];
    return NULL;
}

static void on_progress(void *arg, const struct qf_admin_verified *so_far)
{
    struct verify *v = arg;
    if (!v->started)
        qf_progress_start(&v->progress, stderr, "verifying", so_far->bytes_total);
    v->started = true;
    qf_progress_update(&v->progress, so_far->bytes);
}

static void json_text(struct qf_buf *out, const char *text)
{
    qf_buf_append_json(out, text, strlen(text));
}

static void on_damaged(void *arg, const struct qf_admin_damage *damage)
{
    struct verify *v = arg;
    const struct qf_admin_origin *o = find(v, damage->origin);
    char *path = o != NULL && o->id != 0 ? qf_cache_path(o) : NULL;
    const char *kind = damage->is_file ? "file" : "value";
    unsigned long long high = damage->key.high, low = damage->key.low;
    if (v->args->json) {
        qf_buf_appendf(&v->damaged,
                       "%s{\"kind\": \"%s\", \"key\": \"%016llx%016llx\", \"view\": ",
                       v->damaged.size > 0 ? ", " : "", kind, high, low);
        json_text(&v->damaged, path != NULL ? o->view : "");
        qf_buf_append_str(&v->damaged, ", \"model\": ");
        json_text(&v->damaged, path != NULL ? path : "");
        qf_buf_append_str(&v->damaged, "}");
    } else {
        qf_progress_hide(&v->progress);
        printf("damaged: %s %016llx%016llx, %s %s\n", kind, high, low,
               path != NULL ? o->view : "-", path != NULL ? path : "-");
    }
    free(path);
}

static int deep(struct verify *v, struct qf_cache_deep *sum)
{
    int rc = 0;
    for (size_t i = 0; i < v->list.count && rc == 0; i++) {
        struct qf_cache_deep one = {0};
        const struct qf_admin_origin *o = &v->list.origins[i];
        if (o->id == 0 || o->values + o->files == 0)
            continue;
        rc = qf_cache_deep(v->args, o, &one);
        sum->samples += one.samples;
        sum->bytes += one.bytes;
        sum->different += one.different;
        sum->skipped += one.skipped;
        /* What is wrong in one place cannot be trusted in another. */
        const struct qf_admin_which which = {.origins = &o->id, .origin_count = 1};
        struct qf_admin_removed removed;
        if (rc == 0 && one.different > 0)
            rc = qf_admin_remove(v->args->store, &which, false, &removed);
    }
    return rc;
}

static void report(struct verify *v, const struct qf_admin_verified *seen,
                   const struct qf_cache_deep *sum)
{
    if (v->args->json) {
        char *list = qf_buf_take(&v->damaged, NULL);
        printf("{\"values\": %" PRIu64 ", \"files\": %" PRIu64 ", \"bytes\": %" PRIu64
               ", \"damaged_values\": %" PRIu64 ", \"damaged_files\": %" PRIu64
               ",\n \"damaged\": [%s]",
               seen->values, seen->files, seen->bytes, seen->damaged_values,
               seen->damaged_files, list != NULL ? list : "");
        free(list);
        if (v->args->deep)
            printf(",\n \"deep\": {\"samples\": %" PRIu64 ", \"bytes\": %" PRIu64
                   ", \"different\": %" PRIu64 ", \"models_skipped\": %" PRIu64 "}",
                   sum->samples, sum->bytes, sum->different, sum->skipped);
        puts("}");
        return;
    }
    printf("%" PRIu64 " values and %" PRIu64 " flat files (%s) read: %" PRIu64
           " damaged%s\n",
           seen->values, seen->files, qf_bytes_text(seen->bytes).text,
           seen->damaged_values + seen->damaged_files,
           seen->damaged_values + seen->damaged_files > 0 ? " and removed" : "");
    if (v->args->deep)
        printf("%" PRIu64 " samples (%s) encoded anew: %" PRIu64
               " different%s; %" PRIu64
               " of the models and views are not there to compare with\n",
               sum->samples, qf_bytes_text(sum->bytes).text, sum->different,
               sum->different > 0 ? ", and all that was kept with them removed" : "",
               sum->skipped);
}

int qf_cache_verify(const struct qf_cache_args *args)
{
    struct verify v = {.args = args};
    struct qf_admin_verified seen = {0};
    struct qf_cache_deep sum = {0};
    if (!qf_cache_load(args, &v.list))
        return QF_CLI_FAILED;
    qf_log_set_level(QF_LOG_ERROR); /* what is damaged is told here */
    const struct qf_admin_watch watch = {on_progress, on_damaged, &v};
    int rc = qf_admin_verify(args->store, &watch, &seen);
    if (rc == 0 && args->deep)
        rc = deep(&v, &sum);
    qf_progress_hide(&v.progress);
    report(&v, &seen, &sum);
    qf_buf_fini(&v.damaged);
    qf_admin_list_fini(&v.list);
    if (rc != 0)
        return qf_cache_failed(args, rc);
    return seen.damaged_values + seen.damaged_files + sum.different > 0 ? QF_CLI_FAILED
                                                                        : QF_CLI_OK;
}
