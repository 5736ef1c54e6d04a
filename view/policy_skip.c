/* SPDX-License-Identifier: Apache-2.0 */
/* Names of modules and the three rules by which loaders match skip entries.
 *
 * transformers 5 takes an entry for a regular expression and matches it from the start
 * of the name up to a boundary, or takes it for a suffix. Entries are ours: literals
 * whose dots are not escaped, "X.*" from the table and ".*\.experts". So a matcher for
 * '.', '.*' and '\c' is all of it; names of a model that hold other characters with a
 * meaning never become an entry (qf_skip_is_plain). As in Python, '.' is one code
 * point, but no newline, and '$' also stands before a newline at the very end. */
#include <string.h>

#include "view/policy_internal.h"

bool qf_path_is(struct qf_path path, const char *text)
{
    return path.size == strlen(text) && memcmp(path.at, text, path.size) == 0;
}

bool qf_path_starts(struct qf_path path, const char *text)
{
    size_t n = strlen(text);
    return path.size >= n && memcmp(path.at, text, n) == 0;
}

bool qf_path_ends(struct qf_path path, const char *text)
{
    size_t n = strlen(text);
    return path.size >= n && memcmp(path.at + path.size - n, text, n) == 0;
}

bool qf_path_ends_module(struct qf_path path, const char *name)
{
    size_t n = strlen(name);
    return qf_path_ends(path, name) &&
           (path.size == n || path.at[path.size - n - 1] == '.');
}

struct qf_path qf_path_last(struct qf_path path)
{
    const char *dot = memrchr(path.at, '.', path.size);
    if (dot == NULL)
        return path;
    return (struct qf_path){dot + 1, path.size - (size_t)(dot + 1 - path.at)};
}

bool qf_path_next(struct qf_path path, size_t *pos, struct qf_path *component)
{
    if (*pos > path.size)
        return false;
    const char *start = path.at + *pos;
    const char *dot = memchr(start, '.', path.size - *pos);
    size_t size = dot != NULL ? (size_t)(dot - start) : path.size - *pos;
    *component = (struct qf_path){start, size};
    *pos += size + 1;
    return true;
}

int qf_path_compare(struct qf_path a, struct qf_path b)
{
    int order = memcmp(a.at, b.at, a.size < b.size ? a.size : b.size);
    if (order != 0)
        return order;
    return (a.size > b.size) - (a.size < b.size);
}

bool qf_path_of_weight(const char *name, struct qf_path *out)
{
    *out = (struct qf_path){name, strlen(name)};
    if (!qf_path_ends(*out, QF_WEIGHT_SUFFIX))
        return false;
    out->size -= QF_WEIGHT_SUFFIX_SIZE;
    return true;
}

bool qf_path_glob(struct qf_path path, const char *pattern)
{
    bool suffix = strncmp(pattern, "**.", 3) == 0;
    if (suffix)
        pattern += 3;
    /* Component by component from the end, which serves both kinds. */
    struct qf_path left = {pattern, strlen(pattern)};
    for (;;) {
        struct qf_path want = qf_path_last(left);
        struct qf_path have = qf_path_last(path);
        if (!qf_path_is(want, "*") && qf_path_compare(want, have) != 0)
            return false;
        bool want_done = want.size == left.size;
        bool have_done = have.size == path.size;
        if (want_done)
            return suffix || have_done;
        if (have_done)
            return false;
        left.size -= want.size + 1;
        path.size -= have.size + 1;
    }
}

static bool boundary(struct qf_path path, size_t pos)
{
    if (pos == path.size || path.at[pos] == '.')
        return true;
    if (pos + 1 == path.size && path.at[pos] == '\n')
        return true;
    return pos > 0 && path.at[pos - 1] == '.';
}

/* Behind the code point at pos, or 0 where '.' matches nothing. */
static size_t any_char(struct qf_path path, size_t pos)
{
    if (pos == path.size || path.at[pos] == '\n')
        return 0;
    do
        pos++;
    while (pos < path.size && ((unsigned char)path.at[pos] & 0xc0) == 0x80);
    return pos;
}

/* Behind one element of the pattern at path[pos], or 0; *at moves behind it. */
static size_t one_element(struct qf_path path, size_t pos, const char **at)
{
    char c = *(*at)++;
    if (c == '.')
        return any_char(path, pos);
    if (c == '\\')
        c = *(*at)++;
    return pos < path.size && path.at[pos] == c ? pos + 1 : 0;
}

/* re.match("(?:pattern)(?:(?<=\.)|(?=\.|$))", path). Going back to the last ".*" alone
 * is enough: an earlier one that takes less never helps what stands behind a later. */
static bool match(struct qf_path path, const char *pattern)
{
    const char *star = NULL; /* behind the last ".*" seen … */
    size_t star_pos = 0;     /* … and where what follows it was tried last */
    size_t pos = 0;
    for (;;) {
        if (pattern[0] == '.' && pattern[1] == '*') {
            pattern += 2;
            star = pattern;
            star_pos = pos;
            continue;
        }
        if (*pattern == '\0' && boundary(path, pos))
            return true;
        size_t next = *pattern == '\0' ? 0 : one_element(path, pos, &pattern);
        if (next != 0) {
            pos = next;
            continue;
        }
        star_pos = star != NULL ? any_char(path, star_pos) : 0;
        if (star_pos == 0)
            return false;
        pattern = star;
        pos = star_pos;
    }
}

bool qf_skip_v5(struct qf_path path, const char *entry)
{
    return qf_path_ends(path, entry) || match(path, entry);
}

bool qf_skip_v4(struct qf_path path, const char *entry)
{
    if (qf_path_is(path, entry) || qf_path_is(qf_path_last(path), entry))
        return true;
    size_t n = strlen(entry);
    struct qf_path rest = path;
    const char *hit;
    while ((hit = memmem(rest.at, rest.size, entry, n)) != NULL) {
        size_t behind = (size_t)(hit - path.at) + n;
        if (behind == path.size)
            return false;
        if (path.at[behind] == '.')
            return true;
        rest = (struct qf_path){hit + 1, path.size - (size_t)(hit + 1 - path.at)};
    }
    return false;
}

bool qf_skip_vllm(struct qf_path path, const char *entry)
{
    size_t n = strlen(entry);
    if (qf_path_starts(path, entry) && (path.size == n || path.at[n] == '.'))
        return true;
    struct qf_path component;
    for (size_t pos = 0; qf_path_next(path, &pos, &component);)
        if (qf_path_is(component, entry))
            return true;
    return false;
}

bool qf_skip_is_plain(struct qf_path text)
{
    for (size_t i = 0; i < text.size; i++)
        if (strchr("\\*+?[](){}|^$", text.at[i]) != NULL)
            return false;
    return true;
}

bool qf_skip_hits(const char *entry, const char *module)
{
    struct qf_path path = {module, strlen(module)};
    return qf_skip_v5(path, entry) || qf_skip_v4(path, entry);
}
