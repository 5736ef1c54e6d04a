/* SPDX-License-Identifier: Apache-2.0 */
/* A wrong key or value is refused with its name rather than ignored: whoever writes an
 * override wants something, and would not get it. */
#include "view/overrides.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "view/settings.h"

/* ---- patterns ---- */

static void patterns_fini(struct qf_patterns *patterns)
{
    for (size_t i = 0; i < patterns->count; i++)
        free(patterns->items[i]);
    free(patterns->items);
    *patterns = (struct qf_patterns){0};
}

/* Once, however often it is said. */
static int patterns_add(struct qf_patterns *patterns, const char *text, size_t size,
                        const char *label, struct qf_err *err)
{
    for (size_t i = 0; i < patterns->count; i++)
        if (strlen(patterns->items[i]) == size &&
            memcmp(patterns->items[i], text, size) == 0)
            return 0;
    if (patterns->count == QF_OVERRIDES_PATTERNS_MAX)
        return qf_err_set(err, -EINVAL, "'%s': more than %d names", label,
                          QF_OVERRIDES_PATTERNS_MAX);
    char **items = realloc(patterns->items, (patterns->count + 1) * sizeof *items);
    if (items == NULL)
        return -ENOMEM;
    patterns->items = items;
    items[patterns->count] = strndup(text, size);
    if (items[patterns->count] == NULL)
        return -ENOMEM;
    patterns->count++;
    return 0;
}

