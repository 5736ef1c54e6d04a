/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "ckpt/printable.h"
#include "cli/cache.h"
#include "cli/cli.h"
#include "cli/progress.h"

/* ---- sources ---- */

static bool is_missing(const char *path)
{
    struct stat st;
    return stat(path, &st) != 0 && (errno == ENOENT || errno == ENOTDIR);
}

static bool is_empty(const char *path)
{
    DIR *list = opendir(path);
    if (list == NULL)
        return false;
    bool empty = true;
    for (struct dirent *e; empty && (e = readdir(list)) != NULL;)
        empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    closedir(list);
    return empty;
}

bool qf_cache_gone(const struct qf_admin_origin *origin)
{
    char *path = origin->id != 0 ? qf_cache_path(origin) : NULL;
    bool gone = path != NULL && is_missing(path) && !is_empty(origin->store);
    free(path);
    return gone;
}

/* ---- JSON ---- */

static void json_text(struct qf_buf *out, const char *text)
{
    qf_buf_append_json(out, text, strlen(text));
}

/* Of the lookups of what is there: each was put once, after a miss. */
static double hit_rate(const struct qf_admin_origin *o)
{
    uint64_t all = o->hits + o->values + o->files;
    return all != 0 ? (double)o->hits / (double)all : 0;
}

void qf_cache_json_origin(struct qf_buf *out, const struct qf_admin_origin *o)
{
    char *path = qf_cache_path(o);
    qf_buf_append_str(out, "{\"model\": ");
    if (o->id == 0 || path == NULL)
        qf_buf_append_str(out, "null");
    else
        json_text(out, path);
    qf_buf_append_str(out, ", \"view\": ");
    if (o->id == 0)
        qf_buf_append_str(out, "null");
    else
        json_text(out, o->view);
    qf_buf_appendf(out,
                   ", \"bytes\": %" PRIu64 ", \"values\": %" PRIu64
                   ", \"file_bytes\": %" PRIu64 ", \"files\": %" PRIu64
                   ", \"hits\": %" PRIu64 ", \"hit_rate\": %.4f, \"last_use\": %" PRIu64
                   ", \"pinned\": %s, \"gone\": %s}",
                   o->bytes, o->values, o->file_bytes, o->files, o->hits, hit_rate(o),
                   o->last_s, o->pinned ? "true" : "false",
                   qf_cache_gone(o) ? "true" : "false");
    free(path);
}

static void json_models(const struct qf_cache_args *args,
                        const struct qf_admin_list *list, struct qf_buf *out)
{
    bool any = false;
    qf_buf_append_str(out, "[");
    for (size_t i = 0; i < list->count; i++) {
        if (!qf_cache_named(args, &list->origins[i]))
            continue;
        qf_buf_append_str(out, any ? ",\n " : "");
        qf_cache_json_origin(out, &list->origins[i]);
        any = true;
    }
    qf_buf_append_str(out, "]");
}

static int print_buf(const struct qf_cache_args *args, struct qf_buf *out)
{
    char *text = qf_buf_take(out, NULL);
    if (text == NULL)
        return qf_cache_failed(args, -ENOMEM);
    puts(text);
    free(text);
    return QF_CLI_OK;
}

/* ---- stat ---- */

uint64_t qf_cache_data_size(const char *dir)
{
    char path[4200];
    struct stat st;
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

static void print_model(const struct qf_admin_origin *o)
{
    char when[32] = "never";
    time_t last = (time_t)o->last_s;
    struct tm tm;
    if (o->last_s != 0 && localtime_r(&last, &tm) != NULL)
        strftime(when, sizeof when, "%Y-%m-%d %H:%M", &tm);
    char *path = qf_cache_path(o);
    printf("%-8s %10s %8" PRIu64 " %5" PRIu64 " %9" PRIu64 " %5.1f %%  %-16s  %s%s%s\n",
           o->id != 0 ? qf_printable(o->view).text : "-",
           qf_bytes_text(o->bytes + o->file_bytes).text, o->values, o->files, o->hits,
           100 * hit_rate(o), when,
           o->id == 0     ? "(not known)"
           : path != NULL ? qf_printable(path).text
                          : "?",
           o->pinned ? " (pinned)" : "", qf_cache_gone(o) ? " (gone)" : "");
    free(path);
}

static void print_stat(const struct qf_cache_args *args,
                       const struct qf_store_stats *stats,
                       const struct qf_admin_list *list)
{
    printf("%s: %s of %s, in %" PRIu64 " values and %" PRIu64 " flat files (%s); "
           "data.mdb has %s\n",
           args->dir, qf_bytes_text(stats->bytes).text,
           qf_bytes_text(stats->bytes_limit).text, stats->entries, stats->files,
           qf_bytes_text(stats->file_bytes).text,
           qf_bytes_text(qf_cache_data_size(args->dir)).text);
    if (list->count == 0)
        return;
    printf("%-8s %10s %8s %5s %9s %7s  %-16s  %s\n", "VIEW", "BYTES", "VALUES", "FILES",
           "HITS", "RATE", "LAST USE", "MODEL");
    for (size_t i = 0; i < list->count; i++)
        print_model(&list->origins[i]);
}

int qf_cache_stat(const struct qf_cache_args *args)
{
    struct qf_admin_list list;
    struct qf_store_stats stats;
    if (!qf_cache_load(args, &list))
        return QF_CLI_FAILED;
    qf_store_stats(args->store, &stats);
    int code = QF_CLI_OK;
    if (args->json) {
        struct qf_buf out = {0};
        qf_buf_append_str(&out, "{\"cache\": ");
        json_text(&out, args->dir);
        qf_buf_appendf(&out,
                       ", \"bytes\": %" PRIu64 ", \"limit\": %" PRIu64
                       ", \"data_bytes\": %" PRIu64 ", \"values\": %" PRIu64
                       ", \"files\": %" PRIu64 ", \"file_bytes\": %" PRIu64
                       ",\n \"models\": ",
                       stats.bytes, stats.bytes_limit, qf_cache_data_size(args->dir),
                       stats.entries, stats.files, stats.file_bytes);
        json_models(args, &list, &out);
        qf_buf_append_str(&out, "}");
        code = print_buf(args, &out);
    } else {
        print_stat(args, &stats, &list);
    }
    qf_admin_list_fini(&list);
    return code;
}

/* ---- list ---- */

/* A path is one field of one line whatever it holds. */
static void print_path(const char *path)
{
    for (; *path != '\0'; path++) {
        if (*path == '\t' || *path == '\n' || *path == '\\')
            printf("\\%c", *path == '\t' ? 't' : *path == '\n' ? 'n' : '\\');
        else
            putchar(*path);
    }
}

int qf_cache_list(const struct qf_cache_args *args)
{
    struct qf_admin_list list;
    if (!qf_cache_load(args, &list))
        return QF_CLI_FAILED;
    int code = QF_CLI_OK;
    if (args->json) {
        struct qf_buf out = {0};
        json_models(args, &list, &out);
        code = print_buf(args, &out);
    }
    for (size_t i = 0; i < list.count && !args->json; i++) {
        const struct qf_admin_origin *o = &list.origins[i];
        if (!qf_cache_named(args, o))
            continue;
        char *path = qf_cache_path(o);
        printf("%s\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64
               "\t%d\t",
               o->id != 0 ? o->view : "-", o->bytes + o->file_bytes, o->values,
               o->files, o->hits, o->last_s, o->pinned);
        print_path(o->id != 0 && path != NULL ? path : "-");
        putchar('\n');
        free(path);
    }
    qf_admin_list_fini(&list);
    return code;
}
