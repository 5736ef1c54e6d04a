/* SPDX-License-Identifier: Apache-2.0 */
/* PATH may be in a mount: its first component there is a view, which is then the one
 * that is asked about, also where the mount has no such directory, because somebody
 * wants to know why. The path is therefore taken apart as text when nothing is there.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "cli/check.h"
#include "cli/cli.h"
#include "cli/models.h"
#include "cli/mounted.h"
#include "fs/node.h"
#include "view/overrides.h"

/* The one exit code of its own: what was asked for is not there, or not taken. */
#define NOT_GOOD 3

struct check {
    struct qf_check_asked asked[QF_VIEWS_MAX];
    size_t asked_count;
    bool loaders[QF_LOADER_COUNT]; /* those named by --loader */
    bool loaders_named;
    struct qf_loader_use use;
    const char *policy; /* a file, or NULL */
    char *policy_text;
    size_t policy_size;
    bool json;
    qf_root *root;
    struct qf_buf out;
    size_t model_count;
    bool failed;
    bool bad;
};

/* ---- what is asked ---- */

static struct qf_check_asked *ask(struct check *c, const char *name)
{
    struct qf_check_asked *asked = &c->asked[c->asked_count];
    struct qf_err err = {""};
    if (c->asked_count == QF_VIEWS_MAX)
        return NULL;
    c->asked_count++;
    snprintf(asked->spelled, sizeof asked->spelled, "%s", name);
    if (qf_view_parse(name, strlen(name), &asked->view, &err) != 0)
        snprintf(asked->why, sizeof asked->why, "%s", err.text);
    return asked;
}

/* "nf4:dq", as a status says it or as it is by default. */
static void ask_list(struct check *c, const char *list)
{
    struct qf_view views[QF_VIEWS_MAX];
    size_t count = 0;
    if (qf_view_parse_list(list, views, &count, NULL) == 0)
        for (size_t i = 0; i < count; i++)
            ask(c, views[i].name);
}

/* A mount has views of the codecs that it lists, those of GGUF files, and no others. */
static void forbid_codec(struct qf_check_asked *asked, const char *list)
{
    struct qf_view views[QF_VIEWS_MAX];
    size_t count = 0;
    if (asked == NULL || asked->why[0] != '\0' ||
        qf_codec_info(asked->view.codec)->family == QF_FAMILY_GGUF ||
        qf_view_parse_list(list, views, &count, NULL) != 0)
        return;
    for (size_t i = 0; i < count; i++)
        if (views[i].codec == asked->view.codec)
            return;
    snprintf(asked->why, sizeof asked->why,
             "view '%s': the mount has no view of %s (-o views=%.150s)",
             asked->view.name, qf_codec_name(asked->view.codec), list);
}

static int take_loader(struct check *c, const char *name)
{
    enum qf_loader loader = qf_loader_find(name);
    if (loader == QF_LOADER_COUNT)
        return qf_cli_usage_error("check", "no loader is called '%s'", name);
    c->loaders[loader] = c->loaders_named = true;
    return 0;
}

static int take_ranks(struct check *c, const char *text)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    if (text[0] < '1' || text[0] > '9' || *end != '\0' || n > 65536)
        return qf_cli_usage_error("check", "'%s' is no number of ranks", text);
    c->use.tensor_parallel = (unsigned)n;
    return 0;
}

static int take(void *arg, char id, const char *value)
{
    struct check *c = arg;
    if (id == 'l')
        return take_loader(c, value);
    if (id == 't')
        return take_ranks(c, value);
    if (id == 'j')
        c->json = true;
    else if (id == 'p')
        c->policy = value;
    else if (ask(c, value) == NULL)
        return qf_cli_usage_error("check", "more than %d views", QF_VIEWS_MAX);
    return 0;
}

/* ---- the path ---- */

/* Absolute; without links if anything is there. */
static int absolute(const char *name, char out[PATH_MAX])
{
    char cwd[PATH_MAX] = "";
    if (realpath(name, out) != NULL)
        return 0;
    int rc = -errno;
    if (name[0] != '/' && getcwd(cwd, sizeof cwd) == NULL)
        return rc;
    int n = snprintf(out, PATH_MAX, "%s%s%s", cwd, name[0] != '/' ? "/" : "", name);
    return n < PATH_MAX ? rc : -ENAMETOOLONG;
}

/* Asks about the views that a path in a mount means, and makes the path that of their
 * source. */
