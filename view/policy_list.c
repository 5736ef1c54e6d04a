/* SPDX-License-Identifier: Apache-2.0 */
/* The list of modules left as they are, for the families whose lists have full names:
 * modules_to_not_convert of torchao and fp8, ignore of compressed-tensors.
 *
 * torchao's loaders decide by the file's metadata, the list is for vLLM. For fp8
 * transformers replaces every Linear that no entry hits (as a regular expression from
 * the beginning, or as an ending), for compressed-tensors every Linear whose name is no
 * entry. So whatever is kept is named, and what the file may lack: modules whose weight
 * is tied to another's, heads, Linears of other classes. Those are known by the end of
 * their names only, which compressed-tensors takes as a regular expression.
 *
 * vLLM holds q, k and v of an attention in one module, and gate and up of an MLP: they
 * are quantized all or none. What is kept for that needs an entry, whose hits need to
 * be kept: hence the loop. It ends because every round takes away a quantized tensor or
 * a pattern. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/limits.h"
#include "view/policy_internal.h"

#define PATTERNS_MAX 256
#define END_SIZE     256

/* A name's end that stands for modules which the model may lack. */
struct pattern {
    const char *text;
    bool defensive; /* dropped, not closed, when it hits what is quantized */
};

struct list {
    struct qf_planner *p;
    enum qf_family family;
    size_t pattern_count;
    struct pattern patterns[PATTERNS_MAX];
};

/* ---- all or none ---- */

#define FUSED_MAX 3

static const char *const fused[][FUSED_MAX + 1] = {
    {"q_proj", "k_proj", "v_proj"},     {"gate_proj", "up_proj"},
    {"query", "key", "value"},          {"to_q", "to_k", "to_v"},
    {"q_a_proj", "kv_a_proj_with_mqa"}, {"in_proj_qkv", "in_proj_z"},
    {"in_proj_b", "in_proj_a"},
};

/* The decision on the weight that is called like `path` but for its last component, or
 * NULL. */
static struct qf_decision *sibling(const struct qf_planner *p, struct qf_path path,
                                   const char *last, char *scratch)
{
    struct qf_path own = qf_path_last(path);
    size_t stem = path.size - own.size;
    memcpy(scratch, path.at, stem);
    strcpy(stpcpy(scratch + stem, last), QF_WEIGHT_SUFFIX);
    const struct qf_named *named = qf_names_find(&p->names, scratch);
    return named != NULL ? &p->out->decisions[named->index] : NULL;
}

static bool is_kept_weight(const struct qf_planner *p, size_t index,
                           struct qf_path *path)
{
    const struct qf_tensor *t = p->tensors[index];
    return p->out->decisions[index].reason != QF_REASON_QUANTIZED && t->rank == 2 &&
           qf_dtype_is_float(t->dtype) && qf_path_of_weight(t->name, path);
}

/* Keeps the others of the group of a weight that is kept. */
static void keep_others(const struct qf_planner *p, struct qf_path path, char *scratch)
{
    for (size_t g = 0; g < sizeof fused / sizeof *fused; g++) {
        bool member = false;
        for (size_t i = 0; fused[g][i] != NULL; i++)
            member = member || qf_path_is(qf_path_last(path), fused[g][i]);
        for (size_t i = 0; member && fused[g][i] != NULL; i++) {
            struct qf_decision *d = sibling(p, path, fused[g][i], scratch);
            if (d != NULL && d->reason == QF_REASON_QUANTIZED)
                d->reason = QF_REASON_FUSED;
        }
    }
}

static int keep_groups(struct qf_planner *p)
{
    size_t longest = 0;
    for (size_t i = 0; i < p->count; i++) {
        size_t size = strlen(p->tensors[i]->name);
        longest = size > longest ? size : longest;
    }
    char *scratch = malloc(longest + 64);
    struct qf_path path;
    if (scratch == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < p->count; i++)
        if (is_kept_weight(p, i, &path))
            keep_others(p, path, scratch);
    free(scratch);
    return 0;
}

/* ---- patterns ---- */

static bool has_module(const struct qf_planner *p, const char *module)
{
    struct qf_path path;
    for (size_t i = 0; i < p->count; i++)
        if (qf_path_of_weight(p->tensors[i]->name, &path) &&
            qf_path_ends_module(path, module))
            return true;
    return false;
}

static int add_pattern(struct list *l, const char *text, bool defensive)
{
    for (size_t i = 0; i < l->pattern_count; i++)
        if (strcmp(l->patterns[i].text, text) == 0)
            return 0;
    if (l->pattern_count == PATTERNS_MAX)
        return qf_planner_give_up(l->p, "too many modules would have to be named as "
                                        "left as they are");
    l->patterns[l->pattern_count++] = (struct pattern){text, defensive};
    return 0;
}

