/* SPDX-License-Identifier: Apache-2.0 */
/* Equal bytes are the rule and are compared as such, in pieces; only where they differ
 * is a piece looked at element by element. A piece is at most 1 MiB, so memory does not
 * grow with tensors. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "cli/verify.h"
#include "quant/kernels.h"
#include "quant/ties.h"

#define READ_SIZE ((size_t)QF_FUSE_READ_SIZE_MAX)
/* quant_state is some hundred bytes. */
#define STATE_SIZE_MAX 4096u

/* ---- what is told ---- */

static void append_shape(char *out, size_t size, enum qf_dtype dtype, uint32_t rank,
                         const uint64_t *shape)
{
    size_t n = (size_t)snprintf(out, size, "%s [", qf_dtype_name(dtype));
    for (uint32_t i = 0; i < rank && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%llu", i != 0 ? ", " : "",
                              (unsigned long long)shape[i]);
    if (n < size)
        snprintf(out + n, size - n, "]");
}

/* Of a part, the first difference is told and all are counted. */
static void differ(struct qf_verify_hand *hand, const char *name, uint64_t index,
                   const char *want, const char *got)
{
    hand->different++;
    if (!hand->noted)
        qf_verify_note(hand->verify, QF_VERIFY_DIFFERENT, name, index, want, got);
    hand->noted = true;
}

static void settle(struct qf_verify_hand *hand, enum qf_verify_tie tie,
                   const char *name, uint64_t index, const char *want, const char *got)
{
    if (tie != QF_TIE_COUNT)
        hand->ties[tie]++;
    else
        differ(hand, name, index, want, got);
}

static void settle_number(struct qf_verify_hand *hand, enum qf_verify_tie tie,
                          const char *name, uint64_t index, double want, double got)
{
    char a[32], b[32];
    snprintf(a, sizeof a, "%.9g", want);
    snprintf(b, sizeof b, "%.9g", got);
    settle(hand, tie, name, index, a, b);
}

/* ---- elements that differ ---- */

struct part {
    const struct qf_part *part; /* NULL: a kept tensor */
    const char *name;
    const struct qf_tensor *theirs;
    size_t width; /* bytes of an element */
};

static int judge_codes(struct qf_verify_hand *hand, const struct part *p, uint64_t byte,
                       uint8_t mine, uint8_t theirs)
{
    int rc = 0;
    for (unsigned half = 0; half < 2 && rc == 0; half++) {
        unsigned want = half == 0 ? mine >> 4 : mine & 15u;
        unsigned got = half == 0 ? theirs >> 4 : theirs & 15u;
        enum qf_verify_tie tie;
        if (want == got)
            continue;
        rc = qf_verify_tie_4bit(hand, 2 * byte + half, got, &tie);
        if (rc == 0)
            settle_number(hand, tie, p->name, 2 * byte + half, want, got);
    }
    return rc;
}

static int judge_float(struct qf_verify_hand *hand, const struct part *p,
                       uint64_t index, const char *mine, const char *theirs)
{
    float want, got;
    enum qf_verify_tie tie = QF_TIE_COUNT;
    int rc = 0;
    memcpy(&want, mine, sizeof want);
    memcpy(&got, theirs, sizeof got);
    if (p->part->role == QF_PART_ABSMAX)
        rc = qf_verify_tie_absmax(hand, index, got, &tie);
    else if (p->part->role == QF_PART_NESTED_ABSMAX)
        rc = qf_verify_tie_nested_absmax(hand, index, got, &tie);
    if (rc == 0)
        settle_number(hand, tie, p->name, index, (double)want, (double)got);
    return rc;
}

