/* SPDX-License-Identifier: Apache-2.0 */
/* Threads take tensors of the view, find their counterparts in the checkpoint, whatever
 * shard they are in, and tell what is on one side only. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/path.h"
#include "cli/crew.h"
#include "cli/verify.h"

#define READ_SIZE ((size_t)QF_FUSE_READ_SIZE_MAX)

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

bool qf_verify_is_stopped(struct qf_verify *verify)
{
    pthread_mutex_lock(&verify->lock);
    bool failed = verify->rc != 0;
    pthread_mutex_unlock(&verify->lock);
    return failed || atomic_load(verify->stop) != 0;
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

/* save_pretrained leaves out what a model makes by itself: positions, masks. */
static bool is_buffer(const struct qf_verify_unit *unit)
{
    static const enum qf_dtype integers[] = {QF_BOOL, QF_I8,  QF_I16, QF_I32, QF_I64,
                                             QF_U8,   QF_U16, QF_U32, QF_U64};
    bool integer = false;
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        integer |= unit->src->dtype == integers[i];
    return unit->planned != NULL &&
           (integer || qf_path_ends_with(unit->src->name, ".inv_freq"));
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

/* Norms and biases are often all ones or zeros: the same bytes say nothing there. */
static int is_constant(struct qf_verify_hand *hand, const struct qf_tensor *theirs,
                       size_t width, bool *constant)
{
    size_t n = theirs->size < READ_SIZE ? (size_t)theirs->size : READ_SIZE;
    int rc = qf_verify_read_theirs(hand, theirs->name, hand->theirs, n, 0);
    const char *bytes = (const char *)hand->theirs;
    *constant = rc == 0 && memcmp(bytes, bytes + width, n - width) == 0;
    return rc;
}

/* And of matrices that share their memory it saves one. */
static int find_shared(struct qf_verify_hand *hand, bool *found)
{
    const struct qf_verify_dir *dir = hand->verify->dir;
    const struct qf_verify_unit *unit = hand->unit;
    const struct qf_tensor *src = unit->src;
    enum qf_dtype dtype = unit->planned != NULL ? unit->planned->out_dtype : src->dtype;
    *found = false;
    for (size_t i = 0; i < dir->tensor_count && !*found; i++) {
        const struct qf_tensor *t = dir->tensors[i].tensor;
        bool same =
            t->dtype == dtype && t->rank == src->rank && t->rank >= 2 && t->size != 0;
        for (uint32_t k = 0; same && k < src->rank; k++)
            same = t->shape[k] == src->shape[k];
        if (!same)
            continue;
        bool constant;
        int rc = is_constant(hand, t, qf_dtype_size(dtype), &constant);
        if (rc == 0 && !constant)
            rc = has_same_bytes(hand, t, found);
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
    if (kept && is_buffer(unit)) {
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
        return mine ? qf_verify_tensor_quantized(hand)
                    : qf_verify_tensor_kept(hand, theirs);
    atomic_store(&theirs->seen, true);
    if (quantized && qf_path_ends_with(name, ".weight"))
        see_companions(verify->dir, theirs->tensor->name);
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
    if (qf_verify_is_stopped(verify))
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
    for (size_t i = 0; i < verify->dir->shard_count; i++)
        if (qf_srcfile_check(verify->dir->shards[i].file) != 0)
            return qf_err_set(err, -ESTALE, "/%s/%s: changed while it was compared",
                              verify->dir->path, verify->dir->shards[i].name);
    tell_extra(verify);
    return 0;
}
