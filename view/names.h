/* SPDX-License-Identifier: Apache-2.0 */
/* Views by name: the directories in the mount's root. */
#ifndef QF_VIEW_NAMES_H
#define QF_VIEW_NAMES_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/err.h"
#include "quant/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_VIEW_NAME_SIZE 128
#define QF_VIEWS_MAX      32

/* Module names that overrides add (view/overrides.h says how they match). */
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
    enum qf_dtype storage; /* of 4-bit codes */
    enum qf_dtype dtype;   /* D for every model; QF_DTYPE_NONE: each model's own */
    enum qf_dtype compute; /* bnb_4bit_compute_dtype; QF_DTYPE_NONE: D */
    double int8_threshold;
    struct qf_patterns skip;  /* modules to keep, besides what the policy keeps */
    struct qf_patterns force; /* output heads to quantize all the same */
};

/* The view that `name` (not ended, `size` bytes) stands for, with default settings.
 * -ENOENT with err naming the views that exist. */
int qf_view_parse(const char *name, size_t size, struct qf_view *out,
                  struct qf_err *err) QF_MUST_CHECK;
/* A list "nf4:dq". -EINVAL: unknown, empty or repeated names. */
int qf_view_parse_list(const char *list, struct qf_view views[QF_VIEWS_MAX],
                       size_t *count, struct qf_err *err) QF_MUST_CHECK;
/* What the codec needs to know, for a model of dtype D. */
struct qf_codec_spec qf_view_spec(const struct qf_view *view, enum qf_dtype dtype);
/* "nf4:int8:dq:fp4" */
extern const char qf_view_default_list[];

#ifdef __cplusplus
}
#endif
#endif