/* Element `index` of a part, at mine and theirs. */
static int judge(struct qf_verify_hand *hand, const struct part *p, uint64_t index,
                 const char *mine, const char *theirs)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    enum qf_verify_tie tie = QF_TIE_COUNT;
    int rc = 0;
    switch (p->part->role) {
    case QF_PART_CODES:
        if (plan->spec.codec != QF_CODEC_INT8)
            return judge_codes(hand, p, index, (uint8_t)*mine, (uint8_t)*theirs);
        rc = qf_verify_tie_int8(hand, index, (int8_t)*theirs, &tie);
        if (rc == 0)
            settle_number(hand, tie, p->name, index, (int8_t)*mine, (int8_t)*theirs);
        return rc;
    case QF_PART_NESTED_CODES:
        rc = qf_verify_tie_nested_code(hand, index, (uint8_t)*theirs, &tie);
        if (rc == 0)
            settle_number(hand, tie, p->name, index, (uint8_t)*mine, (uint8_t)*theirs);
        return rc;
    case QF_PART_FORMAT:
        differ(hand, p->name, index, *mine == 0 ? "0" : "?", "another format");
        return 0;
    default:
        return judge_float(hand, p, index, mine, theirs);
    }
}

static int judge_kept(struct qf_verify_hand *hand, const struct part *p, uint64_t index,
                      const char *mine, const char *theirs)
{
    char want[40] = "0x", got[40] = "0x";
    for (size_t i = p->width; i-- > 0;) {
        size_t at = 2 + 2 * (p->width - 1 - i);
        snprintf(want + at, sizeof want - at, "%02x", (unsigned char)mine[i]);
        snprintf(got + at, sizeof got - at, "%02x", (unsigned char)theirs[i]);
    }
    differ(hand, p->name, index, want, got);
    return 0;
}

/* ---- a part ---- */

static int compare_piece(struct qf_verify_hand *hand, const struct part *p,
                         uint64_t off, size_t size)
{
    int rc = 0;
    for (size_t i = 0; i < size && rc == 0; i += p->width) {
        const char *mine = hand->mine + i, *theirs = hand->theirs + i;
        if (memcmp(mine, theirs, p->width) == 0)
            continue;
        uint64_t index = (off + i) / p->width;
        rc = p->part != NULL ? judge(hand, p, index, mine, theirs)
                             : judge_kept(hand, p, index, mine, theirs);
    }
    return rc;
}

static int compare_bytes(struct qf_verify_hand *hand, const struct part *p,
                         uint64_t off)
{
    uint64_t size = p->theirs->size;
    int rc = 0;
    for (uint64_t at = 0; at < size && rc == 0;) {
        size_t n = size - at < READ_SIZE ? (size_t)(size - at) : READ_SIZE;
        if (qf_verify_is_stopped(hand->verify))
            return -EINTR;
        rc = qf_verify_read_mine(hand, hand->mine, n, off + at);
        if (rc == 0)
            rc = qf_verify_read_theirs(hand, p->name, hand->theirs, n, at);
        if (rc == 0 && memcmp(hand->mine, hand->theirs, n) != 0)
            rc = compare_piece(hand, p, at, n);
        at += n;
        atomic_fetch_add(&hand->verify->bytes, n);
    }
    return rc;
}

static bool check_shape(struct qf_verify_hand *hand, const char *name,
                        const struct qf_tensor *theirs, enum qf_dtype dtype,
                        uint32_t rank, const uint64_t *shape, bool any_dtype)
{
    bool same = rank == theirs->rank && (any_dtype || dtype == theirs->dtype);
    for (uint32_t i = 0; i < rank && same; i++)
        same = shape[i] == theirs->shape[i];
    if (!same) {
        char want[96], got[96];
        append_shape(want, sizeof want, dtype, rank, shape);
        append_shape(got, sizeof got, theirs->dtype, theirs->rank, theirs->shape);
        qf_verify_note(hand->verify, QF_VERIFY_SHAPE, name, UINT64_MAX, want, got);
        hand->different++;
    }
    return same;
}

/* ---- quant_state ---- */

