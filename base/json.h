/* SPDX-License-Identifier: Apache-2.0 */
/* JSON, twice.
 *
 * The scanner walks a text token by token and knows where each one stands. It is strict
 * (RFC 8259, checked UTF-8, depth at most QF_JSON_DEPTH_MAX) because the safetensors
 * library is, keeps 64-bit integers exact, and its offsets allow to change a
 * config.json by splicing text. It allocates nothing.
 *
 * The document (cJSON inside) is for reading values out of configs. It is as lenient as
 * Python's json module: NaN, Infinity and -Infinity are taken (as null), the last of
 * several equal names wins. In its strings a lone surrogate and U+0000 read as U+FFFD.
 */
#ifndef QF_BASE_JSON_H
#define QF_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- scanner ---- */

enum qf_json_kind {
    QF_JSON_OBJECT, /* the opening brace; its members follow as KEY and value */
    QF_JSON_OBJECT_END,
    QF_JSON_ARRAY,
    QF_JSON_ARRAY_END,
    QF_JSON_KEY,    /* a string; the colon after it is consumed */
    QF_JSON_STRING, /* text includes the quotes */
    QF_JSON_NUMBER,
    QF_JSON_TRUE,
    QF_JSON_FALSE,
    QF_JSON_NULL,
    QF_JSON_NONFINITE, /* NaN, Infinity, -Infinity; only when allowed */
    QF_JSON_END        /* after the one top-level value and trailing blanks */
};

struct qf_json_token {
    enum qf_json_kind kind;
    size_t start; /* offset of the token's first byte in the text */
    size_t end;   /* offset past its last byte */
};

struct qf_json_scan {
    const char *text; /* borrowed */
    size_t size;
    size_t pos;
    bool allow_nonfinite;
    unsigned depth;
    const char *problem; /* after -EBADMSG: what is wrong … */
    size_t problem_pos;  /* … and where (offset in the text) */
    unsigned state;      /* private */
    uint64_t objects[(QF_JSON_DEPTH_MAX + 63) / 64]; /* private: object or array */
};

void qf_json_scan_init(struct qf_json_scan *scan, const char *text, size_t size,
                       bool allow_nonfinite);
/* The next token. -EBADMSG for malformed text (see problem); after an error or END the
 * scanner must not be advanced. */
int qf_json_next(struct qf_json_scan *scan, struct qf_json_token *tok) QF_MUST_CHECK;
/* Advances past the value that `first` begins (which qf_json_next just returned);
 * *end becomes the offset past its last byte. */
int qf_json_skip(struct qf_json_scan *scan, const struct qf_json_token *first,
                 size_t *end) QF_MUST_CHECK;
/* Appends the characters that a STRING or KEY stands for, escapes resolved.
 * A lone surrogate escape is -EBADMSG, as for serde_json. */
int qf_json_unescape(const struct qf_json_scan *scan, const struct qf_json_token *tok,
                     struct qf_buf *out) QF_MUST_CHECK;
/* Whether a STRING or KEY stands for exactly `text`. */
bool qf_json_token_is(const struct qf_json_scan *scan, const struct qf_json_token *tok,
                      const char *text);
/* The exact value of a NUMBER that is an unsigned integer (no sign, point or exponent);
 * -EBADMSG else, -EOVERFLOW past 2^64 - 1. */
int qf_json_token_u64(const struct qf_json_scan *scan, const struct qf_json_token *tok,
                      uint64_t *out) QF_MUST_CHECK;

/* ---- document ---- */

typedef struct qf_json qf_json; /* a value in a document, owned by its root */

/* Returns the root (free with qf_json_free) or NULL with err written and errno EBADMSG
 * or ENOMEM. */
qf_json *qf_json_parse(const char *text, size_t size, struct qf_err *err);
void qf_json_free(qf_json *root);

/* Every accessor takes NULL and a value of another kind and returns "nothing". */
const qf_json *qf_json_get(const qf_json *object, const char *name);
const char *qf_json_string(const qf_json *value); /* NULL if not a string */
bool qf_json_is_object(const qf_json *value);
bool qf_json_is_array(const qf_json *value);
bool qf_json_is_true(const qf_json *value);
bool qf_json_is_false(const qf_json *value);
bool qf_json_is_null(const qf_json *value); /* null or absent */
bool qf_json_is_number(const qf_json *value);
double qf_json_number(const qf_json *value); /* 0 if not a number */
/* Members of an object or elements of an array, in the order of the text. */
const qf_json *qf_json_first(const qf_json *container);
const qf_json *qf_json_after(const qf_json *value);
const char *qf_json_name(const qf_json *member);

#ifdef __cplusplus
}
#endif
#endif
