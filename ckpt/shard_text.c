/* SPDX-License-Identifier: Apache-2.0 */
/* One pass of the scanner, into compact tables of offsets: a header may be 100 MB long
 * and hold millions of entries.
 *
 * What is accepted follows the safetensors library to the oddities of its JSON library:
 * a tensor may be a list [dtype, shape, data_offsets], a dtype may be {"F32": null},
 * unknown fields are skipped but must hold numbers that fit a double and no lone
 * surrogates. Refused although the library takes them: U+0000 in names and metadata
 * (they are C strings here) and more than QF_TENSOR_RANK_MAX dimensions. */
#include "ckpt/shard_text.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/bytes.h"
#include "base/dtype.h"
#include "base/json.h"
#include "base/limits.h"
#include "ckpt/printable.h"

struct parser {
    struct qf_json_scan scan;
    struct qf_shard_text *out;
    struct qf_buf scratch;
    struct qf_err *err;
    const char *tensor; /* name for sentences; NULL outside of one */
};

int qf_shard_refuse(struct qf_err *err, const char *name, const char *what)
{
    if (name == NULL)
        return qf_err_set(err, -EBADMSG, "header: %s", what);
    return qf_err_set(err, -EBADMSG, "header: tensor '%s': %s", qf_printable(name).text,
                      what);
}

static int refuse(struct parser *p, const char *what)
{
    return qf_shard_refuse(p->err, p->tensor, what);
}

static int next(struct parser *p, struct qf_json_token *tok)
{
    int rc = qf_json_next(&p->scan, tok);
    if (rc != 0)
        return qf_err_set(p->err, rc, "header: not JSON: byte %zu: %s",
                          p->scan.problem_pos, p->scan.problem);
    return 0;
}

/* Adds the string and a NUL to `out`; *off is where it begins. */
static int add_string(struct parser *p, const struct qf_json_token *tok,
                      struct qf_buf *out, size_t *off)
{
    *off = out->size;
    int rc = qf_json_unescape(&p->scan, tok, out);
    qf_buf_append(out, "", 1);
    if (rc == -EBADMSG)
        return refuse(p, "half of a surrogate pair in a string");
    return out->failed ? -ENOMEM : rc;
}

static bool has_nul(const struct qf_buf *strings, size_t off)
{
    return memchr(strings->data + off, '\0', strings->size - off - 1) != NULL;
}

/* Whether serde_json takes the number: as it computes, a double that is not infinite.
 * It keeps the leading digits that fit 64 bits and counts the others as zeros. */
static bool number_fits(const char *s, const char *end)
{
    static const double powers[] = {1e289, 1e290, 1e291, 1e292, 1e293, 1e294, 1e295,
                                    1e296, 1e297, 1e298, 1e299, 1e300, 1e301, 1e302,
                                    1e303, 1e304, 1e305, 1e306, 1e307, 1e308};
    uint64_t digits = 0, more;
    int64_t exponent = 0, written = 0;
    bool full = false, fraction = false;
    for (s += *s == '-'; s < end && *s != 'e' && *s != 'E'; s++) {
        if (*s == '.') {
            fraction = true;
            full = false;
            continue;
        }
        full = full || !qf_mul_u64(digits, 10, &more) ||
               !qf_add_u64(more, (uint64_t)(*s - '0'), &more);
        if (!full)
            digits = more;
        exponent += full ? !fraction : -(int64_t)fraction;
    }
    if (s < end) {
        bool negative = s[1] == '-';
        for (s += 1 + (negative || s[1] == '+'); s < end; s++)
            written = written > INT32_MAX ? written : written * 10 + (*s - '0');
        exponent += negative ? -written : written;
    }
    if (digits == 0 || exponent < 289)
        return true;
    return exponent <= 308 && !isinf((double)digits * powers[exponent - 289]);
}

static int check_skipped(struct parser *p, const struct qf_json_token *tok)
{
    size_t off;
    p->scratch.size = 0;
    if (tok->kind == QF_JSON_STRING || tok->kind == QF_JSON_KEY)
        return add_string(p, tok, &p->scratch, &off);
    if (tok->kind == QF_JSON_NUMBER &&
        !number_fits(p->scan.text + tok->start, p->scan.text + tok->end))
        return refuse(p, "a number is out of range");
    return 0;
}

/* Passes over the value that `tok` begins, with serde_json's checks. */
static int skip_value(struct parser *p, struct qf_json_token tok)
{
    bool container = tok.kind == QF_JSON_OBJECT || tok.kind == QF_JSON_ARRAY;
    unsigned depth = p->scan.depth - (container ? 1 : 0);
    int rc = check_skipped(p, &tok);
    while (rc == 0 && p->scan.depth > depth) {
        rc = next(p, &tok);
        if (rc == 0)
            rc = check_skipped(p, &tok);
    }
    return rc;
}

