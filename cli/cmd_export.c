/* SPDX-License-Identifier: Apache-2.0 */
/* Without a mount the whole filesystem is the store, as for quantfs warm. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/export.h"
#include "cli/mounted.h"
#include "cli/stack.h"
#include "fs/tree.h"
#include "view/reshard.h"

struct command {
    struct qf_mount_options options;
    struct qf_view views[QF_VIEWS_MAX]; /* of --view */
    size_t view_count;                  /* 0: not given */
    bool json, quiet;
    struct qf_stack stack;
    struct qf_views_source source;
    struct qf_export export;
    char path[PATH_MAX];   /* absolute, without links */
    char top[PATH_MAX];    /* of the mount */
    char origin[PATH_MAX]; /* in the store */
    char inside[PATH_MAX + QF_VIEW_NAME_SIZE];
    char view[QF_VIEW_NAME_SIZE];
};

/* ---- arguments ---- */

static int set_view(struct command *c, const char *text)
{
    struct qf_err err = {""};
    if (qf_view_parse_list(text, c->views, &c->view_count, &err) != 0)
        return qf_cli_usage_error("export", "%s", err.text);
    if (c->view_count != 1)
        return qf_cli_usage_error("export", "--view %s: one view at a time", text);
    return 0;
}

static int take(void *arg, char id, const char *value)
{
    struct command *c = arg;
    struct qf_err err = {""};
    if (id == 'v')
        return set_view(c, value);
    if (id == 'n')
        return qf_cli_number("export", "--jobs", value, QF_EXPORT_JOBS_MAX,
                             &c->export.jobs);
    if (id == 's' && qf_parse_shard_size(value, &c->export.shard_size) != 0)
        return qf_cli_usage_error("export",
                                  "--max-shard-size %s: not a size (5GB, 500MB, 2GiB)",
                                  value);
    if (id == 'o' && qf_mount_options_parse(&c->options, value, &err) != 0)
        return qf_cli_usage_error("export", "%s", err.text);
    if (id == 'j')
        c->json = true;
    else if (id == 'q')
        c->quiet = true;
    return 0;
}

/* ---- where it is read ---- */

static int from_mount(struct command *c, struct qf_err *err)
{
    const char *rest = c->path + strlen(c->top);
    struct qf_view view; /* by the name that all its spellings have */
    if (rest[0] == '\0')
        return qf_err_set(err, -EINVAL, "%s: name a view in the mount", c->path);
    if (qf_view_parse(rest + 1, strcspn(rest + 1, "/"), &view, NULL) != 0)
        return qf_err_set(err, -EINVAL, "%s: not in a view", c->path);
    snprintf(c->view, sizeof c->view, "%s", view.name);
    if (c->view_count != 0 && strcmp(c->views[0].name, c->view) != 0)
        return qf_err_set(err, -EINVAL, "%s lies in view %s, and --view says %s",
                          c->path, c->view, c->views[0].name);
    memcpy(c->origin, c->path, sizeof c->origin);
    qf_mounted_source(c->origin);
    c->source = (struct qf_views_source){.ops = &qf_source_mount_ops, .top = c->top};
    snprintf(c->inside, sizeof c->inside, "%s", c->path);
    return 0;
}

static int from_store(struct command *c, struct qf_err *err)
{
    const struct qf_stack_options options = {.mount = &c->options, .store_path = "/"};
    if (c->view_count != 1)
        return qf_err_set(err, -EINVAL, "%s lies in no mount: --view is needed",
                          c->path);
    c->options.views[0] = c->views[0];
    c->options.view_count = 1;
    memcpy(c->origin, c->path, sizeof c->origin);
    int rc = qf_stack_open(&c->stack, &options, err);
    if (rc != 0)
        return err->text[0] != '\0' ? rc : qf_err_set(err, rc, "%s", strerror(-rc));
    snprintf(c->view, sizeof c->view, "%s", c->stack.views[0].name);
    c->source = (struct qf_views_source){&qf_source_stack_ops, &c->stack, NULL};
    snprintf(c->inside, sizeof c->inside, "%s%s", c->view, c->path);
    return 0;
}

