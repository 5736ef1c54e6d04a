/* SPDX-License-Identifier: Apache-2.0 */
/* llm_int8_skip_modules: short, in a fixed order, and closed. Loaders decide by this
 * list alone which modules hold codes, whatever the file holds, and they match it by
 * three rules. So every module that is kept must be hit under the rules of transformers
 * 5 and 4 (vLLM keeps what it finds plain), and none that is quantized under any rule.
 * Where an entry must stand and hits a quantized tensor, that tensor is kept instead,
 * which may need a further entry: hence the loop. It ends because every round takes
 * away an entry or a quantized tensor. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "view/policy_internal.h"

typedef bool (*skip_fn)(struct qf_path path, const char *entry);

int qf_planner_give_up(struct qf_planner *p, const char *why)
{
    snprintf(p->out->reason, sizeof p->out->reason, "%s", why);
    return -ENOTSUP;
}

/* Long names count for more: what is limited is the time. */
int qf_skip_count_matches(struct qf_planner *p, struct qf_path path, uint64_t count)
{
    p->matches += count * (1 + path.size / 128);
    if (p->matches <= QF_POLICY_MATCHES_MAX)
        return 0;
    char why[QF_ERR_TEXT_SIZE];
    snprintf(why, sizeof why, "too many tensors would have to be named in %s",
             p->list_name);
    return qf_planner_give_up(p, why);
}

static bool in_list(const char *const *list, const char *text)
{
    for (; *list != NULL; list++)
        if (strcmp(*list, text) == 0)
            return true;
    return false;
}

static bool in_skip(const struct qf_planner *p, const char *text, size_t size)
{
    for (size_t i = 0; i < p->out->skip_count; i++)
        if (strlen(p->out->skip[i]) == size && memcmp(p->out->skip[i], text, size) == 0)
            return true;
    return false;
}

int qf_skip_append(struct qf_planner *p, const char *text, size_t size)
{
    struct qf_policy *out = p->out;
    if (out->skip_count == p->skip_capacity) {
        size_t capacity = p->skip_capacity == 0 ? 64 : p->skip_capacity * 2;
        char **skip = realloc(out->skip, capacity * sizeof *skip);
        if (skip == NULL)
            return -ENOMEM;
        out->skip = skip;
        p->skip_capacity = capacity;
    }
    char *copy = malloc(size + 1);
    if (copy == NULL)
        return -ENOMEM;
    memcpy(copy, text, size); /* which is not ended */
    copy[size] = '\0';
    out->skip[out->skip_count++] = copy;
    return 0;
}

static int append_all(struct qf_planner *p, const char *const *list)
{
    int rc = 0;
    for (; rc == 0 && *list != NULL; list++)
        rc = qf_skip_append(p, *list, strlen(*list));
    return rc;
}

void qf_skip_clear(struct qf_planner *p)
{
    for (size_t i = 0; i < p->out->skip_count; i++)
        free(p->out->skip[i]);
    p->out->skip_count = 0;
}

/* Names a module, whose name then stands where a pattern may stand. */
int qf_skip_append_path(struct qf_planner *p, struct qf_path path)
{
    if (!qf_skip_is_plain(path)) {
        char why[QF_ERR_TEXT_SIZE];
        snprintf(
            why, sizeof why,
            "module '%.*s' cannot be named in %s: its name has characters of regular "
            "expressions",
            path.size < 200 ? (int)path.size : 200, path.at, p->list_name);
        return qf_planner_give_up(p, why);
    }
    return qf_skip_append(p, path.at, path.size);
}

static bool hit_by_any(const struct qf_planner *p, struct qf_path path, skip_fn fn)
{
    for (size_t i = 0; i < p->out->skip_count; i++)
        if (fn(path, p->out->skip[i]))
            return true;
    return false;
}

/* Appends the module itself unless transformers 5 and 4 both skip it already. */
static int append_unless_matched(struct qf_planner *p, struct qf_path path)
{
    int rc = qf_skip_count_matches(p, path, 2 * p->out->skip_count);
    if (rc != 0 || (hit_by_any(p, path, qf_skip_v5) && hit_by_any(p, path, qf_skip_v4)))
        return rc;
    return qf_skip_append_path(p, path);
}

/* Heads of the table that are single modules. */
static int append_table_heads(struct qf_planner *p)
{
    int rc = 0;
    for (const char *const *h = p->rules.heads; rc == 0 && *h != NULL; h++) {
        const char *text = strncmp(*h, "**.", 3) == 0 ? *h + 3 : *h;
        if (strchr(text, '*') == NULL)
            rc = qf_skip_append(p, text, strlen(text));
    }
    return rc;
}

static bool has_module(const struct qf_planner *p, const char *module)
{
    struct qf_path path;
    for (size_t i = 0; i < p->count; i++)
        if (qf_path_of_weight(p->tensors[i]->name, &path) &&
            qf_path_ends_module(path, module))
            return true;
    return false;
}