static bool same_member(const qf_json *mine, const qf_json *theirs)
{
    const char *a = qf_json_string(mine), *b = qf_json_string(theirs);
    if (a != NULL || b != NULL)
        return a != NULL && b != NULL && strcmp(a, b) == 0;
    if (!qf_json_is_array(mine))
        return qf_json_is_number(theirs) &&
               qf_json_number(mine) == qf_json_number(theirs);
    const qf_json *x = qf_json_first(mine), *y = qf_json_first(theirs);
    while (x != NULL && y != NULL && qf_json_number(x) == qf_json_number(y)) {
        x = qf_json_after(x);
        y = qf_json_after(y);
    }
    return qf_json_is_array(theirs) && x == NULL && y == NULL;
}

static void compare_members(struct qf_verify_hand *hand, const char *name,
                            const qf_json *mine, const qf_json *theirs)
{
    for (const qf_json *m = qf_json_first(mine); m != NULL; m = qf_json_after(m)) {
        const char *key = qf_json_name(m);
        const qf_json *other = qf_json_get(theirs, key);
        char want[96], got[96];
        if (strcmp(key, "nested_offset") == 0 && qf_json_is_number(m) &&
            qf_json_is_number(other)) {
            float a = (float)qf_json_number(m), b = (float)qf_json_number(other);
            hand->offset = b;
            if (a != b)
                settle_number(hand,
                              qf_within_ulps(a, b, QF_TIE_ULPS) ? QF_TIE_OFFSET
                                                                : QF_TIE_COUNT,
                              name, UINT64_MAX, (double)a, (double)b);
            continue;
        }
        if (same_member(m, other) || (qf_json_is_null(m) && qf_json_is_null(other)))
            continue;
        snprintf(want, sizeof want, "%s as the view has it", key);
        snprintf(got, sizeof got, "%s", qf_json_is_null(other) ? "none" : "another");
        differ(hand, name, UINT64_MAX, want, got);
    }
}

static int compare_state(struct qf_verify_hand *hand, const struct part *p,
                         uint64_t off)
{
    size_t mine_size = (size_t)p->part->size, theirs_size = (size_t)p->theirs->size;
    if (p->theirs->size > STATE_SIZE_MAX || mine_size > READ_SIZE) {
        differ(hand, p->name, UINT64_MAX, "a quant_state", "too long for one");
        return 0;
    }
    int rc = qf_verify_read_mine(hand, hand->mine, mine_size, off);
    if (rc == 0)
        rc = qf_verify_read_theirs(hand, p->name, hand->theirs, theirs_size, 0);
    if (rc != 0)
        return rc;
    qf_json *a = qf_json_parse(hand->mine, mine_size, NULL);
    qf_json *b = qf_json_parse(hand->theirs, theirs_size, NULL);
    if (a != NULL && qf_json_is_object(b))
        compare_members(hand, p->name, a, b);
    else
        differ(hand, p->name, UINT64_MAX, "a quant_state", "no JSON object");
    qf_json_free(a);
    qf_json_free(b);
    atomic_fetch_add(&hand->verify->bytes, mine_size);
    return 0;
}

/* ---- a tensor ---- */

static int compare_part(struct qf_verify_hand *hand, uint32_t index)
{
    const struct qf_part *part = &hand->unit->planned->plan->parts[index];
    const char *base = hand->unit->src->name;
    size_t size = qf_part_name(base, part, NULL, 0) + 1;
    char *name = malloc(size);
    if (name == NULL)
        return -ENOMEM;
    qf_part_name(base, part, name, size);
    struct qf_verify_tensor *theirs = qf_verify_find(hand->verify->dir, name);
    int rc = 0;
    hand->noted = false;
    if (theirs == NULL) {
        qf_verify_note(hand->verify, QF_VERIFY_MISSING, name, UINT64_MAX, "", "");
        hand->different++;
    } else {
        struct part p = {part, name, theirs->tensor, 1};
        bool state = part->role == QF_PART_QUANT_STATE;
        bool codes = part->role == QF_PART_CODES;
        atomic_store(&theirs->seen, true);
        if (!codes && qf_dtype_bits(part->dtype) > 8)
            p.width = qf_dtype_size(part->dtype);
        if (state && theirs->tensor->dtype == QF_U8)
            rc = compare_state(hand, &p, hand->unit->offs[index]);
        else if (check_shape(hand, name, theirs->tensor, part->dtype, part->rank,
                             part->shape, false))
            rc = compare_bytes(hand, &p, hand->unit->offs[index]);
    }
    free(name);
    return rc;
}

