/* SPDX-License-Identifier: Apache-2.0 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "cli/cli.h"
#include "cli/models.h"
#include "cli/report.h"
#include "view/overrides.h"

struct info {
    struct qf_report_options options;
    struct qf_view views[QF_VIEWS_MAX];
    const char *wanted; /* the views' names */
    const char *policy; /* a file, or NULL */
    bool json;
    qf_root *root;
    size_t count;
    bool failed;
};

static void fail(void *arg, const char *path, int rc, const struct qf_err *err)
{
    struct info *info = arg;
    fprintf(stderr, "quantfs info: %s: %s\n", path,
            err->text[0] != '\0' ? err->text : strerror(-rc));
    info->failed = true;
}

static void print_model(void *arg, const char *path, struct qf_model *model)
{
    struct info *info = arg;
    struct qf_variant *variants[QF_VIEWS_MAX] = {0};
    struct qf_err err = {""};
    int rc = 0;
    for (size_t i = 0; i < info->options.view_count && rc == 0; i++)
        rc = qf_variant_new(model, &info->views[i], &variants[i]);
    if (rc == 0) {
        struct qf_buf text = {0};
        if (info->json)
            qf_buf_append_str(&text, info->count != 0 ? ",\n" : "");
        (info->json ? qf_report_json
                    : qf_report_text)(path, model,
                                      (const struct qf_variant *const *)variants,
                                      &info->options, &text);
        if (text.failed)
            rc = -ENOMEM;
        else
            fwrite(text.data, 1, text.size, stdout);
        qf_buf_fini(&text);
        info->count++;
    }
    if (rc != 0)
        fail(info, path, rc, &err);
    for (size_t i = 0; i < info->options.view_count; i++)
        qf_variant_free(variants[i]);
    qf_model_free(model);
}

static int take(void *arg, char id, const char *value)
{
    struct info *info = arg;
    if (id == 'j')
        info->json = true;
    else if (id == 't')
        info->options.tensors = true;
    else if (id == 'v')
        info->wanted = value;
    else
        info->policy = value;
    return 0;
}

/* The views as a mount with this policy file would show them. */
static int apply_policy(struct info *info)
{
    struct qf_err err = {""};
    char *text = NULL;
    size_t size = 0;
    int rc = info->policy != NULL ? qf_cli_read_file(info->policy, QF_CONFIG_SIZE_MAX,
                                                     &text, &size, &err)
                                  : 0;
    for (size_t i = 0; text != NULL && rc == 0 && i < info->options.view_count; i++) {
        struct qf_view base = info->views[i];
        rc = qf_overrides_apply(&base, text, size, &info->views[i], &err);
        if (rc != 0)
            qf_err_prefix(&err, "%s", info->policy);
    }
    free(text);
    if (rc != 0)
        fprintf(stderr, "quantfs info: %s\n", err.text);
    return rc;
}

static int tell(struct info *info, const char *name)
{
    char path[PATH_MAX];
    struct qf_err err = {""};
    int rc = qf_models_path(name, path);
    if (rc != 0) {
        fprintf(stderr, "quantfs info: %s: %s\n", name, strerror(-rc));
        return QF_CLI_FAILED;
    }
    rc = qf_root_open("/", &info->root, &err);
    if (rc != 0) {
        fail(info, "/", rc, &err);
        return QF_CLI_FAILED;
    }
    fputs(info->json ? "[" : "", stdout);
    const struct qf_models_visitor visitor = {print_model, fail, info};
    qf_models_walk(info->root, path, &visitor);
    fputs(info->json ? "]\n" : "", stdout);
    qf_root_close(info->root);
    if (info->count == 0 && !info->failed)
        fprintf(stderr, "quantfs info: %s: no model in it or below it\n", name);
    return info->count == 0 || info->failed ? QF_CLI_FAILED : QF_CLI_OK;
}

static int run(const struct qf_cli_command *self, int argc, char **argv)
{
    static struct info info = {.wanted = qf_view_default_list};
    struct qf_cli_line line;
    struct qf_err err = {""};
    int code = qf_cli_parse(self, argc, argv, take, &info, &line);
    if (code >= 0)
        return code;
    if (qf_view_parse_list(info.wanted, info.views, &info.options.view_count, &err) !=
        0)
        return qf_cli_usage_error("info", "%s", err.text);
    info.options.views = info.views;
    code = apply_policy(&info) == 0 ? tell(&info, line.operands[0]) : QF_CLI_FAILED;
    for (size_t i = 0; i < info.options.view_count; i++)
        qf_view_fini(&info.views[i]);
    return code;
}

static const struct qf_cli_option options[] = {
    {.id = 'j', .name = "json", .help = "one JSON document"},
    {.id = 't', .name = "tensors", .help = "every tensor with its reason"},
    {.id = 'v',
     .name = "views",
     .value = "A:B",
     .help = "these views (nf4:int8:dq:fp4)"},
    {.id = 'p',
     .name = "policy",
     .value = "FILE",
     .help = "with the overrides that a mount has by -o policy=FILE"},
    {0},
};

const struct qf_cli_command qf_cmd_info = {
    .name = "info",
    .summary = "tell what a model becomes in each view, and why",
    .about = "Tells what the model in directory PATH, or every model below it, becomes "
             "in each view: bytes in and out, how many tensors are quantized, and why "
             "the others are kept. Reads headers only. PATH may also lie in a mount.",
    .options = options,
    .operands = (const struct qf_cli_operand[]){{.word = "PATH"}, {0}},
    .exits =
        (const struct qf_cli_exit[]){{"0", "told"},
                                     {"1", "usage"},
                                     {"2", "PATH cannot be read or holds no model"},
                                     {0}},
    .run = run,
};