static int patterns_copy(const struct qf_patterns *from, struct qf_patterns *to)
{
    int rc = 0;
    for (size_t i = 0; i < from->count && rc == 0; i++)
        rc = patterns_add(to, from->items[i], strlen(from->items[i]), "", NULL);
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

/* ---- members ---- */

/* "only" is one value: a list that takes the place of another. */
static struct qf_patterns *begin_patterns(struct qf_view *view, enum qf_setting setting)
{
    struct qf_patterns *out = qf_setting_patterns(view, setting);
    if (setting == QF_SETTING_ONLY)
        patterns_fini(out);
    return out;
}

static int set_patterns(const char *key, const qf_json *value, struct qf_patterns *out,
                        struct qf_err *err)
{
    int rc = 0;
    if (!qf_json_is_array(value))
        return qf_err_set(err, -EINVAL, "'%s' must be a list of module names", key);
    for (const qf_json *item = qf_json_first(value); item != NULL && rc == 0;
         item = qf_json_after(item)) {
        const char *text = qf_json_string(item);
        if (text == NULL || text[0] == '\0')
            return qf_err_set(err, -EINVAL, "'%s' must be a list of module names", key);
        rc = patterns_add(out, text, strlen(text), key, err);
    }
    return rc;
}

/* A group is a field of every scaled codec, and not every one lets a user set it. */
static int set_number(struct qf_view *view, enum qf_setting setting, const char *key,
                      double number, struct qf_err *err)
{
    struct qf_view other = *view;
    bool ours = setting != QF_SETTING_GROUP || qf_setting_fits(setting, view->codec);
    return qf_setting_set_number(ours ? view : &other, setting, key, number, err);
}

/* One member but "views". */
static int apply_member(const char *key, const qf_json *value, struct qf_view *view,
                        struct qf_err *err)
{
    int i = 0;
    while (i < QF_SETTING_COUNT && strcmp(qf_settings[i].key, key) != 0)
        i++;
    if (i == QF_SETTING_COUNT)
        return qf_err_set(err, -EINVAL, "unknown key '%.100s'", key);
    enum qf_setting setting = (enum qf_setting)i;
    const char *word = qf_json_string(value);
    switch (qf_settings[i].kind) {
    case QF_SETTING_PATTERNS:
        return set_patterns(key, value, begin_patterns(view, setting), err);
    case QF_SETTING_NUMBER:
        return set_number(view, setting, key,
                          qf_json_is_number(value) ? qf_json_number(value) : NAN, err);
    default:
        return qf_setting_set_word(view, setting, key, word != NULL ? word : "", err);
    }
}

static int apply_object(const qf_json *object, struct qf_view *view, struct qf_err *err)
{
    int rc = 0;
    for (const qf_json *m = qf_json_first(object); m != NULL && rc == 0;
         m = qf_json_after(m))
        rc = apply_member(qf_json_name(m), m, view, err);
    return rc;
}

/* One member of "views". The objects of other views are looked at too: an error in one
 * should not wait for the day when that view is used. */
static int apply_view(const qf_json *member, bool by_codec, struct qf_view *view,
                      struct qf_err *err)
{
    const char *name = qf_json_name(member);
    struct qf_view other;
    int rc = qf_view_parse(name, strlen(name), &other, err);
    if (rc == 0 && !qf_json_is_object(member))
        rc = qf_err_set(err, -EINVAL, "'%s' must be an object", name);
    if (rc == 0 && qf_codec_plain_dtype(other.codec) != QF_DTYPE_NONE &&
        qf_json_first(member) != NULL)
        rc = qf_err_set(err, -EINVAL, "'%s' has no settings", name);
    if (rc != 0) {
        qf_err_prefix(err, "'views'");
        return rc == -ENOMEM ? rc : -EINVAL;
    }
    const char *wanted = by_codec ? qf_codec_name(view->codec) : view->name;
    bool mine = strcmp(other.name, wanted) == 0;
    rc = apply_object(member, mine ? view : &other, err);
    if (!mine)
        qf_view_fini(&other);
    if (rc != 0)
        qf_err_prefix(err, "'views': '%s'", name);
    return rc;
}

/* The members of the top level apply first, then those for the codec's views, then
 * those for the view's own name. */
static int apply_views(const qf_json *views, struct qf_view *view, struct qf_err *err)
{
    int rc = 0;
    if (!qf_json_is_object(views))
        return qf_err_set(err, -EINVAL, "'views' must be an object of views by name");
    for (const qf_json *m = qf_json_first(views); m != NULL && rc == 0;
         m = qf_json_after(m))
        rc = apply_view(m, true, view, err);
    bool plain = strcmp(view->name, qf_codec_name(view->codec)) == 0;
    for (const qf_json *m = plain ? NULL : qf_json_first(views); m != NULL && rc == 0;
         m = qf_json_after(m))
        rc = apply_view(m, false, view, err);
    return rc;
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

/* ---- the settings of a name ---- */

static int apply_piece(const struct qf_setting_piece *piece, struct qf_view *view,
                       struct qf_err *err)
{
    const char *label = qf_settings[piece->setting].name;
    if (qf_settings[piece->setting].kind != QF_SETTING_PATTERNS)
        return qf_setting_set_text(view, piece->setting, piece->value,
                                   piece->value_size, err);
    struct qf_patterns *out = begin_patterns(view, piece->setting);
    const char *at = piece->value, *text;
    size_t size;
    int rc = 0;
    while (rc == 0 &&
           qf_setting_next_pattern(&at, piece->value + piece->value_size, &text, &size))
        rc = patterns_add(out, text, size, label, err);
    return rc;
}

static int apply_name(struct qf_view *view, struct qf_err *err)
{
    const char *end = view->name + strlen(view->name);
    const char *at = memchr(view->name, '+', (size_t)(end - view->name));
    struct qf_setting_piece piece;
    int rc = 0;
    while (rc == 0 && at != NULL && qf_setting_next(&at, end, &piece))
        rc = apply_piece(&piece, view, err);
    return rc;
}

/* ---- */

int qf_overrides_apply(const struct qf_view *base, const char *text, size_t size,
                       struct qf_view *out, struct qf_err *err)
{
    *out = *base;
    out->only = out->skip = out->force = (struct qf_patterns){0};
    int rc = patterns_copy(&base->only, &out->only);
    if (rc == 0)
        rc = patterns_copy(&base->skip, &out->skip);
    if (rc == 0)
        rc = patterns_copy(&base->force, &out->force);
    if (rc == 0 && text != NULL) {
        qf_json *root = qf_json_parse(text, size, err);
        rc = root != NULL      ? apply_root(root, out, err)
             : errno == ENOMEM ? -ENOMEM
                               : -EINVAL;
        qf_json_free(root);
    }
    if (rc == 0)
        rc = apply_name(out, err);
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
    patterns_fini(&view->only);
    patterns_fini(&view->skip);
    patterns_fini(&view->force);
}
