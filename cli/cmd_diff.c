/* SPDX-License-Identifier: Apache-2.0 */
/* Models are served by a stack of our own, without a mount, over the cache that a mount
 * with the same options has; its root is the whole filesystem. A model that lies in a
 * mount is compared where it is stored: what the mount shows of it is the same. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/diff.h"
#include "cli/models.h"
#include "cli/progress.h"
#include "cli/stack.h"

#define TOP_DEFAULT 20

struct command {
    struct qf_mount_options options;
    const char *path;
    const char *html;
    bool json, csv, quiet;
    enum qf_diff_sort sort;
    size_t top;
    struct qf_stack stack;
    struct qf_diff diff;
    struct qf_progress progress;
    uint64_t done; /* bytes of the models before this one */
    bool failed;
    bool no_memory;
};

/* ---- arguments ---- */

static int set_sort(struct command *c, const char *text)
{
    static const char *const names[] = {
        [QF_DIFF_BY_SQNR] = "sqnr", [QF_DIFF_BY_MSE] = "mse",
        [QF_DIFF_BY_MAX] = "max",   [QF_DIFF_BY_COSINE] = "cosine",
        [QF_DIFF_BY_NAME] = "name",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(text, names[i]) == 0) {
            c->sort = (enum qf_diff_sort)i;
            return 0;
        }
    }
    return qf_cli_usage_error("diff",
                              "--sort %s: must be sqnr, mse, max, cosine or name",
                              text);
}

static int set_top(struct command *c, const char *text)
{
    char *end;
    errno = 0;
    c->top = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0)
        return qf_cli_usage_error("diff", "--top %s: not a number", text);
    return 0;
}

static int take(void *arg, char id, const char *value)
{
    struct command *c = arg;
    struct qf_err err = {""};
    if (id == 's')
        return set_sort(c, value);
    if (id == 't')
        return set_top(c, value);
    if (id == 'o' && qf_mount_options_parse(&c->options, value, &err) != 0)
        return qf_cli_usage_error("diff", "%s", err.text);
    if (id == 'm')
        c->path = value;
    else if (id == 'w')
        c->html = value;
    else if (id == 'j')
        c->json = true;
    else if (id == 'c')
        c->csv = true;
    else if (id == 'q')
        c->quiet = true;
    return 0;
}

static int add_view(struct command *c, const char *name)
{
    struct qf_err err = {""};
    struct qf_mount_options *o = &c->options;
    if (o->view_count == QF_VIEWS_MAX)
        return qf_cli_usage_error("diff", "more than %d views", QF_VIEWS_MAX);
    struct qf_view *view = &o->views[o->view_count];
    if (qf_view_parse(name, strlen(name), view, &err) != 0)
        return qf_cli_usage_error("diff", "%s", err.text);
    for (size_t i = 0; i < o->view_count; i++)
        if (strcmp(o->views[i].name, view->name) == 0)
            return qf_cli_usage_error("diff", "view '%s' is named twice", view->name);
    o->view_count++;
    return 0;
}

static int parse(struct command *c, const struct qf_cli_command *self, int argc,
                 char **argv)
{
    struct qf_cli_line line;
    qf_mount_options_init(&c->options);
    c->path = ".";
    c->top = TOP_DEFAULT;
    int code = qf_cli_parse(self, argc, argv, take, c, &line);
    if (code >= 0)
        return code;
    if (c->json && c->csv)
        return qf_cli_usage_error("diff", "--json and --csv: one of them at a time");
    c->options.view_count = 0; /* not those of -o views= */
    for (size_t i = 0; i < line.count; i++) {
        code = add_view(c, line.operands[i]);
        if (code != 0)
            return code;
    }
    return -1;
}

/* ---- what to compare ---- */

static void fail(void *arg, const char *path, int rc, const struct qf_err *err)
{
    struct command *c = arg;
    qf_progress_hide(&c->progress);
    fprintf(stderr, "quantfs diff: %s: %s\n", path,
            err->text[0] != '\0' ? err->text : strerror(-rc));
    c->failed = true;
}

static int add_skip(struct qf_diff *diff, const char *path, const char *view,
                    const char *reason)
{
    struct qf_diff_skip *skips =
        realloc(diff->skips, (diff->skip_count + 1) * sizeof *skips);
    char *copy = strdup(path);
    if (skips != NULL)
        diff->skips = skips;
    if (skips == NULL || copy == NULL) {
        free(copy);
        return -ENOMEM;
    }
    struct qf_diff_skip *skip = &skips[diff->skip_count++];
    *skip = (struct qf_diff_skip){.path = copy};
    snprintf(skip->view, sizeof skip->view, "%s", view);
    snprintf(skip->reason, sizeof skip->reason, "%s", reason);
    fprintf(stderr, "quantfs diff: %s: not in %s: %s\n", path, view, reason);
    return 0;
}

