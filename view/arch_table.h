/* SPDX-License-Identifier: Apache-2.0 */
/* What is known about single architectures: the exceptions to the general rules of the
 * policy, by model_type (transformers) or class name (diffusers). The data is
 * arch_table.json, compiled in. */
#ifndef QF_VIEW_ARCH_TABLE_H
#define QF_VIEW_ARCH_TABLE_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Items for one class of an architecture; a list of these ends with arch == NULL. */
struct qf_arch_list {
    const char *arch; /* class name, or "*" for every class without a row */
    const char *const *items;
};

/* Lists of strings end with NULL. A member that is NULL is an empty list. */
struct qf_arch {
    const char *name;
    const char *const *never;               /* globs: 2-D weights of no Linear */
    const char *const *optional;            /* Linears that a checkpoint may lack */
    const char *const *conv1d;              /* last names of modules stored [in, out] */
    const struct qf_arch_list *fp32;        /* _keep_in_fp32_modules */
    const struct qf_arch_list *fp32_strict; /* _keep_in_fp32_modules_strict */
    const struct qf_arch_list *heads;       /* globs: outputs that the loader keeps */
    const struct qf_arch_list *tied;        /* skip entries for tied weights */
};

/* The row of this name; a row of empty lists when there is none (never NULL). */
const struct qf_arch *qf_arch_find(bool diffusers, const char *name);
/* The items for a class: its own row, else that of "*", else none. Never NULL. */
const char *const *qf_arch_items(const struct qf_arch_list *lists, const char *arch);
/* Row `index` of a family, or NULL past the end; rows are sorted by name. */
const struct qf_arch *qf_arch_at(bool diffusers, size_t index);

#ifdef __cplusplus
}
#endif
#endif
