/* SPDX-License-Identifier: Apache-2.0 */
/* Equal bytes are the rule and are compared as such, in pieces; only where they differ
 * is a piece looked at element by element. A piece is at most 1 MiB, so memory does not
 * grow with tensors. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/path.h"
#include "cli/crew.h"
#include "cli/verify.h"
#include "quant/kernels.h"
#include "quant/ties.h"

#define READ_SIZE ((size_t)QF_FUSE_READ_SIZE_MAX)
/* quant_state is some hundred bytes. */
#define STATE_SIZE_MAX 4096u

struct crowd {
    struct qf_verify *verify;
    char *buffers;
};

void qf_verify_note(struct qf_verify *verify, enum qf_verify_problem problem,
                    const char *tensor, uint64_t index, const char *want,
                    const char *got)
{
    pthread_mutex_lock(&verify->lock);
    verify->problems[problem]++;
    if (verify->told_count < QF_VERIFY_TOLD_MAX) {
        struct qf_verify_difference *d = &verify->told[verify->told_count++];
        *d = (struct qf_verify_difference){.problem = problem,
                                           .tensor = strdup(tensor),
                                           .index = index};
        snprintf(d->want, sizeof d->want, "%s", want);
        snprintf(d->got, sizeof d->got, "%s", got);
    }
    pthread_mutex_unlock(&verify->lock);
}

/* ---- reading ---- */

int qf_verify_read_mine(struct qf_verify_hand *hand, void *buf, size_t size,
                        uint64_t off)
{
    const struct qf_views_source *served = &hand->verify->dir->served;
    if (hand->open != hand->unit->shard) {
        char path[PATH_MAX];
        if (hand->open != NULL)
            served->ops->close(served, &hand->file);
        hand->open = NULL;
        int n = snprintf(path, sizeof path, "%s/%s/%s",
                         hand->verify->dir->stack.views[0].name,
                         hand->verify->dir->source, hand->unit->shard);
        if (n < 0 || (size_t)n >= sizeof path)
            return -ENAMETOOLONG;
        int rc = served->ops->open(served, path, &hand->file);
        if (rc != 0)
            return rc;
        hand->open = hand->unit->shard;
    }
    return qf_source_read_all(served, &hand->file, buf, size, off);
}

int qf_verify_read_theirs(const struct qf_verify_hand *hand, const char *name,
                          void *buf, size_t size, uint64_t off)
{
    const struct qf_verify_dir *dir = hand->verify->dir;
    const struct qf_verify_tensor *t = qf_verify_find(dir, name);
    if (t == NULL || off + size > t->tensor->size)
        return -EBADMSG;
    return qf_srcfile_read(dir->shards[t->shard].file, buf, size, t->tensor->off + off);
}

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
        rc = qf_verify_tie_4bit(hand, p->part, 2 * byte + half, got, &tie);
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

static bool is_stopped(struct qf_verify *verify)
{
    pthread_mutex_lock(&verify->lock);
    bool failed = verify->rc != 0;
    pthread_mutex_unlock(&verify->lock);
    return failed || atomic_load(verify->stop) != 0;
}

