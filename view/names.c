/* SPDX-License-Identifier: Apache-2.0 */
/* A view is named after its codec, whose settings are those of bitsandbytes' defaults,
 * and after the settings that differ. A name is read piece by piece, and written anew
 * from what was understood: so there is one spelling for each meaning, and nothing of a
 * name that is not understood can get through. */
#include "view/names.h"

#include <stdlib.h>
#include <string.h>

#include "view/settings.h"

const char qf_view_default_list[] = "nf4:int8:dq:fp4";

bool qf_view_is_default(enum qf_codec codec)
{
    enum qf_family family = qf_codec_info(codec)->family;
    return family == QF_FAMILY_BNB_4BIT || family == QF_FAMILY_BNB_INT8;
}

/* What settings of a name have been understood so far. */
struct reading {
    struct qf_view *view;
    bool given[QF_SETTING_COUNT];
    size_t pattern_count;
    struct pattern {
        enum qf_setting setting;
        const char *at;
        size_t size;
    } patterns[QF_VIEW_NAME_SIZE / 2]; /* each takes a byte and what is before it */
};

/* ---- reading ---- */

void qf_view_append_codecs(struct qf_buf *out)
{
    for (int i = 0; i < QF_CODEC_COUNT; i++)
        qf_buf_appendf(out, "%s%s", i != 0 ? ", " : "",
                       qf_codec_name((enum qf_codec)i));
}

static bool find_codec(const char *name, size_t size, enum qf_codec *out)
{
    char text[32];
    if (size >= sizeof text)
        return false;
    memcpy(text, name, size);
    text[size] = '\0';
    return qf_codec_from_name(text, out);
}

static int refuse_key(const struct qf_setting_piece *piece, enum qf_codec codec,
                      struct qf_err *err)
{
    struct qf_buf allowed = {0};
    for (int i = 0; i < QF_SETTING_COUNT; i++)
        if (qf_setting_fits((enum qf_setting)i, codec))
            qf_buf_appendf(&allowed, "%s%s", allowed.size != 0 ? ", " : "",
                           qf_settings[i].name);
    if (allowed.size == 0)
        qf_buf_append_str(&allowed, "none");
    int rc = allowed.failed
                 ? -ENOMEM
                 : qf_err_set(err, -EINVAL, "%s has no setting '%.*s' (it has %.*s)",
                              qf_codec_name(codec), (int)piece->key_size, piece->key,
                              (int)allowed.size, allowed.data);
    qf_buf_fini(&allowed);
    return rc;
}

/* What no module's name has, and what somebody may have taken for a separator. */
static bool is_pattern(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)text[i] <= ' ' || text[i] == 0x7f ||
            strchr(",/=", text[i]) != NULL)
            return false;
    return size != 0;
}

static int read_patterns(struct reading *r, const struct qf_setting_piece *piece,
                         struct qf_err *err)
{
    const char *at = piece->value, *end = at + piece->value_size;
    struct pattern p = {.setting = piece->setting};
    while (qf_setting_next_pattern(&at, end, &p.at, &p.size)) {
        if (!is_pattern(p.at, p.size))
            return qf_err_set(err, -EINVAL,
                              "'%s' must be names of modules, separated by ':'",
                              qf_settings[piece->setting].name);
        r->patterns[r->pattern_count++] = p;
    }
    return 0;
}

static int read_piece(struct reading *r, const struct qf_setting_piece *piece,
                      struct qf_err *err)
{
    enum qf_codec codec = r->view->codec;
    if (piece->setting == QF_SETTING_COUNT || !qf_setting_fits(piece->setting, codec))
        return refuse_key(piece, codec, err);
    const struct qf_setting_info *info = &qf_settings[piece->setting];
    if (piece->value == NULL)
        return qf_err_set(err, -EINVAL, "'%s' needs a value: %s=…", info->name,
                          info->name);
    bool again = r->given[piece->setting];
    r->given[piece->setting] = true;
    if (info->kind == QF_SETTING_PATTERNS)
        return read_patterns(r, piece, err);
    if (again)
        return qf_err_set(err, -EINVAL, "'%s' is there twice", info->name);
    return qf_setting_set_text(r->view, piece->setting, piece->value, piece->value_size,
                               err);
}

/* ---- writing ---- */

static int compare_patterns(const void *a, const void *b)
{
    const struct pattern *x = a, *y = b;
    int order = memcmp(x->at, y->at, x->size < y->size ? x->size : y->size);
    return order != 0 ? order : (x->size > y->size) - (x->size < y->size);
}

static void write_patterns(const struct reading *r, enum qf_setting setting,
                           struct qf_buf *out)
{
    const struct pattern *last = NULL;
    for (size_t i = 0; i < r->pattern_count; i++) {
        const struct pattern *p = &r->patterns[i];
        if (p->setting != setting || (last != NULL && compare_patterns(last, p) == 0))
            continue;
        qf_buf_append_str(out, last != NULL ? ":" : "");
        qf_buf_append(out, p->at, p->size);
        last = p;
    }
}

