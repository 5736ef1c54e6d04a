/* SPDX-License-Identifier: Apache-2.0 */
/* A tensor is coded if there is a quant_state of its name, or, of 8-bit integers, an
 * SCB. Everything that such a tensor needs must be there, in the size that its shape
 * asks for, and everything that looks like a part of one must belong to one: what is
 * not understood to the last byte is not dequantized at all. */
#include "ckpt/bnb.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/path.h"
#include "ckpt/printable.h"

#define STATE_WORD ".quant_state.bitsandbytes__"
/* Integers that a JSON number in binary64 holds exactly. */
#define EXACT_MAX 9007199254740992.0

struct parser {
    const struct qf_shard *stored;
    char *const *texts;
    enum qf_dtype int8_dtype;
    struct qf_err *err;
    char *name;    /* room for the name of a part */
    bool *claimed; /* tensors that are parts of others */
    size_t count;
    struct qf_tensor *tensors; /* the plain ones */
    size_t coded_count;
    struct qf_coded *coded; /* in a block that holds the nested maps, too */
    size_t map_count;
    float *maps;
};

/* ---- names ---- */

bool qf_bnb_is_small(const struct qf_tensor *t)
{
    return t->size <= QF_BNB_STATE_SIZE_MAX &&
           (strstr(t->name, STATE_WORD) != NULL ||
            qf_path_ends_with(t->name, "quant_map") ||
            qf_path_ends_with(t->name, ".weight_format"));
}