static int add_absent(struct list *l, const char *const *list)
{
    int rc = 0;
    for (; rc == 0 && list != NULL && *list != NULL; list++)
        if (!has_module(l->p, *list))
            rc = add_pattern(l, *list, true);
    return rc;
}

static int collect_patterns(struct list *l)
{
    const struct qf_rules *rules = &l->p->rules;
    int rc = 0;
    if (l->family == QF_FAMILY_TORCHAO)
        return 0; /* its loaders go by the file */
    for (const char *const *t = rules->tied; rc == 0 && t != NULL && *t != NULL; t++)
        rc = add_pattern(l, *t, false);
    if (rc == 0)
        rc = add_absent(l, qf_rules_heads);
    if (rc == 0)
        rc = add_absent(l, qf_rules_optional);
    return rc == 0 ? add_absent(l, rules->arch->optional) : rc;
}

/* ---- names ---- */

static bool in_list(const struct qf_policy *out, struct qf_path path)
{
    return out->skip_count != 0 &&
           qf_path_is(path, out->skip[out->skip_count - 1]); /* names are sorted */
}

/* Experts are one module to the loaders, whatever the file has. */
static bool experts_module(struct qf_path *path)
{
    struct qf_path component;
    for (size_t pos = 0; qf_path_next(*path, &pos, &component);)
        if (qf_path_is(component, "experts")) {
            path->size = (size_t)(component.at + component.size - path->at);
            return true;
        }
    return false;
}

static int add_name(struct list *l, struct qf_path path)
{
    /* An entry of one of these means every module of the class, or is a pattern. */
    if (l->family == QF_FAMILY_COMPRESSED_TENSORS &&
        (qf_path_is(path, "Linear") || qf_path_is(path, "Module")))
        return qf_planner_give_up(l->p, "a module has the name of a class, which "
                                        "'ignore' would take for all of that class");
    return in_list(l->p->out, path) ? 0 : qf_skip_append_path(l->p, path);
}

static int list_names(struct list *l)
{
    struct qf_planner *p = l->p;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < p->names.count; i++) {
        const struct qf_named *named = &p->names.items[i];
        struct qf_path path = {named->name, strlen(named->name)};
        enum qf_reason reason = p->out->decisions[named->index].reason;
        if (reason != QF_REASON_QUANTIZED && experts_module(&path))
            rc = add_name(l, path);
        else if (is_kept_weight(p, named->index, &path))
            rc = add_name(l, path);
    }
    return rc;
}

/* A causal language model whose head is not in the file has it tied to an embedding. */
static int list_tied_head(struct list *l)
{
    static const struct qf_path head = {"lm_head", 7};
    if (!l->p->causal || has_module(l->p, head.at))
        return 0;
    return qf_skip_append_path(l->p, head);
}

/* ---- closure ---- */

static bool name_hits(enum qf_family family, struct qf_path path, const char *entry)
{
    return family != QF_FAMILY_COMPRESSED_TENSORS &&
           (qf_skip_v5(path, entry) || qf_skip_vllm(path, entry));
}

static bool pattern_hits(struct qf_path path, const char *entry)
{
    return qf_skip_v5(path, entry) || qf_skip_v4(path, entry) ||
           qf_skip_vllm(path, entry);
}

/* diffusers hits by substring, but goes by the file; its lists keep nothing. */
static int close_one(struct list *l, struct qf_path path, bool *hit)
{
    struct qf_planner *p = l->p;
    size_t kept = 0;
    int rc = qf_skip_count_matches(p, path, p->out->skip_count + l->pattern_count);
    for (size_t i = 0; rc == 0 && i < l->pattern_count; i++) {
        bool hits = pattern_hits(path, l->patterns[i].text);
        if (!hits || !l->patterns[i].defensive)
            l->patterns[kept++] = l->patterns[i];
        *hit = *hit || (hits && !l->patterns[i].defensive);
    }
    if (rc == 0)
        l->pattern_count = kept;
    for (size_t i = 0; rc == 0 && !p->rules.diffusers && i < p->out->skip_count; i++)
        *hit = *hit || name_hits(l->family, path, p->out->skip[i]);
    return rc;
}

static int close_list(struct list *l, bool *changed)
{
    struct qf_planner *p = l->p;
    int rc = 0;
    *changed = false;
    for (size_t i = 0; rc == 0 && i < p->names.count; i++) {
        const struct qf_named *named = &p->names.items[i];
        struct qf_decision *decision = &p->out->decisions[named->index];
        struct qf_path path;
        bool hit = false;
        if (decision->reason != QF_REASON_QUANTIZED ||
            !qf_path_of_weight(named->name, &path))
            continue;
        rc = close_one(l, path, &hit);
        if (rc == 0 && hit) {
            decision->reason = QF_REASON_CLOSURE;
            *changed = true;
        }
    }
    return rc;
}

