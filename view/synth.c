/* SPDX-License-Identifier: Apache-2.0 */
/* config.json is changed as text, by ckpt/config: the members below are set and every
 * other byte stays. Nested configs of a composite model get the same members, because
 * a part of it can be loaded by a class of its own from the same directory. */
#include "view/synth.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/config.h"

static bool is_sub_config(const qf_json *config, const qf_json *member)
{
    const char *name = qf_json_name(member);
    return qf_json_is_object(member) && strcmp(name, "quantization_config") != 0 &&
           qf_json_get(member, "model_type") != NULL &&
           qf_json_get(config, name) == member; /* of equal names the last one */
}

/* The changes to one object: the top level (NULL) or a nested config. */
static size_t add_splices(struct qf_splice *splices, const char *object,
                          const char *quantization, const char *dtype)
{
    size_t count = 0;
    splices[count++] = (struct qf_splice){.object = object,
                                          .name = "quantization_config",
                                          .value = quantization};
    if (dtype != NULL)
        splices[count++] = (struct qf_splice){.object = object,
                                              .name = "dtype",
                                              .value = dtype,
                                              .instead_of = "torch_dtype"};
    return count;
}

/* ---- without quantization ---- */

/* Of one object, in whichever spelling it has them; the top level has a dtype in any
 * case. */
static size_t add_plain_splices(struct qf_splice *splices, const qf_json *config,
                                const char *object, const char *dtype)
{
    static const char *const names[] = {"dtype", "torch_dtype"};
    size_t count = 0, dtypes = 0;
    if (qf_json_get(config, "quantization_config") != NULL)
        splices[count++] =
            (struct qf_splice){.object = object, .name = "quantization_config"};
    for (size_t i = 0; dtype != NULL && i < 2; i++) {
        if (qf_json_get(config, names[i]) == NULL)
            continue;
        dtypes++;
        splices[count++] =
            (struct qf_splice){.object = object, .name = names[i], .value = dtype};
    }
    if (dtype != NULL && dtypes == 0 && object == NULL)
        splices[count++] = (struct qf_splice){.name = names[0], .value = dtype};
    return count;
}

static int synth_plain(const struct qf_model *model, const struct qf_policy *policy,
                       struct qf_splice *splices, struct qf_buf *out,
                       struct qf_err *err)
{
    char text[32];
    const char *dtype = policy->diffusers ? NULL : text;
    snprintf(text, sizeof text, "\"%s\"", qf_dtype_torch_name(policy->dtype));
    size_t count = add_plain_splices(splices, model->config, NULL, dtype);
    for (const qf_json *m = qf_json_first(model->config); m != NULL;
         m = qf_json_after(m)) {
        const char *name = qf_json_name(m);
        if (is_sub_config(model->config, m) ||
            (qf_json_get(m, "quantization_config") != NULL &&
             qf_json_get(model->config, name) == m))
            count += add_plain_splices(splices + count, m, name, dtype);
    }
    return qf_config_splice(model->config_text, model->config_size, splices, count, out,
                            err);
}

int qf_synth_config(const struct qf_model *model, const struct qf_view *view,
                    const struct qf_policy *policy, struct qf_buf *out,
                    struct qf_err *err)
{
    struct qf_buf quantization = {0};
    struct qf_splice *splices = NULL;
    char *value = NULL;
    char dtype[32];
    size_t most = 3;
    size_t count = 0;
    int rc = -ENOMEM;

    qf_synth_quantization_config(view, policy, &quantization);
    value = qf_buf_take(&quantization, NULL);
    for (const qf_json *m = qf_json_first(model->config); m != NULL;
         m = qf_json_after(m))
        most += 3;
    splices = calloc(most, sizeof *splices);
    if (value == NULL || splices == NULL) {
        qf_err_set(err, rc, "out of memory");
        goto out;
    }
    if (qf_codec_plain_dtype(view->codec) != QF_DTYPE_NONE) {
        rc = synth_plain(model, policy, splices, out, err);
        goto out;
    }
    if (policy->diffusers) {
        count = add_splices(splices, NULL, value, NULL);
    } else {
        snprintf(dtype, sizeof dtype, "\"%s\"", qf_dtype_torch_name(policy->dtype));
        count = add_splices(splices, NULL, value, dtype);
        for (const qf_json *m = qf_json_first(model->config); m != NULL;
             m = qf_json_after(m))
            if (is_sub_config(model->config, m))
                count += add_splices(splices + count, qf_json_name(m), value, dtype);
    }
    rc = qf_config_splice(model->config_text, model->config_size, splices, count, out,
                          err);
out:
    free(splices);
    free(value);
    return rc;
}