static bool is_part_name(const char *name)
{
    static const char *const ends[] = {".absmax",        ".quant_map",
                                       ".nested_absmax", ".nested_quant_map",
                                       ".SCB",           ".weight_format"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (qf_path_ends_with(name, ends[i]))
            return true;
    return strstr(name, STATE_WORD) != NULL;
}

/* A matrix of integers under a name of weights. */
static bool looks_coded(const struct qf_tensor *t)
{
    return t->rank >= 2 && t->size > 0 && qf_path_ends_with(t->name, ".weight") &&
           (t->dtype == QF_I8 || t->dtype == QF_U8);
}

enum qf_dtype qf_bnb_plain_dtype(const struct qf_shard *stored)
{
    for (size_t i = 0; i < stored->tensor_count; i++) {
        const struct qf_tensor *t = &stored->tensors[i];
        if (qf_dtype_is_float(t->dtype) && !is_part_name(t->name))
            return t->dtype;
    }
    return QF_DTYPE_NONE;
}

static int refuse(const struct parser *p, const struct qf_tensor *t, const char *what)
{
    return qf_err_set(p->err, -EBADMSG, "tensor '%s': %s", qf_printable(t->name).text,
                      what);
}

/* The part of tensor t with this suffix in place of the last `strip` bytes, or NULL. */
static const struct qf_tensor *part_of(const struct parser *p,
                                       const struct qf_tensor *t, size_t strip,
                                       const char *suffix)
{
    size_t stem = strlen(t->name) - strip;
    memcpy(p->name, t->name, stem);
    strcpy(p->name + stem, suffix);
    return qf_shard_find(p->stored, p->name);
}

static const char *text_of(const struct parser *p, const struct qf_tensor *t)
{
    return p->texts[t - p->stored->tensors];
}

static void claim(struct parser *p, struct qf_coded *coded, const struct qf_tensor *t)
{
    p->claimed[t - p->stored->tensors] = true;
    coded->stored_size += t->size;
}

/* A part that must be there, of `count` elements. */
static int need(struct parser *p, const struct qf_tensor *t, const char *suffix,
                enum qf_dtype dtype, uint64_t count, struct qf_coded *coded,
                const struct qf_tensor **out)
{
    const struct qf_tensor *part = part_of(p, t, 0, suffix);
    char what[96];
    snprintf(what, sizeof what, "its %s is not in the same file", suffix + 1);
    if (part == NULL)
        return refuse(p, t, what);
    snprintf(what, sizeof what, "is not of dtype %s", qf_dtype_name(dtype));
    if (part->dtype != dtype)
        return refuse(p, part, what);
    if (part->size / qf_dtype_size(dtype) != count)
        return refuse(p, part, "its size does not fit the shape in the quant_state");
    claim(p, coded, part);
    *out = part;
    return 0;
}

/* ---- 4-bit ---- */

/* A whole number from 1 to `most`; 0: it is none. */
static uint64_t whole(const qf_json *value, double most)
{
    double x = qf_json_number(value);
    return qf_json_is_number(value) && x >= 1 && x <= most && x == floor(x)
               ? (uint64_t)x
               : 0;
}

static int read_shape(const struct parser *p, const struct qf_tensor *state,
                      const qf_json *shape, struct qf_coded *coded, uint32_t *rank)
{
    *rank = 0;
    coded->elem_count = 1;
    for (const qf_json *d = qf_json_first(shape); d != NULL; d = qf_json_after(d)) {
        uint64_t n = whole(d, EXACT_MAX);
        if (n == 0 || *rank == QF_CODED_RANK_MAX ||
            !qf_mul_u64(coded->elem_count, n, &coded->elem_count) ||
            coded->elem_count > (uint64_t)EXACT_MAX) {
            *rank = 0;
            break;
        }
        coded->shape[(*rank)++] = n;
    }
    return qf_json_is_array(shape) && *rank > 0
               ? 0
               : refuse(p, state, "its shape is no list of 1 to 4 sizes");
}

/* What a quant_state says of a tensor that is not nested, too. */
static int read_common(const struct parser *p, const struct qf_tensor *state,
                       const qf_json *said, struct qf_coded *coded,
                       struct qf_tensor *plain)
{
    const char *type = qf_json_string(qf_json_get(said, "quant_type"));
    const char *dtype = qf_json_string(qf_json_get(said, "dtype"));
    if (type == NULL || (strcmp(type, "nf4") != 0 && strcmp(type, "fp4") != 0))
        return refuse(p, state, "its quant_type is neither nf4 nor fp4");
    coded->kind = strcmp(type, "nf4") == 0 ? QF_CODED_NF4 : QF_CODED_FP4;
    coded->blocksize =
        (uint32_t)whole(qf_json_get(said, "blocksize"), QF_BNB_BLOCKSIZE_MAX);
    if (coded->blocksize < QF_BNB_BLOCKSIZE_MIN ||
        (coded->blocksize & (coded->blocksize - 1)) != 0)
        return refuse(p, state, "its blocksize is no power of two from 32 to 4096");
    plain->dtype = dtype != NULL ? qf_dtype_from_torch(dtype) : QF_DTYPE_NONE;
    if (plain->dtype == QF_DTYPE_NONE)
        return refuse(p, state, "its dtype is not float32, float16 or bfloat16");
    return read_shape(p, state, qf_json_get(said, "shape"), coded, &plain->rank);
}

static int read_nested(const struct parser *p, const struct qf_tensor *state,
                       const qf_json *said, struct qf_coded *coded)
{
    const qf_json *offset = qf_json_get(said, "nested_offset");
    const char *dtype = qf_json_string(qf_json_get(said, "nested_dtype"));
    coded->nested_blocksize = (uint32_t)whole(qf_json_get(said, "nested_blocksize"),
                                              QF_BNB_NESTED_BLOCKSIZE_MAX);
    if (coded->nested_blocksize == 0)
        return refuse(p, state, "its nested_blocksize is no number from 1 to 65536");
    if (dtype == NULL || qf_dtype_from_torch(dtype) != QF_F32)
        return refuse(p, state, "its nested_dtype is not float32");
    coded->nested_offset = (float)qf_json_number(offset);
    if (!qf_json_is_number(offset) || !isfinite(coded->nested_offset))
        return refuse(p, state, "its nested_offset is no finite number");
    return 0;
}

static int read_state(struct parser *p, const struct qf_tensor *t,
                      const struct qf_tensor *state, struct qf_coded *coded,
                      struct qf_tensor *plain)
{
    const char *text = text_of(p, state);
    if (text == NULL)
        return refuse(p, state, "is too large for a quant_state");
    qf_json *said = qf_json_parse(text, (size_t)state->size, NULL);
    if (said == NULL)
        return errno == ENOMEM ? -ENOMEM : refuse(p, state, "is not JSON");
    int rc = read_common(p, state, said, coded, plain);
    coded->nested = part_of(p, t, 0, ".nested_absmax") != NULL;
    if (rc == 0 && coded->nested)
        rc = read_nested(p, state, said, coded);
    else if (rc == 0 && qf_json_get(said, "nested_blocksize") != NULL)
        rc = refuse(p, t, "its nested_absmax is not in the same file");
    qf_json_free(said);
    return rc;
}

/* All weights of a checkpoint have the same one, as a rule. */
static void keep_map(struct parser *p, struct qf_coded *coded, const char *text)
{
    const size_t n = QF_CODED_NESTED_MAP;
    float *last = p->map_count > 0 ? p->maps + (p->map_count - 1) * n : NULL;
    if (last == NULL || memcmp(last, text, n * sizeof(float)) != 0) {
        last = p->maps + p->map_count++ * n;
        memcpy(last, text, n * sizeof(float));
    }
    coded->nested_map = last;
}

static int find_absmax(struct parser *p, const struct qf_tensor *t,
                       struct qf_coded *coded)
{
    uint64_t blocks = qf_div_up(coded->elem_count, coded->blocksize);
    const struct qf_tensor *absmax, *part;
    int rc =
        need(p, t, ".absmax", coded->nested ? QF_U8 : QF_F32, blocks, coded, &absmax);
    if (rc != 0)
        return rc;
    coded->absmax_off = absmax->off;
    if (!coded->nested)
        return 0;
    rc = need(p, t, ".nested_absmax", QF_F32,
              qf_div_up(blocks, coded->nested_blocksize), coded, &part);
    if (rc != 0)
        return rc;
    coded->nested_absmax_off = part->off;
    rc = need(p, t, ".nested_quant_map", QF_F32, QF_CODED_NESTED_MAP, coded, &part);
    if (rc == 0)
        keep_map(p, coded, text_of(p, part));
    return rc;
}

static int parse_4bit(struct parser *p, const struct qf_tensor *t,
                      const struct qf_tensor *state, struct qf_coded *coded,
                      struct qf_tensor *plain)
{
    const struct qf_tensor *map;
    int rc = read_state(p, t, state, coded, plain);
    if (rc != 0)
        return rc;
    claim(p, coded, state);
    coded->stored_size += t->size;
    plain->shape = coded->shape;
    plain->size = coded->elem_count * qf_dtype_size(plain->dtype);
    if (t->size != qf_div_up(coded->elem_count, 2))
        return refuse(p, t, "its size does not fit the shape in the quant_state");
    rc = need(p, t, ".quant_map", QF_F32, QF_CODED_MAP_SIZE, coded, &map);
    if (rc != 0)
        return rc;
    memcpy(coded->map, text_of(p, map), sizeof coded->map);
    return find_absmax(p, t, coded);
}

/* ---- int8 ---- */

static int parse_int8(struct parser *p, const struct qf_tensor *t,
                      const struct qf_tensor *scb, struct qf_coded *coded,
                      struct qf_tensor *plain)
{
    const struct qf_tensor *format = part_of(p, t, 0, "_format");
    if (t->rank != 2 || t->size == 0)
        return refuse(p, t, "is no matrix");
    *coded = (struct qf_coded){.kind = QF_CODED_INT8,
                               .elem_count = t->size,
                               .row_size = t->shape[1],
                               .stored_size = t->size,
                               .scb_off = scb->off};
    if (scb->dtype != QF_F32 || scb->size / sizeof(float) != t->shape[0])
        return refuse(p, scb, "is not one F32 for each row of the weight");
    claim(p, coded, scb);
    if (format != NULL) {
        const char *text = text_of(p, format);
        if (format->size != 1 || text == NULL || text[0] != 0)
            return refuse(p, format, "a format of weights other than rows");
        claim(p, coded, format);
    }
    plain->dtype = p->int8_dtype;
    return qf_mul_u64(t->size, qf_dtype_size(plain->dtype), &plain->size)
               ? 0
               : refuse(p, t, "is too large");
}

/* ---- a shard ---- */

/* Fills what is left of *plain if t is coded. */
static int parse_tensor(struct parser *p, const struct qf_tensor *t,
                        struct qf_tensor *plain)
{
    static const char weight[] = "weight";
    const struct qf_tensor *state = part_of(p, t, 0, STATE_WORD "nf4"), *scb = NULL;
    struct qf_coded *coded = &p->coded[p->coded_count];
    if (state == NULL)
        state = part_of(p, t, 0, STATE_WORD "fp4");
    if (state == NULL && t->dtype == QF_I8 && qf_path_ends_with(t->name, ".weight"))
        scb = part_of(p, t, sizeof weight - 1, "SCB");
    if (state == NULL && scb == NULL)
        return 0;
    p->coded_count++;
    plain->coded = coded;
    return state != NULL ? parse_4bit(p, t, state, coded, plain)
                         : parse_int8(p, t, scb, coded, plain);
}

/* Room for as many as there can be. */
static int alloc_tables(struct parser *p)
{
    size_t coded = 0, maps = 0, longest = 0, n = p->stored->tensor_count;
    for (size_t i = 0; i < n; i++) {
        const char *name = p->stored->tensors[i].name;
        size_t size = strlen(name);
        coded += strstr(name, STATE_WORD) != NULL || qf_path_ends_with(name, ".SCB");
        maps += qf_path_ends_with(name, ".nested_quant_map");
        longest = size > longest ? size : longest;
    }
    size_t coded_size = coded * sizeof *p->coded;
    p->name = malloc(longest + sizeof STATE_WORD + 8);
    p->claimed = calloc(n + 1, sizeof *p->claimed);
    p->tensors = calloc(n + 1, sizeof *p->tensors);
    p->coded = calloc(1, coded_size + maps * QF_CODED_NESTED_MAP * sizeof(float) + 1);
    if (p->name == NULL || p->claimed == NULL || p->tensors == NULL || p->coded == NULL)
        return -ENOMEM;
    p->maps = (float *)(void *)((char *)p->coded + coded_size);
    return 0;
}

/* Those that are parts of others are not shown; one that looks like a part or like
 * codes and belongs to nothing is not understood. */
static int parse_all(struct parser *p)
{
    size_t n = p->stored->tensor_count;
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        p->tensors[i] = p->stored->tensors[i];
        if (!is_part_name(p->tensors[i].name))
            rc = parse_tensor(p, &p->stored->tensors[i], &p->tensors[i]);
    }
    for (size_t i = 0; i < n && rc == 0; i++) {
        const struct qf_tensor *t = &p->stored->tensors[i];
        if (p->claimed[i])
            continue;
        if (is_part_name(t->name))
            rc = refuse(p, t, "belongs to no weight of the same file");
        else if (p->tensors[i].coded == NULL && looks_coded(t))
            rc = refuse(p, t, "codes without a quant_state or SCB in the same file");
        p->tensors[p->count++] = p->tensors[i];
    }
    return rc;
}

int qf_bnb_plain(struct qf_shard *stored, char *const *texts, enum qf_dtype int8_dtype,
                 struct qf_shard **out, struct qf_err *err)
{
    struct parser p = {.stored = stored,
                       .texts = texts,
                       .int8_dtype = int8_dtype,
                       .err = err};
    int rc = alloc_tables(&p);
    if (rc == 0)
        rc = parse_all(&p);
    free(p.name);
    free(p.claimed);
    if (rc == 0 && p.coded_count > 0)
        rc = qf_shard_derive(stored, p.tensors, p.count, p.coded, out);
    else if (rc == 0)
        *out = stored;
    if (rc != 0 || p.coded_count == 0) {
        free(p.tensors);
        free(p.coded);
    }
    return rc == -ENOMEM ? qf_err_set(err, rc, "out of memory") : rc;
}
