/* SPDX-License-Identifier: Apache-2.0 */
/* Views by name: the directories in a mount's root. A name is a codec and, if wanted,
 * settings: nf4, nf4+blocksize=128, dq+only=mlp+skip=layers.0:layers.1
 * (docs/SETTINGS.md). Several spellings can mean the same; one of them is the view's
 * name. */
#ifndef QF_VIEW_NAMES_H
#define QF_VIEW_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/dtype.h"
#include "base/err.h"
#include "quant/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* With its NUL: a name is one component of a path. */
#define QF_VIEW_NAME_SIZE 256
#define QF_VIEWS_MAX      32

/* Of the setting "group": powers of two. */
#define QF_GROUP_MIN 16u
#define QF_GROUP_MAX 4096u

/* Names of modules (view/overrides.h says how they match). */
struct qf_patterns {
    size_t count;
    char **items;
};

/* Everything that decides what a view shows. Owns nothing unless it was made by
 * qf_overrides_apply. */
struct qf_view {
    char name[QF_VIEW_NAME_SIZE]; /* directory in the mount's root */
    enum qf_codec codec;
    uint32_t blocksize;    /* 4-bit codecs */
    uint32_t group;        /* scaled codecs: elements that share a scale; 0: a row */
    enum qf_dtype storage; /* of 4-bit codes */
    enum qf_dtype dtype;   /* D for every model; QF_DTYPE_NONE: each model's own */
    enum qf_dtype compute; /* bnb_4bit_compute_dtype; QF_DTYPE_NONE: D */
    double int8_threshold;
    struct qf_patterns only;  /* not empty: all other modules are kept */
    struct qf_patterns skip;  /* modules to keep, besides what the policy keeps */
    struct qf_patterns force; /* output heads to quantize all the same */
};

/* The view that `name` (not ended, `size` bytes) stands for; out->name is the spelling
 * of it that all others lead to: settings in the order of qf_settings
 * (view/settings.h), patterns sorted, each once. A setting that says the default stays:
 * it wins over overrides, and so means something else than its absence. The patterns
 * are in the name alone until qf_overrides_apply. -ENOENT with err naming the codecs;
 * -EINVAL, with a sentence that says what is allowed, for impossible settings; -ENOMEM.
 */
int qf_view_parse(const char *name, size_t size, struct qf_view *out,
                  struct qf_err *err) QF_MUST_CHECK;
/* A list "nf4:dq+skip=a+skip=b:int8". ':' separates views in it, so a view with several
 * patterns names the setting once for each. -EINVAL: unknown, empty or repeated names,
 * impossible settings. */
int qf_view_parse_list(const char *list, struct qf_view views[QF_VIEWS_MAX],
                       size_t *count, struct qf_err *err) QF_MUST_CHECK;
/* The view's name as such a list has it. */
void qf_view_append_listed(const struct qf_view *view, struct qf_buf *out);
/* What the codec needs to know, for a model of dtype D. */
struct qf_codec_spec qf_view_spec(const struct qf_view *view, enum qf_dtype dtype);
/* "nf4:int8:dq:fp4" */
extern const char qf_view_default_list[];
/* Whether a mount lists the codec's view without being told to. */
bool qf_view_is_default(enum qf_codec codec);
/* All that a view can be called, without settings: "nf4, fp4, …". */
void qf_view_append_codecs(struct qf_buf *out);

#ifdef __cplusplus
}
#endif
#endif