static int open_path(struct command *c, const char *name, struct qf_err *err)
{
    struct stat st;
    if (realpath(name, c->path) == NULL || stat(c->path, &st) != 0)
        return qf_err_set(err, -errno, "%s: %s", name, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return qf_err_set(err, -ENOTDIR, "%s: not a directory", name);
    int rc = qf_mounted_find(c->path, c->top) ? from_mount(c, err) : from_store(c, err);
    c->export.source = &c->source;
    c->export.top = c->inside;
    c->export.view = c->view;
    c->export.origin = c->origin;
    return rc;
}

/* ---- all of it ---- */

static void report(const struct command *c, double seconds, const char *error)
{
    const struct qf_export *export = &c->export;
    struct qf_buf out = {0};
    uint64_t done = atomic_load(&export->bytes),
             kept = atomic_load(&export->bytes_kept);
    if (c->json) {
        qf_buf_append_str(&out, "{\"source\": ");
        qf_buf_append_json(&out, c->origin, strlen(c->origin));
        qf_buf_append_str(&out, ", \"view\": ");
        qf_buf_append_json(&out, c->view, strlen(c->view));
        qf_buf_append_str(&out, ", \"directory\": ");
        qf_buf_append_json(&out, export->dir, strlen(export->dir));
        qf_buf_appendf(&out,
                       ", \"files\": %zu, \"bytes_written\": %" PRIu64
                       ", \"bytes_kept\": %" PRIu64
                       ", \"seconds\": %.3f, \"interrupted\": %s, \"error\": ",
                       export->file_count, done - kept, kept, seconds,
                       atomic_load(export->stop) != 0 ? "true" : "false");
        if (error != NULL)
            qf_buf_append_json(&out, error, strlen(error));
        else
            qf_buf_append_str(&out, "null");
        qf_buf_append_str(&out, "}\n");
    } else if (!c->quiet && error == NULL && atomic_load(export->stop) == 0) {
        qf_buf_appendf(&out, "%zu files, %s in %.1f s; %s were there already\n",
                       export->file_count, qf_bytes_text(done).text, seconds,
                       qf_bytes_text(kept).text);
    }
    if (out.size != 0 && !out.failed)
        fwrite(out.data, 1, out.size, stdout);
    qf_buf_fini(&out);
}

static int work(struct command *c, const char *name, struct qf_err *err)
{
    int rc = open_path(c, name, err);
    if (rc == 0)
        rc = qf_export_plan(&c->export, err);
    if (rc == 0)
        rc = qf_export_state_open(&c->export, err);
    if (rc == 0)
        rc = qf_export_write(&c->export, c->quiet ? NULL : stderr, err);
    return rc == 0 ? qf_export_state_end(&c->export, err) : rc;
}

static int run(const struct qf_cli_command *self, int argc, char **argv)
{
    static struct command c; /* kilobytes of options */
    struct qf_cli_line line;
    struct qf_err err = {""};
    qf_export_init(&c.export);
    c.export.jobs = QF_EXPORT_JOBS_DEFAULT;
    qf_mount_options_init(&c.options);
    int code = qf_cli_parse(self, argc, argv, take, &c, &line);
    if (code >= 0) {
        qf_export_fini(&c.export);
        return code;
    }
    c.export.dir = line.operands[1];
    c.export.stop = qf_cli_catch_signals();
    qf_log_set_level(c.options.debug ? QF_LOG_DEBUG : QF_LOG_WARN);
    int64_t start_ms = qf_clock_ms();
    int rc = work(&c, line.operands[0], &err);
    int number = rc != 0 ? atomic_load(c.export.stop) : 0;
    if (number != 0)
        fputs("quantfs export: ended early; the same command goes on\n", stderr);
    else if (rc != 0)
        fprintf(stderr, "quantfs export: %s\n",
                err.text[0] != '\0' ? err.text : strerror(-rc));
    report(&c, (double)(qf_clock_ms() - start_ms) / 1000,
           rc != 0 && number == 0 ? err.text : NULL);
    qf_export_fini(&c.export);
    qf_stack_close(&c.stack);
    return number != 0 ? 128 + number : rc != 0 ? QF_CLI_FAILED : QF_CLI_OK;
}

static const struct qf_cli_option options[] = {
    {.id = 'v',
     .name = "view",
     .value = "VIEW",
     .help = "the view, for a path without a mount"},
    {.id = 's',
     .name = "max-shard-size",
     .value = "SIZE",
     .help = "new shards of at most this size (5GB, 500MB, 2GiB), as save_pretrained "
             "makes them"},
    {.id = 'o',
     .letter = true,
     .name = "options",
     .value = "LIST",
     .repeats = true,
     .help = "options of quantfs mount, without a mount"},
    {.id = 'n', .name = "jobs", .value = "N", .help = "writers (4)"},
    {.id = 'j', .name = "json", .help = "one JSON document at the end"},
    {.id = 'q',
     .letter = true,
     .name = "quiet",
     .help = "neither progress nor a summary"},
    {0},
};

const struct qf_cli_command qf_cmd_export = {
    .name = "export",
    .summary = "write a view of a model as a repository to publish",
    .about =
        "Writes what a view shows of directory PATH (a model, or anything with models "
        "in it) to the new directory DIR, as plain files: the same as cp -r of the "
        "mount. PATH lies in a mount (MNT/nf4/model), or in a store; then --view says "
        "as what, and no mount is needed.\n"
        "Everything is synced, read again and compared with its checksum before it "
        "gets its name. When it was interrupted (Ctrl-C, no room, power), the same "
        "command goes on; until it has ended, DIR holds " QF_EXPORT_JOURNAL ".",
    .options = options,
    .operands = (const struct qf_cli_operand[]){{.word = "PATH"}, {.word = "DIR"}, {0}},
    .exits = (const struct qf_cli_exit[]){{"0", "done"},
                                          {"1", "usage"},
                                          {"2", "failed (DIR holds no wrong file)"},
                                          {"128 + N", "ended by signal N"},
                                          {0}},
    .run = run,
};
