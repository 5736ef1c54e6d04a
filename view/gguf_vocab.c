/* SPDX-License-Identifier: Apache-2.0 */
/* A byte-level BPE tokenizer (tokenizer.json) as the pairs of GGUF. Tokens that the
 * model has room for and the tokenizer has not are there as unused ones, because the
 * embedding's rows are counted by tokens. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/printable.h"
#include "view/gguf_llm.h"

enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_CONTROL = 3,
    TOKEN_USER = 4,
    TOKEN_UNUSED = 5
};

struct token {
    const char *text; /* borrowed from the document; NULL: unused */
    enum token_type type;
};

/* Special tokens: what they are called in configs and in GGUF. */
static const char *const specials[][2] = {
    {"bos", "bos"},     {"eos", "eos"}, {"unk", "unknown"}, {"sep", "seperator"},
    {"pad", "padding"}, {"cls", "cls"}, {"mask", "mask"},
};
#define SPECIALS (sizeof specials / sizeof *specials)
enum { BOS, EOS };

struct vocab {
    const struct qf_model *model;
    const struct qf_gguf_llm *llm;
    struct qf_gguf_head *head;
    struct qf_err *err;
    const qf_json *tokenizer; /* tokenizer.json */
    const qf_json *settings;  /* tokenizer_config.json, or NULL */
    struct token *tokens;     /* llm->vocab_size of them */
};

static int refuse(const struct vocab *v, const char *what)
{
    return qf_err_set(v->err, -ENOTSUP, "tokenizer.json: %s", what);
}

/* ---- strings anywhere in a value ---- */

/* What the pre-tokenizer's texts, names included, tell. */
struct seen {
    bool byte_level, split, digits3, digits1, insensitive;
};

static void look_at(const char *text, struct seen *seen)
{
    if (text == NULL)
        return;
    seen->byte_level = seen->byte_level || strstr(text, "ByteLevel") != NULL;
    seen->split = seen->split || strstr(text, "Split") != NULL;
    seen->digits3 = seen->digits3 || strstr(text, "\\p{N}{1,3}") != NULL;
    seen->digits1 = seen->digits1 || strstr(text, "\\p{N}|") != NULL;
    seen->insensitive = seen->insensitive || strstr(text, "(?i:") != NULL;
}

/* As deep as the document, whose depth is limited. */
static void look_through(const qf_json *value, struct seen *seen)
{
    look_at(qf_json_string(value), seen);
    bool named = qf_json_is_object(value);
    for (const qf_json *v = qf_json_first(value); v != NULL; v = qf_json_after(v)) {
        if (named)
            look_at(qf_json_name(v), seen);
        look_through(v, seen);
    }
}

/* llama.cpp knows how to split by a name. */
static const char *pre_name(const struct seen *seen)
{
    if (seen->digits3)
        return "llama-bpe";
    if (seen->digits1 && seen->insensitive)
        return "qwen2";
    return seen->split ? "default" : "gpt-2";
}

/* ---- tokens ---- */

static int set_token(const struct vocab *v, const qf_json *id, const char *text,
                     enum token_type type)
{
    double number = qf_json_number(id);
    if (text == NULL || !qf_json_is_number(id) || number < 0 || number != floor(number))
        return refuse(v, "a token has no text or no number");
    if (number >= (double)v->llm->vocab_size)
        return qf_err_set(v->err, -ENOTSUP,
                          "tokenizer.json: the model has no token %.0f (vocab_size %u)",
                          number, v->llm->vocab_size);
    v->tokens[(size_t)number] = (struct token){text, type};
    return 0;
}

static int read_tokens(const struct vocab *v)
{
    const qf_json *vocab = qf_json_get(qf_json_get(v->tokenizer, "model"), "vocab");
    const qf_json *added = qf_json_get(v->tokenizer, "added_tokens");
    if (!qf_json_is_object(vocab))
        return refuse(v, "there is no vocabulary");
    int rc = 0;
    for (const qf_json *t = qf_json_first(vocab); t != NULL && rc == 0;
         t = qf_json_after(t))
        rc = set_token(v, t, qf_json_name(t), TOKEN_NORMAL);
    for (const qf_json *t = qf_json_first(added); t != NULL && rc == 0;
         t = qf_json_after(t))
        rc = set_token(v, qf_json_get(t, "id"),
                       qf_json_string(qf_json_get(t, "content")),
                       qf_json_is_true(qf_json_get(t, "special")) ? TOKEN_CONTROL
                                                                  : TOKEN_USER);
    return rc;
}

static void add_tokens(const struct vocab *v)
{
    uint32_t count = v->llm->vocab_size;
    qf_gguf_begin_array(v->head, "tokenizer.ggml.tokens", QF_GGUF_STRING, count);
    for (uint32_t i = 0; i < count; i++) {
        char unused[24];
        const char *text = v->tokens[i].text;
        if (text == NULL) {
            snprintf(unused, sizeof unused, "[PAD%u]", i);
            text = unused;
        }
        qf_gguf_put_string(v->head, text, strlen(text));
    }
    qf_gguf_begin_array(v->head, "tokenizer.ggml.token_type", QF_GGUF_I32, count);
    for (uint32_t i = 0; i < count; i++)
        qf_gguf_put_i32(v->head, v->tokens[i].text != NULL ? (int32_t)v->tokens[i].type
                                                           : TOKEN_UNUSED);
}

