/* SPDX-License-Identifier: Apache-2.0 */
/* Without a mount the whole filesystem is the store, as for quantfs info: links may
 * lead anywhere (a snapshot of a hub cache points to blobs beside it), and what is
 * cached goes by the source files' identity, not by where the store begins. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/mounted.h"
#include "cli/stack.h"
#include "cli/warm.h"

struct command {
    struct qf_mount_options options;
    struct qf_view views[QF_VIEWS_MAX]; /* of --view */
    size_t view_count;                  /* 0: all */
    unsigned jobs;
    bool json;
    bool quiet;
    struct qf_stack stack;
    struct qf_views_source own;     /* over it, once it is open */
    struct qf_views_source *mounts; /* one a path */
    char (*tops)[PATH_MAX];
    size_t mount_count;
    struct qf_warm warm;
};

/* ---- arguments ---- */

static int take(void *arg, char id, const char *value)
{
    struct command *c = arg;
    struct qf_err err = {""};
    int rc = 0;
    if (id == 'v')
        rc = qf_view_parse_list(value, c->views, &c->view_count, &err);
    else if (id == 'o')
        rc = qf_mount_options_parse(&c->options, value, &err);
    else if (id == 'n')
        return qf_cli_number("warm", "--jobs", value, QF_WARM_JOBS_MAX, &c->jobs);
    else if (id == 'j')
        c->json = true;
    else
        c->quiet = true;
    return rc == 0 ? 0 : qf_cli_usage_error("warm", "%s", err.text);
}

static int parse(struct command *c, const struct qf_cli_command *self, int argc,
                 char **argv, struct qf_cli_line *line)
{
    struct qf_err err = {""};
    qf_mount_options_init(&c->options);
    c->jobs = QF_WARM_JOBS_DEFAULT;
    int code = qf_cli_parse(self, argc, argv, take, c, line);
    if (code >= 0)
        return code;
    if (c->view_count != 0) {
        memcpy(c->options.views, c->views, sizeof c->views);
        c->options.view_count = c->view_count;
    }
    if (qf_stack_default_views(&c->options, &err) != 0)
        return qf_cli_usage_error("warm", "%s", err.text);
    return -1;
}

/* ---- what to read ---- */

static bool is_wanted(const struct command *c, const char *view)
{
    for (size_t i = 0; i < c->view_count; i++)
        if (strcmp(c->views[i].name, view) == 0)
            return true;
    return c->view_count == 0;
}

/* Absolute and without links, but for the last component of a file: a link's name says
 * which model it belongs to. */
static int absolute_path(const char *name, char out[PATH_MAX])
{
    struct stat st;
    if (stat(name, &st) != 0)
        return -errno;
    if (S_ISDIR(st.st_mode))
        return realpath(name, out) != NULL ? 0 : -errno;
    char copy[PATH_MAX];
    if ((size_t)snprintf(copy, sizeof copy, "%s", name) >= sizeof copy)
        return -ENAMETOOLONG;
    char *slash = strrchr(copy, '/');
    const char *base = slash != NULL ? slash + 1 : copy;
    char keep[PATH_MAX];
    snprintf(keep, sizeof keep, "%s", base);
    if (slash != NULL)
        slash[slash == copy] = '\0';
    if (realpath(slash != NULL ? copy : ".", out) == NULL)
        return -errno;
    size_t n = strlen(out);
    int added = snprintf(out + n, PATH_MAX - n, "%s%s", n > 1 ? "/" : "", keep);
    return (size_t)added < PATH_MAX - n ? 0 : -ENAMETOOLONG;
}

struct add_views {
    struct command *c;
    const struct qf_views_source *source;
    int rc;
};

static int add_view(void *arg, const char *name, bool is_dir)
{
    struct add_views *a = arg;
    char path[PATH_MAX + NAME_MAX + 2];
    if (!is_dir || !is_wanted(a->c, name))
        return 0;
    snprintf(path, sizeof path, "%s/%s", a->source->top, name);
    a->rc = qf_warm_add(&a->c->warm, a->source, name, path, 0);
    return a->rc;
}

/* The views of a mount that are wanted, listed or not; all that it lists if none is
 * named. */
static int add_top(struct command *c, const struct qf_views_source *source)
{
    struct add_views a = {c, source, 0};
    int rc = 0;
    for (size_t i = 0; i < c->view_count && a.rc == 0; i++)
        add_view(&a, c->views[i].name, true);
    if (c->view_count == 0)
        rc = source->ops->list(source, source->top, add_view, &a);
    if (rc != 0 && a.rc == 0)
        qf_warm_fail(&c->warm, source->top, rc);
    return a.rc;
}

static int add_mounted(struct command *c, const char *path)
{
    struct qf_views_source *source = &c->mounts[c->mount_count];
    const char *top = c->tops[c->mount_count++];
    *source = (struct qf_views_source){.ops = &qf_source_mount_ops, .top = top};
    const char *rest = path + strlen(top);
    if (rest[0] == '\0')
        return add_top(c, source);
    struct qf_view view; /* by the name that all its spellings have */
    if (qf_view_parse(rest + 1, strcspn(rest + 1, "/"), &view, NULL) != 0 ||
        !is_wanted(c, view.name)) {
        fprintf(stderr, "quantfs warm: %s: not in a view that is wanted\n", path);
        qf_warm_fail(&c->warm, path, -EINVAL);
        c->warm.trouble_told = c->warm.trouble_count;
        return 0;
    }
    return qf_warm_add(&c->warm, source, view.name, path, 0);
}