static void ask_mounted(struct check *c, char path[PATH_MAX], const char *top)
{
    char store[PATH_MAX], list[QF_VIEWS_MAX * QF_VIEW_NAME_SIZE], view[NAME_MAX + 2];
    char whole[2 * PATH_MAX];
    char *status = qf_mounted_status(top);
    if (status == NULL || !qf_mounted_value(status, "store", store, sizeof store) ||
        !qf_mounted_value(status, "views", list, sizeof list)) {
        free(status);
        return;
    }
    free(status);
    const char *rest = path + strlen(top);
    rest += strspn(rest, "/");
    size_t size = strcspn(rest, "/");
    snprintf(view, sizeof view, "%.*s", (int)size, rest);
    if (c->asked_count == 0 && size == 0)
        ask_list(c, list);
    else if (c->asked_count == 0 && strcmp(view, QF_CONTROL_DIR) != 0)
        ask(c, view);
    for (size_t i = 0; i < c->asked_count; i++)
        forbid_codec(&c->asked[i], list);
    int n = snprintf(whole, sizeof whole, "%s%s", store, rest + size);
    if (n > 0 && n < PATH_MAX)
        strcpy(path, whole);
}

/* ---- a model ---- */

static bool is_good(const struct check *c, const struct qf_check_view *view)
{
    bool diffusers = view->variant->model->kind == QF_MODEL_DIFFUSERS;
    enum qf_loader own = diffusers ? QF_LOADER_DIFFUSERS : QF_LOADER_TRANSFORMERS;
    if (view->variant->reason[0] != '\0')
        return false;
    for (int i = 0; i < QF_LOADER_COUNT; i++)
        if ((c->loaders_named ? c->loaders[i] : i == (int)own) &&
            view->judgement.loads[i] > QF_LOADS_IF)
            return false;
    return true;
}

static int check_view(const struct check *c, const struct qf_model *model,
                      const struct qf_check_asked *asked, struct qf_check_view *out)
{
    struct qf_view view;
    struct qf_err err = {""};
    *out = (struct qf_check_view){.asked = asked};
    int rc =
        qf_overrides_apply(&asked->view, c->policy_text, c->policy_size, &view, &err);
    if (rc == 0) {
        rc = qf_variant_new(model, &view, &out->variant);
        qf_view_fini(&view);
    }
    if (rc != 0)
        return rc;
    if (out->variant->reason[0] == '\0')
        qf_loaders_judge(out->variant, &c->use, &out->judgement);
    for (size_t i = 0; i < out->variant->policy_count; i++)
        out->quantized_count += out->variant->policies[i].quantized_count;
    out->good = is_good(c, out);
    return 0;
}

static void fail(void *arg, const char *path, int rc, const struct qf_err *err)
{
    struct check *c = arg;
    fprintf(stderr, "quantfs check: %s: %s\n", path,
            err->text[0] != '\0' ? err->text : strerror(-rc));
    c->failed = true;
}

static void check_model(void *arg, const char *path, struct qf_model *model)
{
    struct check *c = arg;
    struct qf_check_view views[QF_VIEWS_MAX] = {0};
    struct qf_check_model found = {.path = path, .model = model, .views = views};
    int rc = 0;
    for (size_t i = 0; i < c->asked_count && rc == 0; i++) {
        if (c->asked[i].why[0] != '\0')
            continue;
        rc = check_view(c, model, &c->asked[i], &views[found.view_count]);
        if (rc == 0 && !views[found.view_count++].good)
            c->bad = true;
    }
    if (rc == 0 && c->json) {
        qf_buf_append_str(&c->out, c->model_count != 0 ? ",\n" : "");
        qf_check_json(&found, &c->out);
    } else if (rc == 0) {
        qf_check_text(&found, &c->out);
    }
    c->model_count++;
    if (rc != 0)
        fail(c, path, rc, &(struct qf_err){""});
    for (size_t i = 0; i < found.view_count; i++)
        qf_variant_free(views[i].variant);
    qf_model_free(model);
}

/* ---- all of it ---- */

/* Weights that nobody can load, for want of a config. */
static bool has_bare_weights(const char *path)
{
    DIR *dir = opendir(path);
    bool found = false;
    const struct dirent *d;
    while (dir != NULL && (d = readdir(dir)) != NULL)
        found = found || strstr(d->d_name, ".safetensors") != NULL;
    if (dir != NULL)
        closedir(dir);
    return found;
}

static void tell_impossible(struct check *c)
{
    const char *comma = "";
    for (size_t i = 0; i < c->asked_count; i++) {
        const struct qf_check_asked *asked = &c->asked[i];
        if (asked->why[0] == '\0')
            continue;
        c->bad = true;
        if (c->json) {
            qf_buf_appendf(&c->out, "%s{\"asked\": ", comma);
            qf_buf_append_json(&c->out, asked->spelled, strlen(asked->spelled));
            qf_buf_append_str(&c->out, ", \"reason\": ");
            qf_buf_append_json(&c->out, asked->why, strlen(asked->why));
            qf_buf_append_str(&c->out, "}");
        } else {
            qf_buf_appendf(&c->out, "impossible: %s\n", asked->why);
        }
        comma = ", ";
    }
}