static int compare_bytes(struct qf_verify_hand *hand, const struct part *p,
                         uint64_t off)
{
    uint64_t size = p->theirs->size;
    int rc = 0;
    for (uint64_t at = 0; at < size && rc == 0;) {
        size_t n = size - at < READ_SIZE ? (size_t)(size - at) : READ_SIZE;
        if (is_stopped(hand->verify))
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
static int compare_quantized(struct qf_verify_hand *hand)
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

static int compare_kept(struct qf_verify_hand *hand, struct qf_verify_tensor *theirs)
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

/* Of a weight that only the checkpoint quantizes: they are told with it. */
static void see_companions(const struct qf_verify_dir *dir, const char *name)
{
    size_t n = strlen(name), stem = n - strlen("weight");
    for (size_t i = 0; i < dir->tensor_count; i++) {
        const char *other = dir->tensors[i].tensor->name;
        if ((strncmp(other, name, n) == 0 && (other[n] == '.' || other[n] == '_')) ||
            (strncmp(other, name, stem) == 0 && strcmp(other + stem, "SCB") == 0))
            atomic_store(&dir->tensors[i].seen, true);
    }
}

/* save_pretrained leaves out what a model makes by itself: no weight is an integer. */
static bool is_buffer(const struct qf_tensor *src)
{
    return qf_path_ends_with(src->name, ".inv_freq") ||
           (!qf_dtype_is_float(src->dtype) && src->dtype != QF_F64);
}

/* Whether the checkpoint's tensor has the bytes of the view's. */
static int has_same_bytes(struct qf_verify_hand *hand, const struct qf_tensor *theirs,
                          bool *same)
{
    *same = true;
    for (uint64_t at = 0; at < theirs->size && *same;) {
        size_t n =
            theirs->size - at < READ_SIZE ? (size_t)(theirs->size - at) : READ_SIZE;
        int rc = qf_verify_read_mine(hand, hand->mine, n, hand->unit->offs[0] + at);
        if (rc == 0)
            rc = qf_verify_read_theirs(hand, theirs->name, hand->theirs, n, at);
        if (rc != 0)
            return rc;
        *same = memcmp(hand->mine, hand->theirs, n) == 0;
        at += n;
    }
    return 0;
}

/* And of tensors that share their memory it saves one. */
static int find_shared(struct qf_verify_hand *hand, bool *found)
{
    const struct qf_verify_dir *dir = hand->verify->dir;
    const struct qf_verify_unit *unit = hand->unit;
    const struct qf_tensor *src = unit->src;
    enum qf_dtype dtype = unit->planned != NULL ? unit->planned->out_dtype : src->dtype;
    *found = false;
    for (size_t i = 0; i < dir->tensor_count && !*found; i++) {
        const struct qf_tensor *t = dir->tensors[i].tensor;
        bool same = t->dtype == dtype && t->rank == src->rank && t->size != 0;
        for (uint32_t k = 0; same && k < src->rank; k++)
            same = t->shape[k] == src->shape[k];
        if (!same)
            continue;
        int rc = has_same_bytes(hand, t, found);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int judge_missing(struct qf_verify_hand *hand)
{
    const struct qf_verify_unit *unit = hand->unit;
    bool kept = unit->planned == NULL || unit->planned->plan == NULL, shared = false;
    int rc = 0;
    if (kept && is_buffer(unit->src)) {
        hand->ties[QF_TIE_BUFFER]++;
        return 0;
    }
    if (kept)
        rc = find_shared(hand, &shared);
    if (rc != 0)
        return rc;
    if (shared) {
        hand->ties[QF_TIE_SHARED]++;
    } else {
        qf_verify_note(hand->verify, QF_VERIFY_MISSING, unit->src->name, UINT64_MAX, "",
                       "");
        hand->different++;
    }
    return 0;
}

static int compare_unit(struct qf_verify_hand *hand)
{
    const struct qf_verify_unit *unit = hand->unit;
    struct qf_verify *verify = hand->verify;
    const char *name = unit->src->name;
    struct qf_verify_tensor *theirs = qf_verify_find(verify->dir, name);
    bool mine = unit->planned != NULL && unit->planned->plan != NULL;
    bool quantized = qf_verify_is_quantized(verify->dir, name);
    if (theirs == NULL)
        return judge_missing(hand);
    if (mine == quantized)
        return mine ? compare_quantized(hand) : compare_kept(hand, theirs);
    atomic_store(&theirs->seen, true);
    if (quantized && qf_path_ends_with(name, ".weight"))
        see_companions(verify->dir, name);
    qf_verify_note(verify, mine ? QF_VERIFY_KEPT : QF_VERIFY_QUANTIZED, name,
                   UINT64_MAX, "", "");
    hand->different++;
    return 0;
}

static void count_unit(struct qf_verify_hand *hand)
{
    struct qf_verify *verify = hand->verify;
    bool tied = false;
    pthread_mutex_lock(&verify->lock);
    for (int i = 0; i < QF_TIE_COUNT; i++) {
        verify->ties[i] += hand->ties[i];
        tied = tied || hand->ties[i] != 0;
    }
    if (hand->different != 0)
        verify->different++;
    else if (tied)
        verify->tied++;
    else
        verify->equal++;
    verify->codes_different += hand->different;
    pthread_mutex_unlock(&verify->lock);
}

/* ---- all ---- */

static bool take_unit(struct qf_verify *verify, const struct qf_verify_unit **unit)
{
    if (is_stopped(verify))
        return false;
    pthread_mutex_lock(&verify->lock);
    bool found = verify->next_unit < verify->unit_count;
    if (found)
        *unit = &verify->units[verify->next_unit++];
    pthread_mutex_unlock(&verify->lock);
    return found;
}

static void run_hand(void *arg, unsigned index)
{
    struct crowd *crowd = arg;
    struct qf_verify *verify = crowd->verify;
    struct qf_verify_hand *hand = calloc(1, sizeof *hand);
    const struct qf_verify_unit *unit;
    int rc = hand != NULL ? 0 : -ENOMEM;
    while (rc == 0 && take_unit(verify, &unit)) {
        char *mine = crowd->buffers + 2 * index * READ_SIZE;
        struct qf_source_file file = hand->file;
        const char *open = hand->open;
        *hand = (struct qf_verify_hand){.verify = verify,
                                        .open = open,
                                        .file = file,
                                        .mine = mine,
                                        .theirs = mine + READ_SIZE,
                                        .unit = unit,
                                        .block = UINT64_MAX};
        rc = compare_unit(hand);
        qf_verify_tie_reset(hand);
        if (rc == 0)
            count_unit(hand);
    }
    if (rc != 0 && rc != -EINTR) {
        pthread_mutex_lock(&verify->lock);
        if (verify->rc == 0)
            verify->rc =
                qf_err_set(&verify->err, rc, "/%s: %s: %s", verify->dir->path,
                           hand != NULL ? hand->unit->src->name : "", strerror(-rc));
        pthread_mutex_unlock(&verify->lock);
    }
    if (hand != NULL && hand->open != NULL)
        verify->dir->served.ops->close(&verify->dir->served, &hand->file);
    free(hand);
}

static void tick(void *arg)
{
    struct crowd *crowd = arg;
    qf_progress_update(&crowd->verify->progress, atomic_load(&crowd->verify->bytes));
}

/* What of the checkpoint was compared with nothing. */
static void tell_extra(struct qf_verify *verify)
{
    const struct qf_verify_dir *dir = verify->dir;
    for (size_t i = 0; i < dir->tensor_count; i++) {
        const char *name = dir->tensors[i].tensor->name;
        if (!atomic_load(&dir->tensors[i].seen))
            qf_verify_note(verify, QF_VERIFY_EXTRA, name, UINT64_MAX, "", "");
    }
}

int qf_verify_compare(struct qf_verify *verify, struct qf_err *err)
{
    struct crowd crowd = {verify, malloc(2 * verify->jobs * READ_SIZE)};
    int rc = crowd.buffers != NULL ? 0 : -ENOMEM;
    if (rc == 0)
        rc = qf_crew_run(verify->jobs, run_hand, tick, &crowd);
    free(crowd.buffers);
    if (rc != 0)
        return qf_err_set(err, rc, "%s", strerror(-rc));
    if (verify->rc != 0) {
        *err = verify->err;
        return verify->rc;
    }
    if (atomic_load(verify->stop) != 0)
        return -EINTR;
    tell_extra(verify);
    return 0;
}
