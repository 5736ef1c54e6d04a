/* SPDX-License-Identifier: Apache-2.0 */
/* One model of `quantfs check`, as text and as JSON. */
#include <stdio.h>
#include <string.h>

#include "ckpt/printable.h"
#include "cli/check.h"
#include "view/overrides.h"
#include "view/settings.h"

/* ---- patterns without effect ---- */

static bool matches_any(const struct qf_model *model, char *pattern)
{
    static const char suffix[] = ".weight";
    const struct qf_patterns one = {1, &pattern};
    for (size_t s = 0; s < model->set_count; s++) {
        for (size_t i = 0; i < model->sets[s].shard_count; i++) {
            const struct qf_shard *header = model->sets[s].shards[i].header;
            for (size_t t = 0; t < header->tensor_count; t++) {
                const char *name = header->tensors[t].name;
                size_t size = strlen(name), n = sizeof suffix - 1;
                if (size > n && strcmp(name + size - n, suffix) == 0 &&
                    qf_patterns_match(&one, name, size - n))
                    return true;
            }
        }
    }
    return false;
}

void qf_check_unmatched(const struct qf_variant *variant,
                        void (*each)(void *arg, const char *setting,
                                     const char *pattern),
                        void *arg)
{
    struct qf_view view = variant->view;
    for (int i = 0; i < QF_SETTING_COUNT; i++) {
        if (qf_settings[i].kind != QF_SETTING_PATTERNS)
            continue;
        const struct qf_patterns *list = qf_setting_patterns(&view, (enum qf_setting)i);
        for (size_t p = 0; p < list->count; p++)
            if (!matches_any(variant->model, list->items[p]))
                each(arg, qf_settings[i].name, list->items[p]);
    }
}

/* ---- text ---- */

static void text_unmatched(void *arg, const char *setting, const char *pattern)
{
    qf_buf_appendf(arg, "    note: '%s' of %s matches no module\n",
                   qf_printable(pattern).text, setting);
}

static void text_loaders(const struct qf_loader_judgement *judgement,
                         struct qf_buf *out)
{
    int last = -1;
    for (size_t i = 0; i < judgement->claim_count; i++) {
        const struct qf_loader_claim *claim = judgement->claims[i];
        bool first = (int)claim->loader != last;
        last = (int)claim->loader;
        qf_buf_appendf(out, "    %-13s%-9s %s\n",
                       first ? qf_loader_name(claim->loader) : "",
                       first ? qf_loads_name(judgement->loads[claim->loader]) : "",
                       claim->text);
    }
}

void qf_check_text(const struct qf_check_model *model, struct qf_buf *out)
{
    qf_buf_appendf(out, "%s\n", model->path);
    if (model->model->reason[0] != '\0') {
        qf_buf_appendf(out, "  passes through as it is: %s\n", model->model->reason);
        return;
    }
    for (size_t i = 0; i < model->view_count; i++) {
        const struct qf_check_view *view = &model->views[i];
        const char *name = view->asked->view.name;
        qf_buf_appendf(out, "  %s", name);
        if (strcmp(name, view->asked->spelled) != 0)
            qf_buf_appendf(out, " (the name of %s)", view->asked->spelled);
        if (view->variant->reason[0] != '\0') {
            qf_buf_appendf(out, ": passes through as it is: %s\n",
                           view->variant->reason);
        } else {
            if (qf_codec_plain_dtype(view->variant->view.codec) != QF_DTYPE_NONE)
                qf_buf_appendf(out, ": nothing quantized, all in %s\n",
                               qf_dtype_torch_name(view->variant->policies[0].dtype));
            else
                qf_buf_appendf(out, ": %zu tensors quantized\n", view->quantized_count);
            text_loaders(&view->judgement, out);
        }
        qf_check_unmatched(view->variant, text_unmatched, out);
    }
}

/* ---- JSON ---- */

static void string(struct qf_buf *out, const char *before, const char *text)
{
    qf_buf_append_str(out, before);
    qf_buf_append_json(out, text, strlen(text));
}

static void json_unmatched(void *arg, const char *setting, const char *pattern)
{
    struct qf_buf *out = arg;
    bool first = out->size > 0 && out->data[out->size - 1] == '[';
    string(out, first ? "{\"setting\": " : ", {\"setting\": ", setting);
    string(out, ", \"pattern\": ", pattern);
    qf_buf_append_str(out, "}");
}

static void json_loaders(const struct qf_loader_judgement *judgement,
                         struct qf_buf *out)
{
    qf_buf_append_str(out, ", \"loaders\": {");
    for (int l = 0; l < QF_LOADER_COUNT; l++) {
        enum qf_loader loader = (enum qf_loader)l;
        string(out, l != 0 ? ", " : "", qf_loader_name(loader));
        string(out, ": {\"loads\": ", qf_loads_name(judgement->loads[l]));
        qf_buf_append_str(out, ", \"claims\": [");
        const char *comma = "";
        for (size_t i = 0; i < judgement->claim_count; i++) {
            const struct qf_loader_claim *claim = judgement->claims[i];
            if (claim->loader != loader)
                continue;
            qf_buf_append_str(out, comma);
            string(out, "{\"loads\": ", qf_loads_name(claim->loads));
            string(out, ", \"text\": ", claim->text);
            string(out, ", \"source\": ", claim->source);
            qf_buf_append_str(out, "}");
            comma = ", ";
        }
        qf_buf_append_str(out, "]}");
    }
    qf_buf_append_str(out, "}");
}

static void json_view(const struct qf_check_view *view, struct qf_buf *out)
{
    bool quantized = view->variant->reason[0] == '\0';
    string(out, "{\"asked\": ", view->asked->spelled);
    string(out, ", \"view\": ", view->asked->view.name);
    qf_buf_appendf(out, ", \"good\": %s, \"quantized_tensors\": %zu",
                   view->good ? "true" : "false", view->quantized_count);
    if (quantized)
        json_loaders(&view->judgement, out);
    else
        string(out, ", \"reason\": ", view->variant->reason);
    qf_buf_append_str(out, ", \"unmatched\": [");
    qf_check_unmatched(view->variant, json_unmatched, out);
    qf_buf_append_str(out, "]}");
}

void qf_check_json(const struct qf_check_model *model, struct qf_buf *out)
{
    string(out, "{\"path\": ", model->path);
    if (model->model->reason[0] != '\0')
        string(out, ", \"reason\": ", model->model->reason);
    qf_buf_append_str(out, ", \"views\": [");
    for (size_t i = 0; i < model->view_count; i++) {
        qf_buf_append_str(out, i != 0 ? ", " : "");
        json_view(&model->views[i], out);
    }
    qf_buf_append_str(out, "]}");
}
