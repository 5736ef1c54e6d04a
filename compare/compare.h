/* SPDX-License-Identifier: Apache-2.0 */
/* A model in several views against its source: how far the values are off, tensor by
 * tensor and in total, and what it takes to keep them.
 *
 * Values of a view are those that its parts stand for in binary32 (quant/dequant.h);
 * those of the source are taken as they are stored. Everything is read as a mount would
 * serve it: through the engine, from the cache where it is there. Sums go over segments
 * of a fixed length and are added in the order of the file, so results do not depend on
 * threads or instruction sets. */
#ifndef QF_COMPARE_COMPARE_H
#define QF_COMPARE_COMPARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "ckpt/model.h"
#include "compare/errors.h"
#include "engine/engine.h"
#include "view/variant.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_compare_kind {
    QF_COMPARE_QUANTIZED,
    QF_COMPARE_CAST, /* kept, in another dtype */
    QF_COMPARE_KEPT  /* as it is: no error */
};

/* One tensor in one view. */
struct qf_compare_cell {
    enum qf_compare_kind kind;
    uint64_t size; /* bytes of all its parts */
    struct qf_errors errors;
};

/* A share that is not defined: the views have no codes of one kind of the tensor. */
#define QF_COMPARE_NO_CODES UINT64_MAX

struct qf_compare_tensor {
    const struct qf_tensor *src; /* borrowed from the model */
    uint64_t elem_count;
    bool compared;                 /* F32, F16 or BF16; others count in sizes alone */
    struct qf_compare_cell *cells; /* one a view */
    uint64_t *differing;           /* codes, for each pair; or QF_COMPARE_NO_CODES */
};

struct qf_compare_sum {
    uint64_t tensor_count;
    uint64_t elem_count;
    uint64_t size; /* bytes in the view */
    struct qf_errors errors;
};

struct qf_compare_view {
    const struct qf_variant *variant; /* borrowed */
    struct qf_compare_sum quantized;  /* over the tensors that it quantizes */
    struct qf_compare_sum all;        /* over all tensors */
};

/* Two views with codes of one kind. */
struct qf_compare_pair {
    size_t a, b;
    bool same_map; /* equal codes stand for equal values but for the absmax */
    uint64_t code_count;
    uint64_t differing;
};

struct qf_compare {
    size_t view_count;
    struct qf_compare_view *views;
    size_t pair_count;
    struct qf_compare_pair *pairs;
    size_t tensor_count;
    struct qf_compare_tensor *tensors; /* in the order of shards and of their data */
    uint64_t elem_count;
    uint64_t size; /* bytes of the tensors in the source */
};

struct qf_compare_options {
    const qf_root *root;
    qf_engine *engine;
    unsigned thread_count; /* 0: one per processor; QF_COMPARE_THREADS_MAX at most */
    /* Called now and then in the calling thread with the bytes of the source that are
     * done; NULL for nobody. */
    void (*progress)(void *arg, uint64_t done);
    void *progress_arg;
};

/* Bytes of the source that a comparison reads: what progress counts. */
uint64_t qf_compare_work(const struct qf_model *model);

/* What is compared; all of it is borrowed until qf_compare_free. */
struct qf_compare_input {
    const char *path; /* of the model's directory, under the root */
    const struct qf_model *model;
    size_t variant_count;
    const struct qf_variant *const *variants; /* of the model, none with a reason */
    const uint64_t *origins; /* of each view, for what is put into the cache */
};

/* Compares the weight set that loaders take by default. Errors name the file: -ESTALE
 * when it has changed, those of reading, -ENOMEM. */
int qf_compare_run(const struct qf_compare_options *options,
                   const struct qf_compare_input *input, struct qf_compare **out,
                   struct qf_err *err) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_compare_free(struct qf_compare *compare);

#ifdef __cplusplus
}
#endif
#endif