static int open_stack(struct command *c)
{
    struct qf_err err = {""};
    const struct qf_stack_options options = {.mount = &c->options,
                                             .store_path = "/",
                                             .cache_only = true};
    int rc = qf_stack_open(&c->stack, &options, &err);
    if (rc != 0)
        fprintf(stderr, "quantfs warm: %s\n",
                err.text[0] != '\0' ? err.text : strerror(-rc));
    else
        c->own =
            (struct qf_views_source){.ops = &qf_source_stack_ops, .stack = &c->stack};
    return rc;
}

static int add_store(struct command *c, const char *path)
{
    int rc = c->own.ops == NULL ? open_stack(c) : 0;
    for (size_t i = 0; i < c->stack.view_count && rc == 0; i++) {
        char in_view[PATH_MAX + QF_VIEW_NAME_SIZE];
        const char *view = c->stack.views[i].name;
        snprintf(in_view, sizeof in_view, "%s%s", view, path);
        rc = qf_warm_add(&c->warm, &c->own, view, in_view, strlen(view));
    }
    return rc;
}

static int add_path(struct command *c, const char *name)
{
    char path[PATH_MAX];
    int rc = absolute_path(name, path);
    if (rc != 0) {
        qf_warm_fail(&c->warm, name, rc);
        rc = 0;
    } else if (qf_mounted_find(path, c->tops[c->mount_count])) {
        rc = add_mounted(c, path);
    } else {
        rc = add_store(c, path);
    }
    qf_warm_tell_troubles(&c->warm);
    return rc;
}

/* ---- all of it ---- */

static int report(const struct command *c, double seconds)
{
    struct qf_buf text = {0};
    if (c->json)
        qf_warm_json(&c->warm, seconds, &text);
    else if (!c->quiet)
        qf_warm_text(&c->warm, seconds, &text);
    int rc = text.failed ? -ENOMEM : 0;
    if (rc == 0 && text.size != 0)
        fwrite(text.data, 1, text.size, stdout);
    qf_buf_fini(&text);
    return rc;
}

static int work(struct command *c, char **paths, size_t count)
{
    int64_t start_ms = qf_clock_ms();
    int rc = 0;
    c->mounts = calloc(count, sizeof *c->mounts);
    c->tops = calloc(count, sizeof *c->tops);
    if (c->mounts == NULL || c->tops == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < count && rc == 0 && atomic_load(c->warm.stop) == 0; i++)
        rc = add_path(c, paths[i]);
    if (rc == 0 && c->warm.model_count != 0)
        rc = qf_warm_run(&c->warm, c->quiet ? NULL : stderr);
    else if (rc == 0 && c->warm.trouble_count == 0 && !c->quiet)
        fputs("quantfs warm: no shard there is quantized (quantfs info tells why)\n",
              stderr);
    return rc == 0 ? report(c, (double)(qf_clock_ms() - start_ms) / 1000) : rc;
}

static int run(const struct qf_cli_command *self, int argc, char **argv)
{
    static struct command c; /* kilobytes of options */
    struct qf_cli_line line;
    int code = parse(&c, self, argc, argv, &line);
    if (code >= 0)
        return code;
    qf_log_set_level(c.options.debug ? QF_LOG_DEBUG : QF_LOG_WARN);
    qf_warm_init(&c.warm, c.jobs, qf_cli_catch_signals());
    int rc = work(&c, line.operands, line.count);
    int number = atomic_load(c.warm.stop);
    if (rc == -ENOMEM || rc == -EAGAIN)
        fprintf(stderr, "quantfs warm: %s\n", strerror(-rc));
    else if (number != 0)
        fputs("quantfs warm: ended early; what was encoded stays in the cache\n",
              stderr);
    code = rc != 0 || c.warm.trouble_count != 0 ? QF_CLI_FAILED : QF_CLI_OK;
    qf_warm_fini(&c.warm);
    qf_stack_close(&c.stack);
    free(c.mounts);
    free(c.tops);
    return number != 0 ? 128 + number : code;
}

/* --view is short for --views, as abbreviations are. */
static const struct qf_cli_option options[] = {
    {.id = 'v',
     .name = "views",
     .value = "A:B",
     .help = "these views (all of the mount; nf4:int8:dq:fp4)"},
    {.id = 'o',
     .letter = true,
     .name = "options",
     .value = "LIST",
     .repeats = true,
     .help = "options of quantfs mount, for paths without a mount"},
    {.id = 'n', .name = "jobs", .value = "N", .help = "readers (4)"},
    {.id = 'j', .name = "json", .help = "one JSON document at the end"},
    {.id = 'q',
     .letter = true,
     .name = "quiet",
     .help = "neither progress nor a summary"},
    {0},
};

const struct qf_cli_command qf_cmd_warm = {
    .name = "warm",
    .summary = "encode ahead what lies at a path, into the cache",
    .about =
        "Encodes ahead what lies at and below each PATH, so that it is in the cache "
        "when it is read. PATH is a mount or lies in one (MNT, MNT/nf4/model, a file): "
        "then it is read through the mount. Or it is a store, a model or a shard: then "
        "it is encoded here, into the cache that a mount with the same options uses, "
        "also while one does.\n"
        "Ctrl-C ends it; what was encoded stays in the cache.",
    .options = options,
    .operands = (const struct qf_cli_operand[]){{.word = "PATH", .repeats = true}, {0}},
    .exits =
        (const struct qf_cli_exit[]){{"0", "done"},
                                     {"1", "usage"},
                                     {"2",
                                      "something could not be read (the rest is done)"},
                                     {"128 + N", "ended by signal N"},
                                     {0}},
    .run = run,
};