static int look(struct check *c, const char *name, const char *path)
{
    struct qf_err err = {""};
    const struct qf_models_visitor visitor = {check_model, fail, c};
    int rc = qf_root_open("/", &c->root, &err);
    if (rc != 0) {
        fail(c, "/", rc, &err);
        return rc;
    }
    qf_buf_append_str(&c->out, c->json ? "{\"impossible\": [" : "");
    tell_impossible(c);
    qf_buf_append_str(&c->out, c->json ? "], \"models\": [" : "");
    qf_models_walk(c->root, path, &visitor);
    qf_root_close(c->root);
    if (c->model_count == 0 && !c->failed) {
        c->failed = true;
        fprintf(stderr, "quantfs check: %s: %s\n", name,
                has_bare_weights(path)
                    ? "weights without a config.json: no loader knows what they are"
                    : "no model in it or below it");
    }
    if (c->json)
        qf_buf_appendf(&c->out, "], \"good\": %s}\n",
                       c->bad || c->failed ? "false" : "true");
    if (c->out.size != 0)
        fwrite(c->out.data, 1, c->out.size, stdout);
    return c->out.failed ? -ENOMEM : 0;
}

static int check_path(struct check *c, const char *name)
{
    char path[PATH_MAX], top[PATH_MAX], store[PATH_MAX];
    struct qf_err err = {""};
    int rc = c->policy != NULL
                 ? qf_cli_read_file(c->policy, QF_CONFIG_SIZE_MAX, &c->policy_text,
                                    &c->policy_size, &err)
                 : 0;
    if (rc == 0 && c->policy_text != NULL) {
        rc = qf_overrides_check(c->policy_text, c->policy_size, &err);
        if (rc != 0)
            qf_err_prefix(&err, "%s", c->policy);
    }
    if (rc != 0) {
        fprintf(stderr, "quantfs check: %s\n", err.text);
        return QF_CLI_FAILED;
    }
    rc = absolute(name, path);
    if (qf_mounted_find(path, top)) {
        ask_mounted(c, path, top);
        rc = 0;
    }
    if (c->asked_count == 0)
        ask_list(c, qf_view_default_list);
    if (rc == 0)
        rc = qf_models_path(path, store);
    if (rc != 0)
        fail(c, name, rc, &err);
    else
        rc = look(c, name, store);
    if (rc != 0 || c->failed)
        return QF_CLI_FAILED;
    return c->bad ? NOT_GOOD : QF_CLI_OK;
}

static int run(const struct qf_cli_command *self, int argc, char **argv)
{
    static struct check c;
    struct qf_cli_line line;
    int code = qf_cli_parse(self, argc, argv, take, &c, &line);
    if (code < 0)
        code = check_path(&c, line.operands[0]);
    qf_buf_fini(&c.out);
    free(c.policy_text);
    return code;
}

static const struct qf_cli_option options[] = {
    {.id = 'v',
     .name = "view",
     .value = "VIEW",
     .repeats = true,
     .help = "this view, also with settings as in nf4+blocksize=128 (nf4:int8:dq:fp4)"},
    {.id = 'l',
     .name = "loader",
     .value = "LOADER",
     .repeats = true,
     .help = "the exit status is about this one: safetensors, transformers, diffusers, "
             "accelerate, peft, vllm (that for which the model is made)"},
    {.id = 't',
     .name = "tensor-parallel",
     .value = "N",
     .help = "it is to be loaded on so many ranks (1)"},
    {.id = 'p',
     .name = "policy",
     .value = "FILE",
     .help = "with the overrides that a mount has by -o policy=FILE"},
    {.id = 'j',
     .name = "json",
     .help = "one JSON document, with the source of every claim"},
    {0},
};

const struct qf_cli_command qf_cmd_check = {
    .name = "check",
    .summary = "tell which loaders take a view of a model, and why not",
    .about =
        "Tells which loaders take each view of the model in directory PATH, or of "
        "every model below it, and why others do not. Reads headers only. PATH may "
        "also lie in a mount, in the view that is asked about; where that view cannot "
        "be (MNT/nf4+blocksize=100/model), the reason is told.\n"
        "yes: measured; if: on the conditions told; untested: nobody has tried; no: it "
        "fails or is refused.",
    .options = options,
    .operands = (const struct qf_cli_operand[]){{.word = "PATH"}, {0}},
    .exits =
        (const struct qf_cli_exit[]){
            {"0", "every view is quantized and taken (yes or if)"},
            {"1", "usage"},
            {"2", "PATH cannot be read or holds no model"},
            {"3", "a view is impossible, passes through, or is not known to be taken"},
            {0}},
    .run = run,
};
