/* SPDX-License-Identifier: Apache-2.0 */
/* Text is spliced, never printed anew: a printer would lose NaN, 1.0, integers past
 * 2^53 and the author's layout. Each change scans its object twice, first to learn
 * which of several equal names is the last, then to copy everything but what changes;
 * so a change is linear however often a name repeats. */
#include "ckpt/config.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

/* One member of an object; offsets in the text. */
struct member {
    struct qf_json_token key;
    struct qf_json_token value; /* its first token */
    size_t lead;                /* end of the comma or brace before it */
    size_t end;                 /* of the value */
};

/* Walks the members of one object. */
struct walk {
    struct qf_json_scan scan;
    size_t lead;
};

/* What the first scan learns. */
struct found {
    size_t name_count;
    size_t alias_count; /* of instead_of */
    size_t member_count;
    struct member last; /* when member_count > 0 */
    size_t open;        /* past the opening brace */
    size_t close;       /* of the closing brace */
};

/* What the second scan copies. */
struct edit {
    struct qf_buf *out;
    const char *text;
    size_t copied; /* text before this is copied or dropped */
};

static int describe(const struct qf_json_scan *scan, struct qf_err *err)
{
    return qf_err_set(err, -EBADMSG, "not JSON: byte %zu: %s", scan->problem_pos,
                      scan->problem);
}

/* 1 with the next member, 0 at the end of the object (m->key is the brace). */
static int next_member(struct walk *w, struct member *m)
{
    m->lead = w->lead;
    int rc = qf_json_next(&w->scan, &m->key);
    if (rc != 0 || m->key.kind == QF_JSON_OBJECT_END)
        return rc;
    /* The scanner has consumed the comma; the lead begins behind it. */
    const char *comma = memchr(w->scan.text + m->lead, ',', m->key.start - m->lead);
    if (comma != NULL)
        m->lead = (size_t)(comma - w->scan.text) + 1;
    rc = qf_json_next(&w->scan, &m->value);
    if (rc == 0)
        rc = qf_json_skip(&w->scan, &m->value, &m->end);
    w->lead = m->end;
    return rc == 0 ? 1 : rc;
}

static int enter_top(struct walk *w, const char *text, size_t size, struct qf_err *err)
{
    struct qf_json_token tok;
    qf_json_scan_init(&w->scan, text, size, true);
    int rc = qf_json_next(&w->scan, &tok);
    if (rc != 0)
        return describe(&w->scan, err);
    if (tok.kind != QF_JSON_OBJECT)
        return qf_err_set(err, -EBADMSG, "not a JSON object");
    w->lead = tok.end;
    return 0;
}

/* Moves w from the top level into the object that `object` names (the last one of that
 * name), as if that were a text of its own. */
static int enter_object(struct walk *w, const char *object, struct qf_err *err)
{
    struct qf_json_token value = {.kind = QF_JSON_NULL};
    struct member m;
    int rc;
    while ((rc = next_member(w, &m)) == 1)
        if (qf_json_token_is(&w->scan, &m.key, object))
            value = m.value;
    if (rc != 0)
        return describe(&w->scan, err);
    if (value.kind != QF_JSON_OBJECT)
        return qf_err_set(err, -EBADMSG, "'%s' is not an object", object);
    qf_json_scan_init(&w->scan, w->scan.text, w->scan.size, true);
    w->scan.pos = value.start;
    w->lead = value.end;
    return qf_json_next(&w->scan, &value);
}

static int enter(struct walk *w, const char *text, size_t size, const char *object,
                 struct qf_err *err)
{
    int rc = enter_top(w, text, size, err);
    return rc == 0 && object != NULL ? enter_object(w, object, err) : rc;
}

static bool is_alias(const struct walk *w, const struct member *m,
                     const struct qf_splice *splice)
{
    return splice->instead_of != NULL &&
           qf_json_token_is(&w->scan, &m->key, splice->instead_of);
}

static int survey(struct walk w, const struct qf_splice *splice, struct found *f,
                  struct qf_err *err)
{
    struct member m;
    int rc;
    *f = (struct found){.open = w.lead};
    while ((rc = next_member(&w, &m)) == 1) {
        f->name_count += qf_json_token_is(&w.scan, &m.key, splice->name);
        f->alias_count += is_alias(&w, &m, splice);
        f->member_count++;
        f->last = m;
    }
    if (rc != 0)
        return describe(&w.scan, err);
    f->close = m.key.start;
    return 0;
}

static void copy_until(struct edit *e, size_t pos)
{
    assert(pos >= e->copied);
    qf_buf_append(e->out, e->text + e->copied, pos - e->copied);
    e->copied = pos;
}

static void replace(struct edit *e, size_t start, size_t end, const char *with)
{
    copy_until(e, start);
    qf_buf_append_str(e->out, with);
    e->copied = end;
}

static void append_name(struct qf_buf *out, const char *name)
{
    qf_buf_append_json(out, name, strlen(name));
}

/* Replaces or removes members. Of a run of removed members, what lies between it and
 * the next member that stays goes with it, or, at the end of the object, what lies
 * between it and the member before. */
