/* SPDX-License-Identifier: Apache-2.0 */
/* Kinds of directory: what a directory of a store holds, from its names, config.json,
 * index files and shard headers. No weight is read. */
#ifndef QF_CKPT_MODEL_H
#define QF_CKPT_MODEL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/json.h"
#include "ckpt/index.h"
#include "ckpt/shard.h"
#include "ckpt/srcfile.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_model_kind {
    QF_MODEL_NONE,         /* no checkpoint: passes through without a word */
    QF_MODEL_TRANSFORMERS, /* config.json of a transformers model */
    QF_MODEL_DIFFUSERS     /* config.json with _class_name: a component */
};

struct qf_model_shard {
    char *name;              /* in the directory; owned */
    struct qf_ident ident;   /* of the file whose header this is */
    struct qf_shard *header; /* owned */
};

/* One set of weights: STEM[.VARIANT].safetensors, or the shards that
 * STEM.safetensors.index[.VARIANT].json names. A directory may hold several. */
struct qf_weight_set {
    char *index_name; /* NULL: a single file; owned */
    struct qf_ident index_ident;
    char *index_text; /* owned; NULL without index */
    size_t index_size;
    struct qf_index index;
    size_t shard_count;
    struct qf_model_shard *shards; /* in byte order of their names */
};

/* What was looked at, and in which version. */
struct qf_model_dep {
    char *name; /* in the directory; "" is the directory itself; owned */
    bool exists;
    struct qf_ident ident;
};

/* Files beside the weights of a language model that a GGUF file is made of. */
enum qf_model_text_kind {
    QF_MODEL_TOKENIZER,        /* tokenizer.json */
    QF_MODEL_TOKENIZER_CONFIG, /* tokenizer_config.json */
    QF_MODEL_CHAT_TEMPLATE,    /* chat_template.jinja */
    QF_MODEL_SENTENCEPIECE,    /* tokenizer.model: only whether it is there */
    QF_MODEL_TEXT_COUNT
};

struct qf_model_text {
    bool exists;
    char *data; /* owned; NULL: there is none, or it cannot be read */
    size_t size;
    char problem[QF_ERR_TEXT_SIZE]; /* why it cannot be read; "" else */
};

#define QF_MODEL_NAME_SIZE 256

/* Immutable after loading; read from any thread. */
struct qf_model {
    char name[QF_MODEL_NAME_SIZE]; /* of qf_model_name */
    enum qf_model_kind kind;
    /* "" when the directory can be quantized; else why all of it passes through: a
     * sentence for `quantfs info` (malformed or missing shard, adapter, LFS pointer,
     * already quantized …). With a reason, `sets` is empty. */
    char reason[QF_ERR_TEXT_SIZE];
    bool reason_is_error; /* the reason is damage, worth a log line */
    char *config_text;    /* config.json as it is; owned; NULL if there is none */
    size_t config_size;
    struct qf_ident config_ident;
    qf_json *config;      /* owned; NULL without config_text */
    char *overrides_text; /* quantfs.json, unread; owned; NULL if there is none */
    size_t overrides_size;
    struct qf_ident overrides_ident;
    /* Quantized by bitsandbytes: config.json says so, and headers are those of the
     * plain checkpoint, in which some tensors are coded (ckpt/bnb.h). */
    bool is_bnb;
    size_t set_count;
    struct qf_weight_set *sets; /* the set that loaders take by default comes first */
    bool whole;                 /* with its texts: */
    struct qf_model_text texts[QF_MODEL_TEXT_COUNT]; /* of qf_model_load_whole */
    size_t dep_count;
    struct qf_model_dep *deps; /* owned; also those that led to a reason */
};

/* What a model in directory `path` is called: after the directory, or, in a cache of
 * the hub (models--ORG--NAME/snapshots/REVISION), NAME. */
void qf_model_name(const qf_root *root, const char *path, char out[QF_MODEL_NAME_SIZE]);

/* Looks at directory `path` of the store. Damage in the directory is not an error of
 * this call but a reason in the model; so is a file that changes while it is read, and
 * qf_model_check then says -ESTALE at once. Fails for what says nothing about the
 * model: -ENOMEM, -EMFILE, -ENOENT or -EACCES of the directory itself. Returns owned.
 */
int qf_model_load(const qf_root *root, const char *path, struct qf_model **out,
                  struct qf_err *err) QF_MUST_CHECK;
/* The same with the texts, for views that need them. A text that cannot be read is no
 * reason against the model. */
int qf_model_load_whole(const qf_root *root, const char *path, struct qf_model **out,
                        struct qf_err *err) QF_MUST_CHECK;
/* 0 while loading again would see the same versions of everything, else -ESTALE: files
 * came, went or changed, also those whose absence or damage is the reason. */
int qf_model_check(const qf_root *root, const char *path,
                   const struct qf_model *model) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_model_free(struct qf_model *model);

#ifdef __cplusplus
}
#endif
#endif
