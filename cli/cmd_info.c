/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
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
    const char *policy; /* a file, or NULL */
    bool json;
    qf_root *root;
    size_t count;
    bool failed;
};

static void print_help(void)
{
    puts("usage: quantfs info [--json] [--tensors] [--views A:B] [--policy FILE] PATH\n"
         "\n"
         "Tells what the model in directory PATH, or every model below it, becomes in "
         "each\n"
         "view: bytes in and out, how many tensors are quantized, and why the others "
         "are\n"
         "kept. Reads headers only. PATH may also lie in a mount.\n"
         "\n"
         "      --json         one JSON document\n"
         "      --tensors      every tensor with its reason\n"
         "      --views A:B    these views (nf4:int8:dq:fp4)\n"
         "      --policy FILE  with the overrides that a mount has by -o policy=FILE\n"
         "\n"
         "exit codes: 0 told, 1 usage, 2 PATH cannot be read or holds no model");
}

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

static int parse(struct info *info, int argc, char **argv, bool *help)
{
    static const struct option long_options[] = {
        {"json", no_argument, NULL, 'j'},
        {"tensors", no_argument, NULL, 't'},
        {"views", required_argument, NULL, 'v'},
        {"policy", required_argument, NULL, 'p'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    const char *views = qf_view_default_list;
    int c;
    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
        switch (c) {
        case 'j':
            info->json = true;
            break;
        case 't':
            info->options.tensors = true;
            break;
        case 'v':
            views = optarg;
            break;
        case 'p':
            info->policy = optarg;
            break;
        case 'h':
            *help = true;
            return 0;
        default:
            return qf_cli_usage_error("info", "unknown or incomplete option '%s'",
                                      argv[optind - 1]);
        }
    }
    struct qf_err err = {""};
    if (qf_view_parse_list(views, info->views, &info->options.view_count, &err) != 0)
        return qf_cli_usage_error("info", "%s", err.text);
    info->options.views = info->views;
    if (argc - optind != 1)
        return qf_cli_usage_error("info", "one path is needed");
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

int qf_cmd_info(int argc, char **argv)
{
    static struct info info;
    bool help = false;
    int code = parse(&info, argc, argv, &help);
    if (code != 0)
        return code;
    if (help) {
        print_help();
        return QF_CLI_OK;
    }
    code = apply_policy(&info) == 0 ? tell(&info, argv[optind]) : QF_CLI_FAILED;
    for (size_t i = 0; i < info.options.view_count; i++)
        qf_view_fini(&info.views[i]);
    return code;
}
