/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer of a language model, for views that put it into one file with the
 * weights. All of it are dependencies of the model, present or not. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/path.h"
#include "ckpt/model_load.h"

static const char *const names[QF_MODEL_TEXT_COUNT] = {
    [QF_MODEL_TOKENIZER] = "tokenizer.json",
    [QF_MODEL_TOKENIZER_CONFIG] = "tokenizer_config.json",
    [QF_MODEL_CHAT_TEMPLATE] = "chat_template.jinja",
    [QF_MODEL_SENTENCEPIECE] = "tokenizer.model",
};

bool qf_model_is_text(const char *name)
{
    for (int i = 0; i < QF_MODEL_TEXT_COUNT; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

/* What reading refuses is a problem of the views that need the text, not the model's.
 */
static int load_text(struct qf_model_load *load, int kind)
{
    struct qf_model *model = load->model;
    struct qf_model_text *text = &model->texts[kind];
    struct qf_ident ident;
    text->exists = qf_model_has(load, names[kind]);
    if (!text->exists)
        return qf_model_note(load, names[kind], NULL);
    if (kind == QF_MODEL_SENTENCEPIECE)
        return 0; /* its coming and going changes the directory */
    int rc = qf_model_read(load, names[kind], &text->data, &text->size, &ident);
    if (rc != QF_REFUSED)
        return rc;
    snprintf(text->problem, sizeof text->problem, "%s", model->reason);
    model->reason[0] = '\0';
    model->reason_is_error = false;
    free(text->data);
    text->data = NULL;
    return 0;
}

int qf_model_load_texts(struct qf_model_load *load)
{
    int rc = 0;
    load->model->whole = true;
    for (int i = 0; i < QF_MODEL_TEXT_COUNT && rc == 0; i++)
        rc = load_text(load, i);
    return rc;
}

void qf_model_free_texts(struct qf_model *model)
{
    for (int i = 0; i < QF_MODEL_TEXT_COUNT; i++)
        free(model->texts[i].data);
}

/* Moves *end to the beginning of the component that ends there. */
static const char *component(const char *path, size_t *end, size_t *size)
{
    size_t start = *end;
    while (start > 0 && path[start - 1] != '/')
        start--;
    *size = *end - start;
    *end = start > 0 ? start - 1 : 0;
    return path + start;
}

void qf_model_name(const qf_root *root, const char *path, char out[QF_MODEL_NAME_SIZE])
{
    static const char hub[] = "models--";
    char whole[2 * PATH_MAX];
    snprintf(whole, sizeof whole, "%s/%s", qf_root_path(root), path);
    size_t end = strlen(whole), size, middle_size, above_size;
    while (end > 0 && whole[end - 1] == '/')
        end--;
    const char *name = component(whole, &end, &size);
    const char *middle = component(whole, &end, &middle_size);
    const char *above = component(whole, &end, &above_size);
    if (middle_size == strlen("snapshots") && strncmp(middle, "snapshots", 9) == 0 &&
        above_size > strlen(hub) && strncmp(above, hub, strlen(hub)) == 0) {
        name = above + above_size;
        while (name[-1] != '-' || name[-2] != '-')
            name--;
        size = (size_t)(above + above_size - name);
    }
    snprintf(out, QF_MODEL_NAME_SIZE, "%.*s", (int)size, size > 0 ? name : "model");
    if (size == 0)
        snprintf(out, QF_MODEL_NAME_SIZE, "model");
}