static int parse_u64(struct parser *p, const struct qf_json_token *tok, uint64_t *out)
{
    if (qf_json_token_u64(&p->scan, tok, out) != 0)
        return refuse(p, "shape and data_offsets must be whole numbers below 2^64");
    return 0;
}

static int parse_dtype(struct parser *p, struct qf_json_token tok,
                       struct qf_raw_tensor *t)
{
    size_t off;
    int rc = 0;
    bool variant = tok.kind == QF_JSON_OBJECT;
    if (variant)
        rc = next(p, &tok);
    if (rc != 0)
        return rc;
    if (tok.kind != QF_JSON_STRING && tok.kind != QF_JSON_KEY)
        return refuse(p, "dtype is not a string");
    p->scratch.size = 0;
    rc = add_string(p, &tok, &p->scratch, &off);
    if (rc != 0)
        return rc;
    t->dtype = qf_dtype_from_name(p->scratch.data, p->scratch.size - 1);
    if (t->dtype == QF_DTYPE_NONE)
        return qf_err_set(p->err, -EBADMSG, "header: tensor '%s': unknown dtype '%s'",
                          qf_printable(p->tensor).text,
                          qf_printable(p->scratch.data).text);
    if (!variant)
        return 0;
    rc = next(p, &tok);
    if (rc == 0 && tok.kind == QF_JSON_NULL)
        rc = next(p, &tok);
    if (rc == 0 && tok.kind != QF_JSON_OBJECT_END)
        rc = refuse(p, "dtype is not a string");
    return rc;
}

static int parse_shape(struct parser *p, struct qf_json_token tok,
                       struct qf_raw_tensor *t)
{
    if (tok.kind != QF_JSON_ARRAY)
        return refuse(p, "shape is not a list");
    t->shape = (uint32_t)(p->out->dims.size / sizeof(uint64_t));
    for (;;) {
        uint64_t dim = 0;
        int rc = next(p, &tok);
        if (rc != 0)
            return rc;
        if (tok.kind == QF_JSON_ARRAY_END)
            return p->out->dims.failed ? -ENOMEM : 0;
        rc = parse_u64(p, &tok, &dim);
        if (rc != 0)
            return rc;
        if (t->rank == QF_TENSOR_RANK_MAX)
            return qf_err_set(p->err, -EBADMSG,
                              "header: tensor '%s': more than %d dimensions",
                              qf_printable(p->tensor).text, QF_TENSOR_RANK_MAX);
        qf_buf_append(&p->out->dims, &dim, sizeof dim);
        t->rank++;
    }
}

static int parse_offsets(struct parser *p, struct qf_json_token tok,
                         struct qf_raw_tensor *t)
{
    uint64_t *const values[2] = {&t->begin, &t->end};
    if (tok.kind != QF_JSON_ARRAY)
        return refuse(p, "data_offsets is not a list");
    for (size_t i = 0;; i++) {
        int rc = next(p, &tok);
        if (rc != 0)
            return rc;
        if (tok.kind == QF_JSON_ARRAY_END && i == 2)
            return 0;
        if (tok.kind == QF_JSON_ARRAY_END || i == 2)
            return refuse(p, "data_offsets is not a list of two numbers");
        rc = parse_u64(p, &tok, values[i]);
        if (rc != 0)
            return rc;
    }
}

enum { FIELD_DTYPE, FIELD_SHAPE, FIELD_OFFSETS, FIELD_COUNT };

static const char *const field_names[FIELD_COUNT] = {"dtype", "shape", "data_offsets"};

static int parse_field(struct parser *p, size_t field, struct qf_json_token tok,
                       struct qf_raw_tensor *t)
{
    static int (*const parse[FIELD_COUNT])(struct parser *, struct qf_json_token,
                                           struct qf_raw_tensor *) = {parse_dtype,
                                                                      parse_shape,
                                                                      parse_offsets};
    return parse[field](p, tok, t);
}

static int parse_tensor_object(struct parser *p, struct qf_raw_tensor *t)
{
    bool seen[FIELD_COUNT] = {false};
    struct qf_json_token tok;
    for (;;) {
        int rc = next(p, &tok);
        if (rc != 0)
            return rc;
        if (tok.kind == QF_JSON_OBJECT_END)
            break;
        size_t field = 0;
        while (field < FIELD_COUNT &&
               !qf_json_token_is(&p->scan, &tok, field_names[field]))
            field++;
        rc = check_skipped(p, &tok);
        if (rc == 0)
            rc = next(p, &tok);
        if (rc != 0)
            return rc;
        if (field == FIELD_COUNT)
            rc = skip_value(p, tok);
        else if (seen[field])
            rc = refuse(p, "a field is given twice");
        else
            rc = parse_field(p, field, tok, t);
        if (rc != 0)
            return rc;
        if (field < FIELD_COUNT)
            seen[field] = true;
    }
    for (size_t i = 0; i < FIELD_COUNT; i++)
        if (!seen[i])
            return qf_err_set(p->err, -EBADMSG, "header: tensor '%s': no %s",
                              qf_printable(p->tensor).text, field_names[i]);
    return 0;
}

