/* SPDX-License-Identifier: Apache-2.0 */
/* Private to ckpt/model*.c: loading in progress. Functions return 0, a negative errno
 * that says nothing about the model, or QF_REFUSED once the model's reason is set. */
#ifndef QF_CKPT_MODEL_LOAD_H
#define QF_CKPT_MODEL_LOAD_H

#include "ckpt/model.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_REFUSED 1

struct qf_model_load {
    const qf_root *root;
    const char *path;       /* of the directory */
    bool whole;             /* with its texts */
    struct qf_model *model; /* being filled */
    size_t name_count;
    char **names;  /* of the directory, those that may matter, in byte order; owned */
    bool says_bnb; /* config.json has a quantization_config of bitsandbytes */
};

/* Sets the reason; returns QF_REFUSED. */
int qf_model_refuse(struct qf_model_load *load, bool is_error, const char *fmt, ...)
    QF_PRINTF(3, 4);
/* Whether the directory lists this name. */
bool qf_model_has(const struct qf_model_load *load, const char *name);
/* "dir/name"; owned, NULL without memory. */
char *qf_model_path(const char *dir, const char *name);
/* Records what the result depends on; ident NULL: it does not exist. */
int qf_model_note(struct qf_model_load *load, const char *name,
                  const struct qf_ident *ident) QF_MUST_CHECK;
/* Reads a small file of the directory whole and notes it; refuses what cannot be read.
 * *data is owned. */
int qf_model_read(struct qf_model_load *load, const char *name, char **data,
                  size_t *size, struct qf_ident *ident) QF_MUST_CHECK;
/* Refuses the model because of `rc`, with which opening or reading `name` failed. */
int qf_model_refuse_file(struct qf_model_load *load, const char *name,
                         int rc) QF_MUST_CHECK;
/* A pointer that git left where the file itself belongs. */
bool qf_model_is_lfs_pointer(const char *data, size_t size);

/* model_sets.c: finds and loads all weight sets of model->kind. */
int qf_model_load_sets(struct qf_model_load *load) QF_MUST_CHECK;
/* model_texts.c: reads model->texts. */
int qf_model_load_texts(struct qf_model_load *load) QF_MUST_CHECK;
void qf_model_free_texts(struct qf_model *model);
bool qf_model_is_text(const char *name);
/* model_check.c: refuses sets that contradict themselves or hold quantized tensors. */
int qf_model_check_sets(struct qf_model_load *load) QF_MUST_CHECK;

/* model_bnb.c: turns the headers of a bitsandbytes checkpoint into plain ones, or
 * refuses it. */
int qf_model_dequantize(struct qf_model_load *load) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