static int rewrite(struct walk w, const struct qf_splice *splice, const struct found *f,
                   struct edit *e)
{
    size_t names = 0, aliases = 0;
    size_t kept_end = 0; /* of the last member that stays; 0: none yet */
    size_t run_start = 0, run_end = 0;
    struct member m;
    int rc;
    while ((rc = next_member(&w, &m)) == 1) {
        bool name = qf_json_token_is(&w.scan, &m.key, splice->name);
        bool alias = !name && is_alias(&w, &m, splice);
        names += name;
        aliases += alias;
        bool renamed = alias && splice->value != NULL && f->name_count == 0 &&
                       aliases == f->alias_count;
        bool removed = (name && splice->value == NULL) || (alias && !renamed);
        if (removed) {
            run_start = run_end == 0 ? m.key.start : run_start;
            run_end = m.end;
            continue;
        }
        if (run_end != 0)
            replace(e, run_start, m.key.start, "");
        run_end = 0;
        kept_end = m.end;
        if (renamed) {
            copy_until(e, m.key.start);
            append_name(e->out, splice->name);
            e->copied = m.key.end;
        }
        if (renamed || (name && names == f->name_count))
            replace(e, m.value.start, m.end, splice->value);
    }
    if (run_end != 0)
        replace(e, kept_end != 0 ? kept_end : run_start, run_end, "");
    return rc;
}

/* Blanks for a new line in front of a member, from those in front of another: from the
 * last line break on. Empty when there is no line break. */
static void last_line(const char *text, size_t *start, size_t end)
{
    size_t at = end;
    while (at > *start && text[at - 1] != '\n')
        at--;
    if (at == *start)
        *start = end;
    else
        *start = at >= *start + 2 && text[at - 2] == '\r' ? at - 2 : at - 1;
}

static void insert_first(struct edit *e, const struct qf_splice *splice,
                         const struct found *f)
{
    size_t line = f->open;
    last_line(e->text, &line, f->close);
    copy_until(e, f->open);
    if (line < f->close) {
        qf_buf_append(e->out, e->text + line, f->close - line);
        qf_buf_append_str(e->out, "  ");
    }
    append_name(e->out, splice->name);
    qf_buf_append_str(e->out, ": ");
    qf_buf_append_str(e->out, splice->value);
}

static void insert_last(struct edit *e, const struct qf_splice *splice,
                        const struct found *f)
{
    const struct member *last = &f->last;
    size_t line = last->lead;
    last_line(e->text, &line, last->key.start);
    copy_until(e, last->end);
    qf_buf_append_str(e->out, ",");
    if (line < last->key.start)
        qf_buf_append(e->out, e->text + line, last->key.start - line);
    else if (f->member_count > 1)
        qf_buf_append(e->out, e->text + last->lead, last->key.start - last->lead);
    else
        qf_buf_append_str(e->out, " ");
    append_name(e->out, splice->name);
    qf_buf_append(e->out, e->text + last->key.end, last->value.start - last->key.end);
    qf_buf_append_str(e->out, splice->value);
}

static int splice_one(const char *text, size_t size, const struct qf_splice *splice,
                      struct qf_buf *out, struct qf_err *err)
{
    struct edit e = {.out = out, .text = text};
    struct walk w;
    struct found f;
    int rc = enter(&w, text, size, splice->object, err);
    if (rc == 0)
        rc = survey(w, splice, &f, err);
    if (rc != 0)
        return rc;
    if (f.name_count > 0 || f.alias_count > 0)
        rc = rewrite(w, splice, &f, &e);
    else if (splice->value != NULL && f.member_count == 0)
        insert_first(&e, splice, &f);
    else if (splice->value != NULL)
        insert_last(&e, splice, &f);
    copy_until(&e, size);
    return rc;
}

/* The whole text, so that splicing may stop at the end of its object. */
static int check_text(const char *text, size_t size, struct qf_err *err)
{
    struct walk w;
    struct qf_json_token tok = {0};
    int rc = enter_top(&w, text, size, err);
    if (rc != 0)
        return rc;
    do {
        rc = qf_json_next(&w.scan, &tok);
    } while (rc == 0 && tok.kind != QF_JSON_END);
    return rc == 0 ? 0 : describe(&w.scan, err);
}

int qf_config_splice(const char *text, size_t size, const struct qf_splice *splices,
                     size_t count, struct qf_buf *out, struct qf_err *err)
{
    struct qf_buf now = {0}; /* the text so far */
    int rc = check_text(text, size, err);
    if (rc != 0)
        return rc;
    qf_buf_append(&now, text, size);
    for (size_t i = 0; i < count && !now.failed; i++) {
        struct qf_buf next = {0};
        rc = splice_one(now.data, now.size, &splices[i], &next, err);
        qf_buf_fini(&now);
        now = next;
        if (rc != 0)
            goto out;
    }
    if (!now.failed)
        qf_buf_append(out, now.data, now.size);
    if (now.failed || out->failed)
        rc = qf_err_set(err, -ENOMEM, "out of memory");
out:
    qf_buf_fini(&now);
    return rc;
}