/* ---- merges ---- */

/* One side of a merge; a blank in it would be the separator. */
static void append_side(struct qf_buf *out, const char *side)
{
    for (; *side != '\0'; side++)
        qf_buf_append_str(out, *side == ' ' ? "\xc4\xa0" : (char[]){*side, '\0'});
}

static int add_merge(const struct vocab *v, const qf_json *merge, struct qf_buf *room)
{
    const char *text = qf_json_string(merge);
    if (text != NULL) {
        qf_gguf_put_string(v->head, text, strlen(text));
        return 0;
    }
    const qf_json *first = qf_json_first(merge);
    const char *a = qf_json_string(first);
    const char *b = qf_json_string(first != NULL ? qf_json_after(first) : NULL);
    if (a == NULL || b == NULL)
        return refuse(v, "a merge is no pair of strings");
    room->size = 0;
    append_side(room, a);
    qf_buf_append_str(room, " ");
    append_side(room, b);
    if (room->failed)
        return -ENOMEM;
    qf_gguf_put_string(v->head, room->data, room->size);
    return 0;
}

static int add_merges(const struct vocab *v)
{
    const qf_json *merges = qf_json_get(qf_json_get(v->tokenizer, "model"), "merges");
    struct qf_buf room = {0};
    uint64_t count = 0;
    int rc = 0;
    if (!qf_json_is_array(merges))
        return refuse(v, "there are no merges");
    for (const qf_json *m = qf_json_first(merges); m != NULL; m = qf_json_after(m))
        count++;
    qf_gguf_begin_array(v->head, "tokenizer.ggml.merges", QF_GGUF_STRING, count);
    for (const qf_json *m = qf_json_first(merges); m != NULL && rc == 0;
         m = qf_json_after(m))
        rc = add_merge(v, m, &room);
    qf_buf_fini(&room);
    return rc;
}

/* ---- special tokens ---- */

/* The token's number, by its text. */
static const qf_json *id_of_text(const struct vocab *v, const char *text)
{
    const qf_json *added = qf_json_get(v->tokenizer, "added_tokens"), *found = NULL;
    for (const qf_json *t = qf_json_first(added); text != NULL && t != NULL;
         t = qf_json_after(t)) {
        const char *content = qf_json_string(qf_json_get(t, "content"));
        if (content != NULL && strcmp(content, text) == 0)
            found = qf_json_get(t, "id");
    }
    return found;
}

/* tokenizer_config.json names a text, config.json a number or several. */
static const qf_json *id_of_special(const struct vocab *v, const char *name)
{
    char key[32];
    snprintf(key, sizeof key, "%s_token", name);
    const qf_json *token = qf_json_get(v->settings, key);
    if (qf_json_is_object(token))
        token = qf_json_get(token, "content");
    const qf_json *id = id_of_text(v, qf_json_string(token));
    if (id != NULL)
        return id;
    snprintf(key, sizeof key, "%s_token_id", name);
    id = qf_json_get(v->model->config, key);
    return qf_json_is_array(id) ? qf_json_first(id) : id;
}

static int add_special_ids(const struct vocab *v)
{
    for (size_t i = 0; i < SPECIALS; i++) {
        char key[64];
        const qf_json *id = id_of_special(v, specials[i][0]);
        double number = qf_json_number(id);
        if (qf_json_is_null(id))
            continue;
        if (!qf_json_is_number(id) || number < 0 || number > (double)INT32_MAX ||
            number != floor(number))
            return qf_err_set(v->err, -ENOTSUP, "the number of the %s token is none",
                              specials[i][0]);
        snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", specials[i][1]);
        qf_gguf_add_u32(v->head, key, (uint32_t)number);
    }
    return 0;
}

/* Whether tokens are put before and behind a text. */
struct adds {
    bool known[SPECIALS], value[SPECIALS];
};

static void set_add(struct adds *adds, size_t i, bool value, bool over)
{
    if (!adds->known[i] || over)
        adds->value[i] = value;
    adds->known[i] = true;
}

static bool is_type(const qf_json *processor, const char *type)
{
    const char *is = qf_json_string(qf_json_get(processor, "type"));
    return is != NULL && strcmp(is, type) == 0;
}

static void read_processor(const qf_json *processor, struct adds *adds)
{
    if (is_type(processor, "ByteLevel")) {
        set_add(adds, BOS, false, false);
        set_add(adds, EOS, false, false);
    }
    const qf_json *single = qf_json_get(processor, "single");
    const qf_json *first = qf_json_first(single), *last = NULL;
    for (const qf_json *t = first; t != NULL; t = qf_json_after(t))
        last = t;
    if (!is_type(processor, "TemplateProcessing") || first == last)
        return;
    set_add(adds, BOS, qf_json_get(first, "SpecialToken") != NULL, true);
    set_add(adds, EOS, qf_json_get(last, "SpecialToken") != NULL, true);
}

