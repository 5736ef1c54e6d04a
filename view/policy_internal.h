/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the policy's sources; not for other folders. */
#ifndef QF_VIEW_POLICY_INTERNAL_H
#define QF_VIEW_POLICY_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "view/arch_table.h"
#include "view/policy.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The name of a module: a tensor's name without ".weight". Not ended by a NUL. */
struct qf_path {
    const char *at;
    size_t size;
};

/* ---- policy_skip.c: names and how loaders match them ---- */

bool qf_path_is(struct qf_path path, const char *text);
bool qf_path_starts(struct qf_path path, const char *text);
bool qf_path_ends(struct qf_path path, const char *text);
/* The path is `name`, or ends with "." and `name`. */
bool qf_path_ends_module(struct qf_path path, const char *name);
/* What follows the last '.'. */
struct qf_path qf_path_last(struct qf_path path);
/* The component that begins at *pos; moves *pos behind it. False at the end. A path
 * has one component more than dots, so the empty path has one. */
bool qf_path_next(struct qf_path path, size_t *pos, struct qf_path *component);
/* By bytes, which for UTF-8 is the order of code points. */
int qf_path_compare(struct qf_path a, struct qf_path b);
/* A pattern of the table: dotted components, '*' is any one component; with "**." in
 * front it matches the end of a path, else a whole path. */
bool qf_path_glob(struct qf_path path, const char *pattern);

/* Whether the skip entry keeps a loader from replacing the module `path`: */
bool qf_skip_v5(struct qf_path path, const char *entry);   /* transformers >= 5 */
bool qf_skip_v4(struct qf_path path, const char *entry);   /* 4, diffusers, PEFT */
bool qf_skip_vllm(struct qf_path path, const char *entry); /* vLLM */
/* Whether the text is taken literally by all loaders (but for '.'). */
bool qf_skip_is_plain(struct qf_path text);

/* ---- policy_rules.c: one tensor at a time ---- */

struct qf_rules {
    bool diffusers;
    const struct qf_arch *arch;
    /* Rows of the models inside a composite one; owned */
    const struct qf_arch **nested;
    size_t nested_count;
    const char *const *heads;
    const char *const *fp32;
    const char *const *fp32_strict;
    const char *const *tied;
};

struct qf_named {
    const char *name;
    size_t index; /* in the tensors given */
};

/* All names of a model, sorted by bytes. */
struct qf_name_index {
    struct qf_named *items;
    size_t count;
};

/* Whether the config is that of a diffusers autoencoder. They are small, and what they
 * paint shows every rounding, so they are left alone unless a user forces modules. */
bool qf_rules_is_vae(const qf_json *config);
/* -ENOMEM, or -E2BIG when the config has more models inside than QF_NESTED_MODELS_MAX.
 */
int qf_rules_init(struct qf_rules *rules, const qf_json *config) QF_MUST_CHECK;
void qf_rules_fini(struct qf_rules *rules);
/* Why the 2-D weight of module `path` is kept, or QF_REASON_QUANTIZED. -ENOMEM. */
int qf_rules_judge(const struct qf_rules *rules, const struct qf_name_index *names,
                   struct qf_path path, enum qf_reason *out) QF_MUST_CHECK;
/* The pattern of fp32 that hits the module, or NULL. */
const char *qf_rules_fp32_hit(const struct qf_rules *rules, struct qf_path path);
/* Whether a kept tensor is float32 in a model of dtype D, whatever D is. */
bool qf_rules_holds_fp32(const struct qf_rules *rules, const char *name,
                         enum qf_dtype dtype);
bool qf_rules_is_conv1d(const struct qf_rules *rules, struct qf_path path);
/* Whether a quantized weight of module `path` may be stored turned over. */
bool qf_rules_may_turn(const struct qf_rules *rules, struct qf_path path);
/* The general output heads; ends with NULL. */
extern const char *const qf_rules_heads[];
extern const char *const qf_rules_optional[];

/* The item of this name, or NULL. */
const struct qf_named *qf_names_find(const struct qf_name_index *names,
                                     const char *name);
bool qf_names_has(const struct qf_name_index *names, const char *name);

/* ---- policy_closure.c: the skip list ---- */

/* A kept 2-D weight, which loaders might take for a Linear's. */
struct qf_plain {
    struct qf_path path;
    enum qf_reason reason;
};

struct qf_planner {
    const struct qf_tensor *const *tensors;
    size_t count;
    struct qf_name_index names;
    struct qf_rules rules;
    bool vae;                     /* a diffusers autoencoder */
    bool renamed, renamed_inside; /* modules, by transformers; in a model inside it */
    bool causal;                  /* a causal language model, by its class */
    bool untied; /* the config says that no head shares an embedding's weight */
    struct qf_policy *out;
    struct qf_plain *plain; /* sorted by path */
    size_t plain_count;
    const char **optional; /* optional modules that this model lacks */
    size_t optional_count;
    size_t skip_capacity;
    const char *list_name; /* in config.json */
    uint64_t matches;      /* work done so far */
};

/* Length of ".weight", and the module's name of a tensor named *.weight. */
#define QF_WEIGHT_SUFFIX      ".weight"
#define QF_WEIGHT_SUFFIX_SIZE (sizeof QF_WEIGHT_SUFFIX - 1)
bool qf_path_of_weight(const char *name, struct qf_path *out);

/* ---- policy_plain.c: views that quantize nothing ---- */

/* Decides about all tensors. -ENOTSUP with out->reason, -ENOMEM. */
int qf_policy_plain(struct qf_planner *planner, enum qf_dtype dtype) QF_MUST_CHECK;
/* -ENOTSUP with out->reason when a tensor that is shown as it is dequantized would have
 * to be turned over for that. */
int qf_policy_check_turned(const struct qf_planner *planner,
                           const struct qf_tensor *tensor) QF_MUST_CHECK;

/* Makes out->skip from the decisions; turns decisions to CLOSURE where an entry would
 * hit a tensor that is quantized. -ENOTSUP with out->reason when there is no list. */
int qf_skip_build(struct qf_planner *planner) QF_MUST_CHECK;

/* What both lists are made with. -ENOMEM; -ENOTSUP with out->reason. */
int qf_planner_give_up(struct qf_planner *planner, const char *why) QF_MUST_CHECK;
int qf_skip_append(struct qf_planner *planner, const char *text,
                   size_t size) QF_MUST_CHECK;
int qf_skip_append_path(struct qf_planner *planner, struct qf_path path) QF_MUST_CHECK;
void qf_skip_clear(struct qf_planner *planner);
/* Counts work that matching a path `count` times is. */
int qf_skip_count_matches(struct qf_planner *planner, struct qf_path path,
                          uint64_t count) QF_MUST_CHECK;

/* ---- renamed.c ---- */

/* Whether transformers calls Linear modules of this architecture otherwise than the
 * file; of a model inside the config's. */
bool qf_is_renamed(const char *model_type);
bool qf_is_renamed_inside(const qf_json *config);

/* ---- policy_list.c: the list of families that have full names ---- */

/* As qf_skip_build; also turns decisions to FUSED. */
int qf_list_build(struct qf_planner *planner, enum qf_codec codec) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