/* quant_state before the rest: the offset in it decides about other parts. */
int qf_verify_tensor_quantized(struct qf_verify_hand *hand)
{
    const struct qf_plan *plan = hand->unit->planned->plan;
    int rc = 0;
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < plan->part_count && rc == 0; i++)
            if (!plan->parts[i].hidden &&
                (plan->parts[i].role == QF_PART_QUANT_STATE) == (pass == 0))
                rc = compare_part(hand, i);
    return rc;
}

/* Both in binary32, which holds all three exactly; rounded to the narrower of the two
 * they must be the same. */
static int compare_cast(struct qf_verify_hand *hand, const struct part *p,
                        enum qf_dtype dtype, uint64_t off)
{
    const struct qf_kernels *k = qf_kernels_best();
    enum qf_dtype other = p->theirs->dtype;
    size_t a = qf_dtype_size(dtype), b = qf_dtype_size(other);
    uint64_t count = p->theirs->size / b;
    for (uint64_t at = 0; at < count;) {
        size_t n = READ_SIZE / sizeof(float);
        float want[1], got[1], x, y;
        char cast[4];
        n = count - at < n ? (size_t)(count - at) : n;
        int rc = qf_verify_read_mine(hand, hand->mine, n * a, off + at * a);
        if (rc == 0)
            rc = qf_verify_read_theirs(hand, p->name, hand->theirs, n * b, at * b);
        if (rc != 0)
            return rc;
        for (size_t i = 0; i < n; i++) {
            k->cast[dtype][QF_F32](hand->mine + i * a, 1, want);
            k->cast[other][QF_F32](hand->theirs + i * b, 1, got);
            k->cast[QF_F32][other](want, 1, cast);
            k->cast[other][QF_F32](cast, 1, &x);
            k->cast[QF_F32][dtype](got, 1, cast);
            k->cast[dtype][QF_F32](cast, 1, &y);
            bool same = qf_within_ulps(x, got[0], 0) || qf_within_ulps(y, want[0], 0);
            settle_number(hand, same ? QF_TIE_DTYPE : QF_TIE_COUNT, p->name, at + i,
                          (double)want[0], (double)got[0]);
        }
        at += n;
        atomic_fetch_add(&hand->verify->bytes, n * a);
    }
    return 0;
}

int qf_verify_tensor_kept(struct qf_verify_hand *hand, struct qf_verify_tensor *theirs)
{
    const struct qf_verify_unit *unit = hand->unit;
    const struct qf_tensor *src = unit->src, *t = theirs->tensor;
    enum qf_dtype dtype = unit->planned != NULL ? unit->planned->out_dtype : src->dtype;
    bool casts =
        dtype != t->dtype && qf_dtype_is_float(dtype) && qf_dtype_is_float(t->dtype);
    struct part p = {NULL, src->name, t, 1};
    atomic_store(&theirs->seen, true);
    hand->noted = false;
    if (qf_dtype_bits(dtype) > 8)
        p.width = qf_dtype_size(dtype);
    if (!check_shape(hand, src->name, t, dtype, src->rank, src->shape, casts))
        return 0;
    return casts ? compare_cast(hand, &p, dtype, unit->offs[0])
                 : compare_bytes(hand, &p, unit->offs[0]);
}