static int parse_tensor_list(struct parser *p, struct qf_raw_tensor *t)
{
    struct qf_json_token tok;
    for (size_t i = 0;; i++) {
        int rc = next(p, &tok);
        if (rc != 0)
            return rc;
        if (tok.kind == QF_JSON_ARRAY_END && i == FIELD_COUNT)
            return 0;
        if (tok.kind == QF_JSON_ARRAY_END || i == FIELD_COUNT)
            return refuse(p, "is not a list of dtype, shape and data_offsets");
        rc = parse_field(p, i, tok, t);
        if (rc != 0)
            return rc;
    }
}

static int parse_tensor(struct parser *p, const struct qf_json_token *key)
{
    struct qf_raw_tensor t = {.dtype = QF_DTYPE_NONE};
    struct qf_json_token tok;
    size_t name;
    int rc = add_string(p, key, &p->out->strings, &name);
    if (rc != 0)
        return rc;
    t.name = (uint32_t)name;
    p->tensor = p->out->strings.data + name;
    if (has_nul(&p->out->strings, name))
        return refuse(p, "U+0000 in the name is not supported");
    rc = next(p, &tok);
    if (rc != 0)
        return rc;
    if (tok.kind == QF_JSON_OBJECT)
        rc = parse_tensor_object(p, &t);
    else if (tok.kind == QF_JSON_ARRAY)
        rc = parse_tensor_list(p, &t);
    else
        rc = refuse(p, "is not an object");
    if (rc != 0)
        return rc;
    p->tensor = NULL;
    qf_buf_append(&p->out->tensors, &t, sizeof t);
    return p->out->tensors.failed ? -ENOMEM : 0;
}

static int parse_metadata(struct parser *p)
{
    struct qf_json_token tok;
    int rc = next(p, &tok);
    if (rc != 0 || tok.kind == QF_JSON_NULL)
        return rc;
    if (tok.kind != QF_JSON_OBJECT)
        return refuse(p, "__metadata__ is not an object");
    for (;;) {
        size_t key, value;
        rc = next(p, &tok);
        if (rc != 0 || tok.kind == QF_JSON_OBJECT_END)
            return rc;
        rc = add_string(p, &tok, &p->out->strings, &key);
        if (rc == 0 && has_nul(&p->out->strings, key))
            rc = refuse(p, "__metadata__: U+0000 is not supported");
        if (rc == 0)
            rc = next(p, &tok);
        if (rc != 0)
            return rc;
        if (tok.kind != QF_JSON_STRING)
            return refuse(p, "__metadata__: a value is not a string");
        rc = add_string(p, &tok, &p->out->strings, &value);
        if (rc == 0 && has_nul(&p->out->strings, value))
            rc = refuse(p, "__metadata__: U+0000 is not supported");
        if (rc != 0)
            return rc;
        struct qf_raw_pair pair = {(uint32_t)key, (uint32_t)value};
        qf_buf_append(&p->out->pairs, &pair, sizeof pair);
        if (p->out->pairs.failed)
            return -ENOMEM;
    }
}

static int parse_header(struct parser *p)
{
    bool has_metadata = false;
    struct qf_json_token tok;
    int rc = next(p, &tok);
    if (rc != 0)
        return rc;
    if (tok.kind != QF_JSON_OBJECT)
        return refuse(p, "is not a JSON object");
    for (;;) {
        rc = next(p, &tok);
        if (rc != 0)
            return rc;
        if (tok.kind == QF_JSON_OBJECT_END)
            return next(p, &tok);
        if (!qf_json_token_is(&p->scan, &tok, "__metadata__")) {
            rc = parse_tensor(p, &tok);
        } else if (has_metadata) {
            rc = refuse(p, "__metadata__ is given twice");
        } else {
            has_metadata = true;
            rc = parse_metadata(p);
        }
        if (rc != 0)
            return rc;
    }
}

int qf_shard_text_parse(const char *text, size_t size, struct qf_shard_text *out,
                        struct qf_err *err)
{
    struct parser p = {.out = out, .err = err};
    qf_json_scan_init(&p.scan, text, size, false);
    int rc = parse_header(&p);
    if (rc == -ENOMEM)
        qf_err_set(err, rc, "header: out of memory");
    qf_buf_fini(&p.scratch);
    return rc;
}

void qf_shard_text_fini(struct qf_shard_text *tables)
{
    qf_buf_fini(&tables->strings);
    qf_buf_fini(&tables->dims);
    qf_buf_fini(&tables->tensors);
    qf_buf_fini(&tables->pairs);
}
