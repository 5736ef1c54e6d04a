/* SPDX-License-Identifier: Apache-2.0 */
/* cJSON reads, but only a text that the scanner has passed, and in a copy in which
 * everything that cJSON cannot take or would take wrongly is replaced: NaN and Infinity
 * (it fails), numbers of more than 63 characters (it cuts them), lone surrogates (it
 * fails, Python takes them) and \u0000 (it would cut the string there, and a name
 * "a\u0000b" would pass for "a"; both become U+FFFD). What is left for it to fail
 * on is memory. */
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#define CJSON_NUMBER_SIZE_MAX 63

static const cJSON *in(const qf_json *value)
{
    return (const cJSON *)value;
}

enum half { NO_SURROGATE, HIGH_SURROGATE, LOW_SURROGATE };

/* What the escape at p is: \ud8.. to \udb.. begins a pair, \udc.. to \udf.. ends it. */
static enum half surrogate_at(const char *p, const char *end)
{
    if (end - p < 6 || p[0] != '\\' || p[1] != 'u' || (p[2] != 'd' && p[2] != 'D'))
        return NO_SURROGATE;
    if (strchr("89abAB", p[3]) != NULL)
        return HIGH_SURROGATE;
    return strchr("cdefCDEF", p[3]) != NULL ? LOW_SURROGATE : NO_SURROGATE;
}

static void append_string(struct qf_buf *out, const char *p, const char *end)
{
    while (p < end) {
        size_t n = 1;
        const char *put = p;
        if (*p == '\\') {
            n = p[1] == 'u' ? 6 : 2;
            enum half half = surrogate_at(p, end);
            if (half == HIGH_SURROGATE && surrogate_at(p + 6, end) == LOW_SURROGATE)
                n = 12;
            else if (half != NO_SURROGATE || (n == 6 && memcmp(p + 2, "0000", 4) == 0))
                put = "\\ufffd";
        }
        qf_buf_append(out, put, n);
        p += n;
    }
}

static void append_number(struct qf_buf *out, const char *p, size_t size)
{
    if (size <= CJSON_NUMBER_SIZE_MAX) {
        qf_buf_append(out, p, size);
        return;
    }
    char *copy = strndup(p, size);
    if (copy == NULL) {
        out->failed = true;
        return;
    }
    double v = strtod(copy, NULL);
    free(copy);
    if (v - v != 0)
        qf_buf_append_str(out, v > 0 ? "1e999" : "-1e999");
    else
        qf_buf_appendf(out, "%.17g", v);
}

static int sanitize(struct qf_json_scan *scan, struct qf_buf *out)
{
    size_t copied = 0;
    struct qf_json_token tok;
    do {
        int rc = qf_json_next(scan, &tok);
        if (rc != 0)
            return rc;
        qf_buf_append(out, scan->text + copied, tok.start - copied);
        const char *p = scan->text + tok.start;
        size_t size = tok.end - tok.start;
        if (tok.kind == QF_JSON_STRING || tok.kind == QF_JSON_KEY)
            append_string(out, p, p + size);
        else if (tok.kind == QF_JSON_NUMBER)
            append_number(out, p, size);
        else if (tok.kind == QF_JSON_NONFINITE)
            qf_buf_append_str(out, "null");
        else
            qf_buf_append(out, p, size);
        copied = tok.end;
    } while (tok.kind != QF_JSON_END);
    return out->failed ? -ENOMEM : 0;
}

static void describe(const struct qf_json_scan *scan, struct qf_err *err)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < scan->problem_pos; i++) {
        column = scan->text[i] == '\n' ? 1 : column + 1;
        line += scan->text[i] == '\n';
    }
    qf_err_set(err, 0, "not JSON: line %zu, byte %zu: %s", line, column, scan->problem);
}

qf_json *qf_json_parse(const char *text, size_t size, struct qf_err *err)
{
    struct qf_buf copy = {0};
    struct qf_json_scan scan;
    cJSON *root = NULL;
    qf_json_scan_init(&scan, text, size, true);
    int rc = sanitize(&scan, &copy);
    if (rc == -EBADMSG) {
        describe(&scan, err);
        goto out;
    }
    if (rc == 0)
        root = cJSON_ParseWithLengthOpts(copy.data, copy.size, NULL, false);
    if (root == NULL)
        rc = qf_err_set(err, -ENOMEM, "out of memory");
out:
    qf_buf_fini(&copy);
    if (root == NULL)
        errno = -rc;
    return (qf_json *)root;
}

void qf_json_free(qf_json *root)
{
    cJSON_Delete((cJSON *)root);
}

const qf_json *qf_json_get(const qf_json *object, const char *name)
{
    const cJSON *found = NULL;
    if (!qf_json_is_object(object))
        return NULL;
    for (const cJSON *m = in(object)->child; m != NULL; m = m->next)
        if (strcmp(m->string, name) == 0)
            found = m;
    return (const qf_json *)found;
}

const char *qf_json_string(const qf_json *value)
{
    return cJSON_GetStringValue(in(value));
}

bool qf_json_is_object(const qf_json *value)
{
    return cJSON_IsObject(in(value)) != 0;
}

bool qf_json_is_array(const qf_json *value)
{
    return cJSON_IsArray(in(value)) != 0;
}

bool qf_json_is_true(const qf_json *value)
{
    return cJSON_IsTrue(in(value)) != 0;
}

bool qf_json_is_false(const qf_json *value)
{
    return cJSON_IsFalse(in(value)) != 0;
}

bool qf_json_is_null(const qf_json *value)
{
    return value == NULL || cJSON_IsNull(in(value)) != 0;
}

bool qf_json_is_number(const qf_json *value)
{
    return cJSON_IsNumber(in(value)) != 0;
}

double qf_json_number(const qf_json *value)
{
    return qf_json_is_number(value) ? in(value)->valuedouble : 0;
}

const qf_json *qf_json_first(const qf_json *container)
{
    if (!qf_json_is_object(container) && !qf_json_is_array(container))
        return NULL;
    return (const qf_json *)in(container)->child;
}

const qf_json *qf_json_after(const qf_json *value)
{
    return value != NULL ? (const qf_json *)in(value)->next : NULL;
}

const char *qf_json_name(const qf_json *member)
{
    return member != NULL ? in(member)->string : NULL;
}
