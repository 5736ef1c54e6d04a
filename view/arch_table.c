/* SPDX-License-Identifier: Apache-2.0 */
/* The rows are constants made by tools/gen_arch_table.py, sorted as strcmp sorts, so a
 * lookup is a binary search and start-up costs nothing. The generator checks the form
 * of every entry: the matchers in policy_skip.c rely on it. */
#include "view/arch_table.h"

#include <stdlib.h>
#include <string.h>

#include "view/arch_table.inc"

static const char *const no_items[] = {NULL};
static const struct qf_arch no_arch = {.name = ""};

static const struct qf_arch *family(bool diffusers, size_t *count)
{
    if (diffusers) {
        *count = sizeof diffusers_table / sizeof *diffusers_table;
        return diffusers_table;
    }
    *count = sizeof transformers_table / sizeof *transformers_table;
    return transformers_table;
}

static int compare_name(const void *key, const void *row)
{
    return strcmp(key, ((const struct qf_arch *)row)->name);
}

const struct qf_arch *qf_arch_find(bool diffusers, const char *name)
{
    size_t count;
    const struct qf_arch *rows = family(diffusers, &count);
    const struct qf_arch *row = bsearch(name, rows, count, sizeof *rows, compare_name);
    return row != NULL ? row : &no_arch;
}

const char *const *qf_arch_items(const struct qf_arch_list *lists, const char *arch)
{
    const char *const *any = no_items;
    for (; lists != NULL && lists->arch != NULL; lists++) {
        if (strcmp(lists->arch, arch) == 0)
            return lists->items;
        if (strcmp(lists->arch, "*") == 0)
            any = lists->items;
    }
    return any;
}

const struct qf_arch *qf_arch_at(bool diffusers, size_t index)
{
    size_t count;
    const struct qf_arch *rows = family(diffusers, &count);
    return index < count ? &rows[index] : NULL;
}
