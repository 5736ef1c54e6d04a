/* SPDX-License-Identifier: Apache-2.0 */
/* A wrong key or value is refused with its name rather than ignored: whoever writes an
 * override wants something, and would not get it. */
#include "view/overrides.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

/* ---- patterns ---- */

static void patterns_fini(struct qf_patterns *patterns)
{
    for (size_t i = 0; i < patterns->count; i++)
        free(patterns->items[i]);
    free(patterns->items);
    *patterns = (struct qf_patterns){0};
}

static int patterns_add(struct qf_patterns *patterns, const char *text)
{
    char **items = realloc(patterns->items, (patterns->count + 1) * sizeof *items);
    if (items == NULL)
        return -ENOMEM;
    patterns->items = items;
    items[patterns->count] = strdup(text);
    if (items[patterns->count] == NULL)
        return -ENOMEM;
    patterns->count++;
    return 0;
}

static int patterns_copy(const struct qf_patterns *from, struct qf_patterns *to)
{
    int rc = 0;
    for (size_t i = 0; i < from->count && rc == 0; i++)
        rc = patterns_add(to, from->items[i]);
    return rc;
}

/* Whether the pattern matches from the beginning of `module` up to a component's end.
 */
static bool match_here(const char *pattern, const char *module, const char *end)
{
    for (;;) {
        size_t want = strcspn(pattern, ".");
        const char *dot = memchr(module, '.', (size_t)(end - module));
        size_t have = (size_t)((dot != NULL ? dot : end) - module);
        bool any = want == 1 && pattern[0] == '*';
        if (!any && (want != have || memcmp(pattern, module, want) != 0))
            return false;
        if (pattern[want] == '\0')
            return true;
        if (dot == NULL)
            return false;
        pattern += want + 1;
        module = dot + 1;
    }
}

bool qf_patterns_match(const struct qf_patterns *patterns, const char *module,
                       size_t size)
{
    const char *end = module + size;
    for (size_t i = 0; i < patterns->count; i++) {
        for (const char *at = module;;) {
            if (match_here(patterns->items[i], at, end))
                return true;
            const char *dot = memchr(at, '.', (size_t)(end - at));
            if (dot == NULL)
                break;
            at = dot + 1;
        }
    }
    return false;
}

/* ---- values ---- */