static int write_name(struct reading *r, struct qf_err *err)
{
    struct qf_buf name = {0};
    qsort(r->patterns, r->pattern_count, sizeof *r->patterns, compare_patterns);
    qf_buf_append_str(&name, qf_codec_name(r->view->codec));
    for (int i = 0; i < QF_SETTING_COUNT; i++) {
        if (!r->given[i])
            continue;
        qf_buf_appendf(&name, "+%s=", qf_settings[i].name);
        if (qf_settings[i].kind == QF_SETTING_PATTERNS)
            write_patterns(r, (enum qf_setting)i, &name);
        else
            qf_setting_append_value(r->view, (enum qf_setting)i, &name);
    }
    int rc = 0;
    if (name.failed)
        rc = -ENOMEM;
    else if (name.size >= sizeof r->view->name)
        rc =
            qf_err_set(err, -EINVAL, "longer than %zu bytes", sizeof r->view->name - 1);
    else
        memcpy(r->view->name, name.data, name.size); /* zeroed: ended */
    qf_buf_fini(&name);
    return rc;
}

/* ---- names ---- */

/* Names go into a sentence as they came; long ones not whole. */
static int quoted_size(size_t size)
{
    return size < QF_VIEW_NAME_SIZE ? (int)size : QF_VIEW_NAME_SIZE;
}

static int refuse_name(const char *name, size_t size, struct qf_err *err)
{
    struct qf_buf all = {0};
    qf_view_append_codecs(&all);
    int rc = all.failed ? -ENOMEM
                        : qf_err_set(err, -ENOENT,
                                     "no view is called '%.*s' (there are: %.*s)",
                                     quoted_size(size), name, (int)all.size, all.data);
    qf_buf_fini(&all);
    return rc == -ENOMEM ? qf_err_set(err, rc, "out of memory") : rc;
}

int qf_view_parse(const char *name, size_t size, struct qf_view *out,
                  struct qf_err *err)
{
    const char *end = name + size;
    const char *at = memchr(name, '+', size);
    enum qf_codec codec;
    at = at != NULL ? at : end;
    if (memchr(name, '\0', size) != NULL ||
        !find_codec(name, (size_t)(at - name), &codec))
        return refuse_name(name, size, err);
    struct qf_codec_spec spec = qf_codec_default(codec, QF_F32);
    *out = (struct qf_view){.codec = codec,
                            .blocksize = spec.blocksize,
                            .storage = spec.storage,
                            .group = spec.group,
                            .dtype = QF_DTYPE_NONE,
                            .compute = QF_DTYPE_NONE,
                            .int8_threshold = 6.0};
    struct reading reading = {.view = out};
    struct qf_setting_piece piece;
    int rc = 0;
    if (size >= sizeof out->name)
        rc = qf_err_set(err, -EINVAL, "longer than %zu bytes", sizeof out->name - 1);
    while (rc == 0 && qf_setting_next(&at, end, &piece))
        rc = read_piece(&reading, &piece, err);
    if (rc == 0)
        rc = write_name(&reading, err);
    if (rc == -EINVAL)
        qf_err_prefix(err, "view '%.*s'", quoted_size(size), name);
    return rc == -ENOMEM ? qf_err_set(err, rc, "out of memory") : rc;
}

/* ---- lists ---- */

/* One view of a list, and that it is not one of the `count` before it. */
static int parse_item(const char *list, const char *name, size_t size,
                      struct qf_view *views, size_t count, struct qf_err *err)
{
    if (size == 0)
        return qf_err_set(err, -EINVAL, "views '%s': an empty name", list);
    if (count == QF_VIEWS_MAX)
        return qf_err_set(err, -EINVAL, "views '%s': more than %d", list, QF_VIEWS_MAX);
    int rc = qf_view_parse(name, size, &views[count], err);
    if (rc != 0) {
        bool settings = memchr(list, '+', (size_t)(name - list)) != NULL;
        qf_err_prefix(err, "views '%s'%s", list,
                      rc == -ENOENT && settings
                          ? " (several patterns in a list: skip=A+skip=B)"
                          : "");
        return rc == -ENOMEM ? rc : -EINVAL;
    }
    for (size_t i = 0; i < count; i++)
        if (strcmp(views[i].name, views[count].name) == 0)
            return qf_err_set(err, -EINVAL, "views '%s': '%s' is there twice", list,
                              views[count].name);
    return 0;
}

int qf_view_parse_list(const char *list, struct qf_view views[QF_VIEWS_MAX],
                       size_t *count, struct qf_err *err)
{
    size_t n = 0;
    for (const char *at = list;; at++) {
        size_t size = strcspn(at, ":");
        int rc = parse_item(list, at, size, views, n, err);
        if (rc != 0)
            return rc;
        n++;
        at += size;
        if (*at == '\0')
            break;
    }
    *count = n;
    return 0;
}

void qf_view_append_listed(const struct qf_view *view, struct qf_buf *out)
{
    const char *key = view->name;
    for (const char *at = view->name; *at != '\0'; at++) {
        if (*at == '+')
            key = at;
        if (*at == ':')
            qf_buf_append(out, key, strcspn(key, "=") + 1);
        else
            qf_buf_append(out, at, 1);
    }
}

struct qf_codec_spec qf_view_spec(const struct qf_view *view, enum qf_dtype dtype)
{
    return (struct qf_codec_spec){.codec = view->codec,
                                  .blocksize = view->blocksize,
                                  .dtype = dtype,
                                  .storage = view->storage,
                                  .group = view->group};
}