static void add_adds(const struct vocab *v)
{
    struct adds adds = {0};
    const qf_json *post = qf_json_get(v->tokenizer, "post_processor");
    const qf_json *all = qf_json_get(post, "processors");
    if (all == NULL)
        read_processor(post, &adds);
    for (const qf_json *p = qf_json_first(all); p != NULL; p = qf_json_after(p))
        read_processor(p, &adds);
    for (size_t i = 0; i < SPECIALS; i++) {
        char key[64];
        snprintf(key, sizeof key, "add_%s_token", specials[i][0]);
        const qf_json *setting = qf_json_get(v->settings, key);
        if (qf_json_is_true(setting) || qf_json_is_false(setting))
            set_add(&adds, i, qf_json_is_true(setting), false);
        snprintf(key, sizeof key, "tokenizer.ggml.add_%s_token", specials[i][0]);
        if (adds.known[i])
            qf_gguf_add_bool(v->head, key, adds.value[i]);
    }
}

static void add_template(const struct vocab *v)
{
    static const char key[] = "tokenizer.chat_template";
    const struct qf_model_text *file = &v->model->texts[QF_MODEL_CHAT_TEMPLATE];
    const char *text = qf_json_string(qf_json_get(v->settings, "chat_template"));
    if (file->data != NULL)
        qf_gguf_add_text(v->head, key, file->data, file->size);
    else if (text != NULL)
        qf_gguf_add_string(v->head, key, text);
}

/* ---- */

static int add_vocab(struct vocab *v)
{
    struct seen seen = {0};
    const char *type =
        qf_json_string(qf_json_get(qf_json_get(v->tokenizer, "model"), "type"));
    look_through(qf_json_get(v->tokenizer, "pre_tokenizer"), &seen);
    if (type == NULL || strcmp(type, "BPE") != 0 || !seen.byte_level)
        return refuse(v, "only byte-level BPE tokenizers can be put into GGUF");
    int rc = read_tokens(v);
    if (rc != 0)
        return rc;
    qf_gguf_add_string(v->head, "tokenizer.ggml.model", "gpt2");
    qf_gguf_add_string(v->head, "tokenizer.ggml.pre", pre_name(&seen));
    add_tokens(v);
    rc = add_merges(v);
    if (rc == 0)
        rc = add_special_ids(v);
    if (rc != 0)
        return rc;
    add_adds(v);
    add_template(v);
    return 0;
}

/* The document of a text; *out NULL without it. */
static int parse_text(const struct vocab *v, enum qf_model_text_kind kind,
                      const char *name, qf_json **out)
{
    const struct qf_model_text *text = &v->model->texts[kind];
    struct qf_err err = {""};
    *out = NULL;
    if (text->problem[0] != '\0')
        return qf_err_set(v->err, -ENOTSUP, "%s", text->problem);
    if (text->data == NULL)
        return 0;
    *out = qf_json_parse(text->data, text->size, &err);
    if (*out != NULL)
        return 0;
    return errno == ENOMEM ? -ENOMEM
                           : qf_err_set(v->err, -ENOTSUP, "%s: %s", name, err.text);
}

int qf_gguf_vocab_pairs(const struct qf_model *model, const struct qf_gguf_llm *llm,
                        struct qf_gguf_head *head, struct qf_err *err)
{
    struct vocab v = {.model = model, .llm = llm, .head = head, .err = err};
    const struct qf_model_text *texts = model->texts;
    qf_json *tokenizer = NULL, *settings = NULL;
    if (texts[QF_MODEL_CHAT_TEMPLATE].problem[0] != '\0')
        return qf_err_set(err, -ENOTSUP, "%s", texts[QF_MODEL_CHAT_TEMPLATE].problem);
    if (!texts[QF_MODEL_TOKENIZER].exists && texts[QF_MODEL_SENTENCEPIECE].exists)
        return qf_err_set(err, -ENOTSUP,
                          "tokenizer.model: only byte-level BPE tokenizers "
                          "(tokenizer.json) can be put into GGUF");
    int rc = parse_text(&v, QF_MODEL_TOKENIZER, "tokenizer.json", &tokenizer);
    if (rc == 0)
        rc = parse_text(&v, QF_MODEL_TOKENIZER_CONFIG, "tokenizer_config.json",
                        &settings);
    v.tokenizer = tokenizer;
    v.settings = settings;
    if (rc == 0 && tokenizer == NULL) {
        qf_gguf_add_string(head, "tokenizer.ggml.model", "none");
    } else if (rc == 0) {
        v.tokens = calloc(llm->vocab_size, sizeof *v.tokens);
        rc = v.tokens != NULL ? add_vocab(&v) : -ENOMEM;
    }
    free(v.tokens);
    qf_json_free(settings);
    qf_json_free(tokenizer);
    return rc;
}
