/* SPDX-License-Identifier: Apache-2.0 */
/* The scanner is a state machine with one bit of memory per level of nesting (object or
 * array) instead of recursion: a header of 100 MB of '[' costs neither stack nor heap.
 * It takes what serde_json takes, because the safetensors library parses with that; the
 * two things serde_json checks only where it looks at a value, lone surrogates and the
 * range of numbers, are left to the caller (qf_json_unescape, ckpt/shard.c). */
#include "base/json.h"

#include <assert.h>
#include <string.h>

#include "base/utf8.h"

enum {
    WANT_VALUE,
    WANT_VALUE_OR_END, /* after '[' */
    WANT_KEY,          /* after ',' in an object */
    WANT_KEY_OR_END,   /* after '{' */
    WANT_COMMA_OR_END, /* after a value inside a container */
    WANT_NOTHING       /* after the top-level value */
};

void qf_json_scan_init(struct qf_json_scan *scan, const char *text, size_t size,
                       bool allow_nonfinite)
{
    *scan = (struct qf_json_scan){.text = text,
                                  .size = size,
                                  .allow_nonfinite = allow_nonfinite,
                                  .state = WANT_VALUE};
}

static int fail(struct qf_json_scan *scan, size_t pos, const char *problem)
{
    scan->problem = problem;
    scan->problem_pos = pos;
    return -EBADMSG;
}