/* Why the view has nothing to compare, shard by shard; "" else. */
static const char *reason_of(const struct qf_variant *variant)
{
    bool gguf = qf_codec_info(variant->view.codec)->family == QF_FAMILY_GGUF;
    return variant->reason[0] == '\0' && gguf ? "GGUF files are not compared"
                                              : variant->reason;
}

/* The views that quantize the model; the others are told. */
static int add_variants(struct command *c, struct qf_diff_model *to)
{
    for (size_t i = 0; i < c->stack.view_count; i++) {
        struct qf_variant *variant;
        int rc = qf_variant_new(to->model, &c->stack.views[i], &variant);
        if (rc != 0)
            return rc;
        if (reason_of(variant)[0] == '\0') {
            to->variants[to->variant_count++] = variant;
            continue;
        }
        rc = add_skip(&c->diff, to->path, c->stack.views[i].name, reason_of(variant));
        qf_variant_free(variant);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static void add_model(void *arg, const char *path, struct qf_model *model)
{
    struct command *c = arg;
    struct qf_diff *diff = &c->diff;
    struct qf_diff_model *models =
        realloc(diff->models, (diff->model_count + 1) * sizeof *models);
    char *copy = strdup(path);
    if (models != NULL)
        diff->models = models;
    if (models == NULL || copy == NULL) {
        free(copy);
        qf_model_free(model);
        c->no_memory = true;
        return;
    }
    struct qf_diff_model *to = &models[diff->model_count++];
    *to = (struct qf_diff_model){.path = copy, .model = model};
    if (add_variants(c, to) != 0)
        c->no_memory = true;
}

/* ---- comparing ---- */

static void show_progress(void *arg, uint64_t done)
{
    struct command *c = arg;
    qf_progress_update(&c->progress, c->done + done);
}

static void compare_model(struct command *c, struct qf_diff_model *model)
{
    const struct qf_compare_options options = {.root = c->stack.root,
                                               .engine = c->stack.engine,
                                               .thread_count = c->options.threads,
                                               .progress = show_progress,
                                               .progress_arg = c};
    uint64_t origins[QF_VIEWS_MAX];
    const struct qf_compare_input input = {
        .path = model->path + 1,
        .model = model->model,
        .variant_count = model->variant_count,
        .variants = (const struct qf_variant *const *)model->variants,
        .origins = origins};
    struct qf_err err = {""};
    for (size_t v = 0; v < model->variant_count; v++)
        origins[v] = qf_store_origin(c->stack.store, model->variants[v]->view.name,
                                     qf_root_path(c->stack.root), input.path);
    int rc = qf_compare_run(&options, &input, &model->compare, &err);
    if (rc != 0) {
        fail(c, model->path, rc, &err);
        snprintf(model->failure, sizeof model->failure, "%s", err.text);
    }
    c->done += qf_compare_work(model->model);
}

static void compare_models(struct command *c)
{
    uint64_t total = 0;
    for (size_t i = 0; i < c->diff.model_count; i++)
        if (c->diff.models[i].variant_count != 0)
            total += qf_compare_work(c->diff.models[i].model);
    qf_progress_start(&c->progress, c->quiet ? NULL : stderr, "comparing", total);
    for (size_t i = 0; i < c->diff.model_count; i++)
        if (c->diff.models[i].variant_count != 0)
            compare_model(c, &c->diff.models[i]);
    qf_progress_end(&c->progress, c->done);
}

/* ---- what comes of it ---- */

/* A file that cannot be written is told before the work, not after it. */
static int open_page(const struct command *c, int *fd)
{
    *fd = c->html != NULL ? open(c->html, O_WRONLY | O_CREAT | O_CLOEXEC, 0666) : -1;
    if (c->html == NULL || *fd >= 0)
        return 0;
    fprintf(stderr, "quantfs diff: %s: %s\n", c->html, strerror(errno));
    return -1;
}

static int write_all(int fd, const struct qf_buf *text)
{
    if (ftruncate(fd, 0) != 0 && errno != EINVAL) /* a pipe has no length */
        return -errno;
    for (size_t done = 0; done < text->size;) {
        ssize_t n = write(fd, text->data + done, text->size - done);
        if (n < 0 && errno != EINTR)
            return -errno;
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* Closes the file. */
static int write_page(const struct command *c, int fd)
{
    struct qf_buf page = {0};
    qf_diff_html(&c->diff, &page);
    int rc = page.failed ? -ENOMEM : write_all(fd, &page);
    if (close(fd) != 0 && rc == 0)
        rc = -errno;
    qf_buf_fini(&page);
    if (rc != 0)
        fprintf(stderr, "quantfs diff: %s: %s\n", c->html, strerror(-rc));
    return rc;
}

static int report(const struct command *c)
{
    struct qf_buf text = {0};
    if (c->json)
        qf_diff_json(&c->diff, &text);
    else if (c->csv)
        qf_diff_csv(&c->diff, &text);
    else
        qf_diff_text(&c->diff, c->sort, c->top, &text);
    int rc = text.failed ? -ENOMEM : 0;
    if (rc == 0 && text.size != 0)
        fwrite(text.data, 1, text.size, stdout);
    qf_buf_fini(&text);
    if (rc == 0 && (fflush(stdout) != 0 || ferror(stdout)))
        rc = -EIO;
    if (rc != 0)
        fprintf(stderr, "quantfs diff: writing the result: %s\n", strerror(-rc));
    return rc;
}

static bool any_compared(const struct qf_diff *diff)
{
    for (size_t i = 0; i < diff->model_count; i++)
        if (diff->models[i].compare != NULL)
            return true;
    return false;
}

static int open_stack(struct command *c)
{
    struct qf_err err = {""};
    const struct qf_stack_options options = {.mount = &c->options, .store_path = "/"};
    int rc = qf_stack_open(&c->stack, &options, &err);
    if (rc != 0)
        fprintf(stderr, "quantfs diff: %s\n",
                err.text[0] != '\0' ? err.text : strerror(-rc));
    return rc;
}

static int work(struct command *c)
{
    char path[PATH_MAX];
    int fd;
    int64_t start_ms = qf_clock_ms();
    int rc = qf_models_path(c->path, path);
    if (rc != 0)
        fprintf(stderr, "quantfs diff: %s: %s\n", c->path, strerror(-rc));
    if (rc != 0 || open_page(c, &fd) != 0)
        return QF_CLI_FAILED;
    rc = open_stack(c);
    if (rc == 0) {
        const struct qf_models_visitor visitor = {add_model, fail, c};
        qf_models_walk(c->stack.root, path, &visitor);
        if (c->diff.model_count == 0 && !c->failed)
            fprintf(stderr, "quantfs diff: %s: no model in it or below it\n", c->path);
        if (c->no_memory)
            fprintf(stderr, "quantfs diff: %s\n", strerror(ENOMEM));
        compare_models(c);
        c->diff.seconds = (double)(qf_clock_ms() - start_ms) / 1000;
    }
    if (rc == 0)
        rc = report(c);
    if (rc == 0 && fd >= 0)
        rc = write_page(c, fd);
    else if (fd >= 0)
        close(fd);
    return rc != 0 || c->failed || c->no_memory || !any_compared(&c->diff)
               ? QF_CLI_FAILED
               : QF_CLI_OK;
}

static void diff_fini(struct qf_diff *diff)
{
    for (size_t i = 0; i < diff->model_count; i++) {
        struct qf_diff_model *model = &diff->models[i];
        qf_compare_free(model->compare);
        for (size_t v = 0; v < model->variant_count; v++)
            qf_variant_free(model->variants[v]);
        qf_model_free(model->model);
        free(model->path);
    }
    for (size_t i = 0; i < diff->skip_count; i++)
        free(diff->skips[i].path);
    free(diff->models);
    free(diff->skips);
}

static int run(const struct qf_cli_command *self, int argc, char **argv)
{
    static struct command c; /* kilobytes of options */
    int code = parse(&c, self, argc, argv);
    if (code >= 0)
        return code;
    qf_log_set_level(c.options.debug ? QF_LOG_DEBUG : QF_LOG_WARN);
    code = work(&c);
    diff_fini(&c.diff);
    qf_stack_close(&c.stack);
    return code;
}

static const struct qf_cli_option options[] = {
    {.id = 'm',
     .name = "model",
     .value = "PATH",
     .help = "a model, a store or a path in a mount (.)"},
    {.id = 'o',
     .letter = true,
     .name = "options",
     .value = "LIST",
     .repeats = true,
     .help = "options of quantfs mount"},
    {.id = 'j', .name = "json", .help = "all numbers, as JSON"},
    {.id = 'c', .name = "csv", .help = "all numbers, as CSV"},
    {.id = 'w', .name = "html", .value = "FILE", .help = "a page with plots, too"},
    {.id = 's',
     .name = "sort",
     .value = "sqnr|mse|max|cosine|name",
     .help = "tensors by this, worst first (sqnr)"},
    {.id = 't', .name = "top", .value = "N", .help = "as many tensors, 0 all (20)"},
    {.id = 'q', .letter = true, .name = "quiet", .help = "no progress"},
    {0},
};

const struct qf_cli_command qf_cmd_diff = {
    .name = "diff",
    .summary = "tell what views cost a model: errors and sizes",
    .about =
        "Tells what each VIEW (nf4, ao-int8wo, fp8, also with settings) costs a model "
        "against its source: mean squared error, largest error, signal to noise "
        "(SQNR), cosine, size and bits per weight, for every tensor and in total, and "
        "the share of codes that differ between two views with codes alike. Reads "
        "through the "
        "cache of a mount with the same options.",
    .options = options,
    .operands = (const struct qf_cli_operand[]){{.word = "VIEW", .repeats = true}, {0}},
    .exits =
        (const struct qf_cli_exit[]){{"0", "told"},
                                     {"1", "usage"},
                                     {"2", "something could not be read, or no view "
                                           "changes a model there (the rest is told)"},
                                     {0}},
    .run = run,
};