static int set_patterns(const char *key, const qf_json *value, struct qf_patterns *out,
                        struct qf_err *err)
{
    if (!qf_json_is_array(value))
        return qf_err_set(err, -EINVAL, "'%s' must be a list of module names", key);
    for (const qf_json *item = qf_json_first(value); item != NULL;
         item = qf_json_after(item)) {
        const char *text = qf_json_string(item);
        if (text == NULL || text[0] == '\0')
            return qf_err_set(err, -EINVAL, "'%s' must be a list of module names", key);
        if (out->count == QF_OVERRIDES_PATTERNS_MAX)
            return qf_err_set(err, -EINVAL, "'%s': more than %d names", key,
                              QF_OVERRIDES_PATTERNS_MAX);
        int rc = patterns_add(out, text);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int set_float_dtype(const char *key, const qf_json *value, enum qf_dtype *out,
                           struct qf_err *err)
{
    const char *name = qf_json_string(value);
    enum qf_dtype dtype = name != NULL ? qf_dtype_from_torch(name) : QF_DTYPE_NONE;
    if (dtype == QF_DTYPE_NONE)
        return qf_err_set(err, -EINVAL, "'%s' must be float32, float16 or bfloat16",
                          key);
    *out = dtype;
    return 0;
}

static int set_storage(const char *key, const qf_json *value, enum qf_dtype *out,
                       struct qf_err *err)
{
    const char *name = qf_json_string(value);
    if (name != NULL && strcmp(name, "uint8") == 0) {
        *out = QF_U8;
        return 0;
    }
    if (set_float_dtype(key, value, out, NULL) != 0)
        return qf_err_set(err, -EINVAL,
                          "'%s' must be uint8, float32, float16 or bfloat16", key);
    return 0;
}

static int set_blocksize(const char *key, const qf_json *value, uint32_t *out,
                         struct qf_err *err)
{
    double number = qf_json_number(value);
    for (uint32_t size = QF_BLOCKSIZE_DEFAULT; size <= QF_BLOCKSIZE_MAX; size *= 2) {
        if (number == (double)size) {
            *out = size;
            return 0;
        }
    }
    return qf_err_set(err, -EINVAL, "'%s' must be a power of two from %u to %u", key,
                      QF_BLOCKSIZE_DEFAULT, QF_BLOCKSIZE_MAX);
}

static int set_threshold(const char *key, const qf_json *value, double *out,
                         struct qf_err *err)
{
    double number = qf_json_number(value);
    if (!qf_json_is_number(value) || !isfinite(number) || number < 0)
        return qf_err_set(err, -EINVAL, "'%s' must be a number that is not negative",
                          key);
    *out = number;
    return 0;
}

/* ---- members ---- */

/* One member but "views". */
static int apply_member(const char *key, const qf_json *value, struct qf_view *view,
                        struct qf_err *err)
{
    if (strcmp(key, "skip") == 0)
        return set_patterns(key, value, &view->skip, err);
    if (strcmp(key, "force") == 0)
        return set_patterns(key, value, &view->force, err);
    if (strcmp(key, "dtype") == 0)
        return set_float_dtype(key, value, &view->dtype, err);
    if (strcmp(key, "compute_dtype") == 0)
        return set_float_dtype(key, value, &view->compute, err);
    if (strcmp(key, "quant_storage") == 0)
        return set_storage(key, value, &view->storage, err);
    if (strcmp(key, "blocksize") == 0)
        return set_blocksize(key, value, &view->blocksize, err);
    if (strcmp(key, "int8_threshold") == 0)
        return set_threshold(key, value, &view->int8_threshold, err);
    return qf_err_set(err, -EINVAL, "unknown key '%.100s'", key);
}

static int apply_object(const qf_json *object, struct qf_view *view, struct qf_err *err)
{
    int rc = 0;
    for (const qf_json *m = qf_json_first(object); m != NULL && rc == 0;
         m = qf_json_after(m))
        rc = apply_member(qf_json_name(m), m, view, err);
    return rc;
}

/* The members of the top level apply first, then those of the view's own object. */
static int apply_views(const qf_json *views, struct qf_view *view, struct qf_err *err)
{
    if (!qf_json_is_object(views))
        return qf_err_set(err, -EINVAL, "'views' must be an object of views by name");
    for (const qf_json *m = qf_json_first(views); m != NULL; m = qf_json_after(m)) {
        const char *name = qf_json_name(m);
        struct qf_view other;
        int rc = qf_view_parse(name, strlen(name), &other, err);
        if (rc == 0 && !qf_json_is_object(m))
            rc = qf_err_set(err, -EINVAL, "'%s' must be an object", name);
        if (rc != 0) {
            qf_err_prefix(err, "'views'");
            return -EINVAL;
        }
        /* The objects of other views are looked at too: an error in one should not wait
         * for the day when that view is used. */
        rc = apply_object(m, strcmp(name, view->name) == 0 ? view : &other, err);
        if (strcmp(name, view->name) != 0)
            qf_view_fini(&other);
        if (rc != 0) {
            qf_err_prefix(err, "'views': '%s'", name);
            return rc;
        }
    }
    return 0;
}

static int apply_root(const qf_json *root, struct qf_view *view, struct qf_err *err)
{
    if (!qf_json_is_object(root))
        return qf_err_set(err, -EINVAL, "not a JSON object");
    const qf_json *views = NULL;
    for (const qf_json *m = qf_json_first(root); m != NULL; m = qf_json_after(m)) {
        if (strcmp(qf_json_name(m), "views") == 0) {
            views = m;
            continue;
        }
        int rc = apply_member(qf_json_name(m), m, view, err);
        if (rc != 0)
            return rc;
    }
    return views != NULL ? apply_views(views, view, err) : 0;
}

int qf_overrides_apply(const struct qf_view *base, const char *text, size_t size,
                       struct qf_view *out, struct qf_err *err)
{
    *out = *base;
    out->skip = out->force = (struct qf_patterns){0};
    int rc = patterns_copy(&base->skip, &out->skip);
    if (rc == 0)
        rc = patterns_copy(&base->force, &out->force);
    if (rc == 0 && text != NULL) {
        qf_json *root = qf_json_parse(text, size, err);
        rc = root != NULL      ? apply_root(root, out, err)
             : errno == ENOMEM ? -ENOMEM
                               : -EINVAL;
        qf_json_free(root);
    }
    if (rc != 0)
        qf_view_fini(out);
    return rc;
}

int qf_overrides_check(const char *text, size_t size, struct qf_err *err)
{
    struct qf_view base, view;
    int rc = qf_view_parse("nf4", 3, &base, err);
    if (rc == 0)
        rc = qf_overrides_apply(&base, text, size, &view, err);
    if (rc == 0)
        qf_view_fini(&view);
    return rc;
}

void qf_view_fini(struct qf_view *view)
{
    patterns_fini(&view->skip);
    patterns_fini(&view->force);
}