static void skip_blanks(struct qf_json_scan *scan)
{
    while (scan->pos < scan->size) {
        char c = scan->text[scan->pos];
        if (c != ' ' && c != '\n' && c != '\t' && c != '\r')
            break;
        scan->pos++;
    }
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int hex_value(char c)
{
    if (is_digit(c))
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* Size of the escape at p (which is a backslash), 0 if it is malformed. */
static size_t escape_size(const char *p, size_t left)
{
    if (left < 2)
        return 0;
    if (p[1] != 'u')
        return p[1] != '\0' && strchr("\"\\/bfnrt", p[1]) != NULL ? 2 : 0;
    if (left < 6)
        return 0;
    for (size_t i = 2; i < 6; i++)
        if (hex_value(p[i]) < 0)
            return 0;
    return 6;
}

/* From the opening quote at scan->pos to past the closing one. */
static int scan_string(struct qf_json_scan *scan)
{
    const char *text = scan->text;
    size_t pos = scan->pos + 1;
    while (pos < scan->size) {
        unsigned char c = (unsigned char)text[pos];
        if (c == '"') {
            scan->pos = pos + 1;
            return 0;
        }
        size_t n = 1;
        if (c < 0x20)
            return fail(scan, pos, "control character in a string");
        if (c == '\\') {
            n = escape_size(text + pos, scan->size - pos);
            if (n == 0)
                return fail(scan, pos, "malformed escape in a string");
        } else if (c >= 0x80) {
            n = qf_utf8_size(text + pos, scan->size - pos);
            if (n == 0)
                return fail(scan, pos, "invalid UTF-8");
        }
        pos += n;
    }
    return fail(scan, scan->pos, "string without end");
}

static size_t skip_digits(const struct qf_json_scan *scan, size_t pos)
{
    while (pos < scan->size && is_digit(scan->text[pos]))
        pos++;
    return pos;
}

static int scan_number(struct qf_json_scan *scan)
{
    const char *text = scan->text;
    size_t pos = scan->pos;
    if (text[pos] == '-')
        pos++;
    size_t after = skip_digits(scan, pos);
    if (after == pos || (text[pos] == '0' && after > pos + 1))
        return fail(scan, scan->pos, "malformed number");
    pos = after;
    if (pos < scan->size && text[pos] == '.') {
        after = skip_digits(scan, pos + 1);
        if (after == pos + 1)
            return fail(scan, scan->pos, "malformed number");
        pos = after;
    }
    if (pos < scan->size && (text[pos] == 'e' || text[pos] == 'E')) {
        pos++;
        if (pos < scan->size && (text[pos] == '+' || text[pos] == '-'))
            pos++;
        after = skip_digits(scan, pos);
        if (after == pos)
            return fail(scan, scan->pos, "malformed number");
        pos = after;
    }
    scan->pos = pos;
    return 0;
}

static bool take_word(struct qf_json_scan *scan, const char *word)
{
    size_t n = strlen(word);
    if (scan->size - scan->pos < n || memcmp(scan->text + scan->pos, word, n) != 0)
        return false;
    scan->pos += n;
    return true;
}

static int scan_word(struct qf_json_scan *scan, enum qf_json_kind *kind)
{
    static const struct {
        const char *word;
        enum qf_json_kind kind;
    } words[] = {{"true", QF_JSON_TRUE},          {"false", QF_JSON_FALSE},
                 {"null", QF_JSON_NULL},          {"NaN", QF_JSON_NONFINITE},
                 {"Infinity", QF_JSON_NONFINITE}, {"-Infinity", QF_JSON_NONFINITE}};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (words[i].kind == QF_JSON_NONFINITE && !scan->allow_nonfinite)
            continue;
        if (take_word(scan, words[i].word)) {
            *kind = words[i].kind;
            return 0;
        }
    }
    if (scan->pos == 0 && take_word(scan, "\xef\xbb\xbf"))
        return fail(scan, 0, "begins with a byte order mark");
    return fail(scan, scan->pos, "expected a value");
}

static bool in_object(const struct qf_json_scan *scan)
{
    unsigned level = scan->depth - 1;
    return (scan->objects[level / 64] >> (level % 64) & 1) != 0;
}

static int enter(struct qf_json_scan *scan, bool object)
{
    if (scan->depth >= QF_JSON_DEPTH_MAX)
        return fail(scan, scan->pos, "nested too deeply");
    unsigned level = scan->depth++;
    uint64_t bit = UINT64_C(1) << (level % 64);
    if (object)
        scan->objects[level / 64] |= bit;
    else
        scan->objects[level / 64] &= ~bit;
    scan->pos++;
    scan->state = object ? WANT_KEY_OR_END : WANT_VALUE_OR_END;
    return 0;
}

static void leave(struct qf_json_scan *scan)
{
    scan->pos++;
    scan->depth--;
    scan->state = scan->depth == 0 ? WANT_NOTHING : WANT_COMMA_OR_END;
}

static int scan_value(struct qf_json_scan *scan, enum qf_json_kind *kind)
{
    char c = scan->text[scan->pos];
    int rc;
    if (c == '{' || c == '[') {
        *kind = c == '{' ? QF_JSON_OBJECT : QF_JSON_ARRAY;
        return enter(scan, c == '{');
    }
    if (c == '"') {
        *kind = QF_JSON_STRING;
        rc = scan_string(scan);
    } else if (is_digit(c) || (c == '-' && !(scan->size - scan->pos > 1 &&
                                             scan->text[scan->pos + 1] == 'I'))) {
        *kind = QF_JSON_NUMBER;
        rc = scan_number(scan);
    } else {
        rc = scan_word(scan, kind);
    }
    if (rc == 0)
        scan->state = scan->depth == 0 ? WANT_NOTHING : WANT_COMMA_OR_END;
    return rc;
}

static int scan_key(struct qf_json_scan *scan, struct qf_json_token *tok)
{
    if (scan->text[scan->pos] != '"')
        return fail(scan, scan->pos, "expected a member name in quotes");
    int rc = scan_string(scan);
    if (rc != 0)
        return rc;
    tok->kind = QF_JSON_KEY;
    tok->end = scan->pos;
    skip_blanks(scan);
    if (scan->pos == scan->size || scan->text[scan->pos] != ':')
        return fail(scan, scan->pos, "expected ':'");
    scan->pos++;
    scan->state = WANT_VALUE;
    return 0;
}

/* At a place where the container may end: 1 if it does, else 0 with the comma, where
 * there must be one, consumed. */
static int end_or_comma(struct qf_json_scan *scan, enum qf_json_kind *kind)
{
    bool object = in_object(scan);
    char c = scan->text[scan->pos];
    if (c == (object ? '}' : ']')) {
        *kind = object ? QF_JSON_OBJECT_END : QF_JSON_ARRAY_END;
        leave(scan);
        return 1;
    }
    if (scan->state == WANT_COMMA_OR_END) {
        if (c != ',')
            return fail(scan, scan->pos,
                        object ? "expected ',' or '}'" : "expected ',' or ']'");
        scan->pos++;
        skip_blanks(scan);
    }
    scan->state = object ? WANT_KEY : WANT_VALUE;
    return 0;
}

int qf_json_next(struct qf_json_scan *scan, struct qf_json_token *tok)
{
    assert(scan->problem == NULL);
    skip_blanks(scan);
    if (scan->state == WANT_NOTHING) {
        if (scan->pos < scan->size)
            return fail(scan, scan->pos, "something follows the end of the JSON text");
        *tok = (struct qf_json_token){QF_JSON_END, scan->pos, scan->pos};
        return 0;
    }
    tok->start = scan->pos;
    if (scan->pos < scan->size &&
        (scan->state == WANT_VALUE_OR_END || scan->state == WANT_KEY_OR_END ||
         scan->state == WANT_COMMA_OR_END)) {
        int rc = end_or_comma(scan, &tok->kind);
        tok->end = scan->pos;
        if (rc != 0)
            return rc < 0 ? rc : 0;
        tok->start = scan->pos;
    }
    if (scan->pos == scan->size)
        return fail(scan, scan->pos, "the JSON text ends too early");
    if (scan->state == WANT_KEY)
        return scan_key(scan, tok);
    int rc = scan_value(scan, &tok->kind);
    tok->end = scan->pos;
    return rc;
}

int qf_json_skip(struct qf_json_scan *scan, const struct qf_json_token *first,
                 size_t *end)
{
    *end = first->end;
    if (first->kind != QF_JSON_OBJECT && first->kind != QF_JSON_ARRAY)
        return 0;
    unsigned depth = scan->depth;
    struct qf_json_token tok;
    while (scan->depth >= depth) {
        int rc = qf_json_next(scan, &tok);
        if (rc != 0)
            return rc;
        *end = tok.end;
    }
    return 0;
}

static unsigned hex4(const char *p)
{
    unsigned v = 0;
    for (int i = 0; i < 4; i++)
        v = v << 4 | (unsigned)hex_value(p[i]);
    return v;
}

static size_t encode_utf8(unsigned c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = size - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((size == 2 ? 0xc0 : size == 3 ? 0xe0 : 0xf0) | c);
    return size;
}

/* The character of the well-formed escape at p. Returns the escape's size, a pair of
 * surrogates being one; 0 for a lone surrogate. */
static size_t decode_escape(const char *p, const char *end, char out[4],
                            size_t *out_size)
{
    static const char letters[] = "bfnrt", values[] = "\b\f\n\r\t";
    if (p[1] != 'u') {
        const char *at = strchr(letters, p[1]);
        out[0] = at != NULL ? values[at - letters] : p[1];
        *out_size = 1;
        return 2;
    }
    unsigned c = hex4(p + 2);
    size_t size = 6;
    if (c >= 0xd800 && c <= 0xdfff) {
        if (c > 0xdbff || end - p < 12 || p[6] != '\\' || p[7] != 'u')
            return 0;
        unsigned low = hex4(p + 8);
        if (low < 0xdc00 || low > 0xdfff)
            return 0;
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        size = 12;
    }
    *out_size = encode_utf8(c, out);
    return size;
}

int qf_json_unescape(const struct qf_json_scan *scan, const struct qf_json_token *tok,
                     struct qf_buf *out)
{
    assert(tok->kind == QF_JSON_STRING || tok->kind == QF_JSON_KEY);
    const char *p = scan->text + tok->start + 1;
    const char *end = scan->text + tok->end - 1;
    while (p < end) {
        const char *escape = memchr(p, '\\', (size_t)(end - p));
        const char *plain_end = escape != NULL ? escape : end;
        qf_buf_append(out, p, (size_t)(plain_end - p));
        p = plain_end;
        if (escape == NULL)
            break;
        char c[4];
        size_t c_size;
        size_t n = decode_escape(p, end, c, &c_size);
        if (n == 0)
            return -EBADMSG;
        qf_buf_append(out, c, c_size);
        p += n;
    }
    return out->failed ? -ENOMEM : 0;
}

bool qf_json_token_is(const struct qf_json_scan *scan, const struct qf_json_token *tok,
                      const char *text)
{
    assert(tok->kind == QF_JSON_STRING || tok->kind == QF_JSON_KEY);
    const char *p = scan->text + tok->start + 1;
    const char *end = scan->text + tok->end - 1;
    size_t left = strlen(text);
    while (p < end) {
        char c[4] = {*p};
        size_t c_size = 1;
        size_t n = *p != '\\' ? 1 : decode_escape(p, end, c, &c_size);
        if (n == 0 || c_size > left || memcmp(c, text, c_size) != 0)
            return false;
        p += n;
        text += c_size;
        left -= c_size;
    }
    return left == 0;
}

int qf_json_token_u64(const struct qf_json_scan *scan, const struct qf_json_token *tok,
                      uint64_t *out)
{
    if (tok->kind != QF_JSON_NUMBER)
        return -EBADMSG;
    uint64_t v = 0;
    bool overflow = false;
    for (size_t i = tok->start; i < tok->end; i++) {
        char c = scan->text[i];
        if (!is_digit(c))
            return -EBADMSG;
        overflow |= __builtin_mul_overflow(v, 10u, &v);
        overflow |= __builtin_add_overflow(v, (unsigned)(c - '0'), &v);
    }
    if (overflow)
        return -EOVERFLOW;
    *out = v;
    return 0;
}