/* ---- */

/* compressed-tensors takes an entry for a whole name, unless it says otherwise. All
 * patterns are one regular expression to it. */
static int append_patterns(struct list *l)
{
    struct qf_buf entry = {0};
    int rc = 0;
    qf_buf_append_str(&entry, "re:(.*\\.)?(");
    for (size_t i = 0; rc == 0 && i < l->pattern_count; i++) {
        const char *text = l->patterns[i].text;
        if (l->family != QF_FAMILY_COMPRESSED_TENSORS)
            rc = qf_skip_append(l->p, text, strlen(text));
        qf_buf_appendf(&entry, "%s%s", i != 0 ? "|" : "", text);
    }
    qf_buf_append_str(&entry, ")(\\..*)?$");
    if (rc == 0 && entry.failed)
        rc = -ENOMEM;
    if (rc == 0 && l->family == QF_FAMILY_COMPRESSED_TENSORS && l->pattern_count != 0)
        rc = qf_skip_append(l->p, entry.data, entry.size);
    qf_buf_fini(&entry);
    return rc;
}

/* What may be a Linear of the model, kept for a reason of its own. */
static bool is_linear_kept(enum qf_reason reason)
{
    return reason != QF_REASON_QUANTIZED && reason != QF_REASON_HEAD &&
           reason != QF_REASON_EMBEDDING && reason != QF_REASON_EXPERTS;
}

/* Whether the entry would hit a quantized module: 1, 0, or an error. */
static int hits_quantized(struct list *l, const char *entry)
{
    struct qf_planner *p = l->p;
    bool hit = false;
    int rc = 0;
    for (size_t i = 0; rc == 0 && !hit && i < p->names.count; i++) {
        const struct qf_named *named = &p->names.items[i];
        struct qf_path path;
        if (p->out->decisions[named->index].reason != QF_REASON_QUANTIZED ||
            !qf_path_of_weight(named->name, &path))
            continue;
        rc = qf_skip_count_matches(p, path, 1);
        hit = pattern_hits(path, entry);
    }
    return rc == 0 ? hit : rc;
}

/* A class other than the one that was saved calls its modules differently: with a
 * component more in front, with one less, or with another one. So the ends of the names
 * are listed, too, if they tell them from what is quantized. */
static int append_end(struct list *l, struct qf_path path)
{
    const char *dot = memchr(path.at, '.', path.size);
    char entry[END_SIZE + 20];
    char end[END_SIZE];
    size_t size = dot != NULL ? path.size - (size_t)(dot + 1 - path.at) : 0;
    if (size == 0 || size >= sizeof end || memchr(dot + 1, '.', size) == NULL)
        return 0;
    memcpy(end, dot + 1, size);
    end[size] = '\0';
    int rc = hits_quantized(l, end);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    bool regex = l->family == QF_FAMILY_COMPRESSED_TENSORS;
    snprintf(entry, sizeof entry, regex ? "re:(.*\\.)?%s$" : "%s", end);
    return qf_skip_append(l->p, entry, strlen(entry));
}

static int append_ends(struct list *l)
{
    struct qf_planner *p = l->p;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < p->names.count; i++) {
        const struct qf_named *named = &p->names.items[i];
        struct qf_path path;
        if (is_linear_kept(p->out->decisions[named->index].reason) &&
            is_kept_weight(p, named->index, &path))
            rc = append_end(l, path);
    }
    return rc;
}

static bool has_experts(const struct qf_planner *p)
{
    for (size_t i = 0; i < p->count; i++) {
        struct qf_path path = {p->tensors[i]->name, strlen(p->tensors[i]->name)};
        if (experts_module(&path))
            return true;
    }
    return false;
}

int qf_list_build(struct qf_planner *p, enum qf_codec codec)
{
    struct list l = {.p = p, .family = qf_codec_info(codec)->family};
    if (l.family == QF_FAMILY_COMPRESSED_TENSORS && has_experts(p))
        return qf_planner_give_up(p, "transformers cannot load compressed-tensors with "
                                     "experts that are left as they are");
    if (l.family == QF_FAMILY_TORCHAO && p->count > QF_TORCHAO_TENSORS_MAX)
        return qf_planner_give_up(p, "more tensors than the metadata of torchao can "
                                     "name in reasonable time");
    int rc = collect_patterns(&l);
    for (bool changed = true; rc == 0 && changed;) {
        qf_skip_clear(p);
        rc = keep_groups(p);
        if (rc == 0)
            rc = list_names(&l);
        if (rc == 0)
            rc = list_tied_head(&l);
        if (rc == 0)
            rc = close_list(&l, &changed);
    }
    if (rc == 0)
        rc = append_patterns(&l);
    return rc == 0 && l.family != QF_FAMILY_TORCHAO ? append_ends(&l) : rc;
}