/* Collects and appends those of the list that neither the model nor the skip list has.
 */
static int append_optional(struct qf_planner *p, const char *const *list)
{
    int rc = 0;
    for (; rc == 0 && list != NULL && *list != NULL; list++) {
        if (in_skip(p, *list, strlen(*list)) || has_module(p, *list))
            continue;
        p->optional[p->optional_count++] = *list;
        rc = qf_skip_append(p, *list, strlen(*list));
    }
    return rc;
}

static size_t list_size(const char *const *list)
{
    size_t n = 0;
    while (list != NULL && list[n] != NULL)
        n++;
    return n;
}

static int append_fixed(struct qf_planner *p)
{
    size_t most = list_size(qf_rules_optional) + list_size(p->rules.arch->optional);
    p->optional = calloc(most + 1, sizeof *p->optional);
    if (p->optional == NULL)
        return -ENOMEM;
    int rc = p->rules.diffusers ? 0 : append_all(p, qf_rules_heads);
    if (rc == 0)
        rc = append_all(p, p->rules.tied);
    if (rc == 0)
        rc = append_table_heads(p);
    if (rc == 0 && !p->rules.diffusers)
        rc = append_optional(p, qf_rules_optional);
    if (rc == 0 && !p->rules.diffusers)
        rc = append_optional(p, p->rules.arch->optional);
    return rc;
}

static int append_kept(struct qf_planner *p, const struct qf_plain *plain)
{
    static const char experts[] = ".experts";
    static const char experts_regex[] = ".*\\.experts";
    if (plain->reason == QF_REASON_EXPERTS) {
        if (in_skip(p, experts, strlen(experts)))
            return 0;
        int rc = qf_skip_append(p, experts, strlen(experts));
        return rc != 0 ? rc : qf_skip_append(p, experts_regex, strlen(experts_regex));
    }
    if (plain->reason != QF_REASON_FP32)
        return append_unless_matched(p, plain->path);
    /* Loaders add these patterns by themselves; they are named for the others. */
    const char *f = qf_rules_fp32_hit(&p->rules, plain->path);
    if (p->rules.diffusers || in_skip(p, f, strlen(f)))
        return 0;
    return qf_skip_append(p, f, strlen(f));
}

/* An entry that stands for a module which this model happens not to have. */
static bool is_defensive(const struct qf_planner *p, const char *entry)
{
    bool general = in_list(qf_rules_heads, entry);
    for (size_t i = 0; i < p->optional_count && !general; i++)
        general = strcmp(p->optional[i], entry) == 0;
    for (size_t i = 0; i < p->plain_count && general; i++)
        general = !qf_path_ends_module(p->plain[i].path, entry);
    return general;
}

static bool hits(const char *entry, struct qf_path path)
{
    return qf_skip_v5(path, entry) || qf_skip_v4(path, entry) ||
           qf_skip_vllm(path, entry);
}

static void drop_hitting(struct qf_policy *out, struct qf_path path)
{
    size_t kept = 0;
    for (size_t i = 0; i < out->skip_count; i++) {
        if (hits(out->skip[i], path))
            free(out->skip[i]);
        else
            out->skip[kept++] = out->skip[i];
    }
    out->skip_count = kept;
}

/* Makes sure that no entry hits this quantized tensor, or keeps it. */
static int close_one(struct qf_planner *p, struct qf_path path,
                     struct qf_decision *decision, bool *changed)
{
    bool hit = false;
    bool defensive = true;
    int rc = qf_skip_count_matches(p, path, 3 * p->out->skip_count);
    for (size_t i = 0; rc == 0 && i < p->out->skip_count; i++) {
        if (!hits(p->out->skip[i], path))
            continue;
        hit = true;
        rc = qf_skip_count_matches(p, path, p->plain_count);
        defensive = defensive && is_defensive(p, p->out->skip[i]);
    }
    if (rc != 0 || !hit)
        return rc;
    *changed = true;
    if (defensive) {
        drop_hitting(p->out, path);
        return 0;
    }
    decision->reason = QF_REASON_CLOSURE;
    return append_unless_matched(p, path);
}

int qf_skip_build(struct qf_planner *p)
{
    int rc = append_fixed(p);
    for (size_t i = 0; rc == 0 && i < p->plain_count; i++)
        rc = append_kept(p, &p->plain[i]);
    for (bool changed = true; rc == 0 && changed;) {
        changed = false;
        for (size_t i = 0; rc == 0 && i < p->names.count; i++) {
            const struct qf_named *named = &p->names.items[i];
            struct qf_decision *decision = &p->out->decisions[named->index];
            struct qf_path path;
            if (decision->reason == QF_REASON_QUANTIZED &&
                qf_path_of_weight(named->name, &path))
                rc = close_one(p, path, decision, &changed);
        }
    }
    return rc;
}
