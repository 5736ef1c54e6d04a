/* SPDX-License-Identifier: Apache-2.0 */
/* A shard is sealed when its last work has ended, not when it is closed: a reader can
 * have its bytes, and close, before the worker that made them has handed them to the
 * store. At that moment the file's count of references is 0; sealing takes it back to
 * 1, so that layout and source live on. One thread does it, one shard after the other,
 * at a low priority; it reads records as a reader does, but gives up where a reader
 * would encode.
 *
 * Records go when the file is there, so whoever still has the shard open must read the
 * file from then on: all shard files are in a list, and those of the same key get a
 * descriptor of their own. A file is put in the list before it looks for its sealed
 * file, so it finds it in one of the two ways.
 *
 * Writing a shard needs room for it twice. Near the limit that would push out what is
 * in use, so a shard is only sealed if there is room for it or it is a small part of
 * the cache (then it pushes out what was used least recently, as any value does). */
#include "engine/sealed.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/limits.h"
#include "base/log.h"
#include "engine/chunk.h"
#include "engine/seal.h"

#define SEALED_DOMAIN UINT64_C(0x3176646c61657371) /* "qsealdv1" */
/* A shard up to this part of the cache may push others out of it. */
#define CACHE_PART  8u
#define SEALER_NICE 10

struct keys {
    struct qf_hash128 *all;
    size_t count;
};

/* ---- the name of a sealed file ---- */

/* A record's key names all that decides what the plan alone makes, too. */
static void name_tensor(struct qf_buf *buf, const qf_shard_file *file, uint32_t index)
{
    const struct qf_layout_tensor *tensor = &file->layout->tensors[index];
    struct qf_hash128 record = {0};
    if (tensor->plan != NULL)
        record = qf_record_key(file, (struct qf_record_id){index, 0}, 0);
    const uint64_t words[] = {
        tensor->src->off,
        tensor->src->size,
        (uint64_t)tensor->src->dtype << 32 | (uint64_t)tensor->out_dtype,
        tensor->plan != NULL ? 1 + tensor->plan->chunk_count : 0,
        record.low,
        record.high,
    };
    qf_buf_append(buf, words, sizeof words);
    const uint64_t source = tensor->source;
    if (source != 0) /* so that the key of a shard with one source is what it was */
        qf_buf_append(buf, &source, sizeof source);
}

/* Of everything that decides a byte of the view's file. An open computes it: words are
 * collected, then hashed at once. */
static int make_key(const qf_shard_file *file, struct qf_hash128 *out)
{
    const struct qf_layout *layout = file->layout;
    struct qf_hash128 header = qf_hash128(layout->header, layout->header_size);
    const uint64_t head[] = {
        SEALED_DOMAIN,     file->sources[0].id.low, file->sources[0].id.high,
        layout->file_size, layout->header_size,     header.low,
        header.high,       layout->span_count,      layout->tensor_count,
    };
    struct qf_buf buf = {0};
    qf_buf_append(&buf, head, sizeof head);
    for (size_t i = 1; i < file->source_count; i++)
        qf_buf_append(&buf, &file->sources[i].id, sizeof file->sources[i].id);
    for (size_t i = 0; i < layout->span_count; i++) {
        const struct qf_span *span = &layout->spans[i];
        const uint64_t words[] = {span->off, span->size,
                                  (uint64_t)span->kind << 32 | span->part,
                                  span->tensor};
        qf_buf_append(&buf, words, sizeof words);
    }
    for (uint32_t i = 0; i < layout->tensor_count; i++)
        name_tensor(&buf, file, i);
    int rc = buf.failed ? -ENOMEM : 0;
    if (rc == 0)
        *out = qf_hash128(buf.data, buf.size);
    qf_buf_fini(&buf);
    return rc;
}

/* ---- the list; with the lock held ---- */

static void list_add(struct qf_sealer *sealer, qf_shard_file *file)
{
    file->sealed.next = sealer->files;
    if (sealer->files != NULL)
        sealer->files->sealed.prev = file;
    sealer->files = file;
    file->sealed.listed = true;
}

static void list_remove(struct qf_sealer *sealer, qf_shard_file *file)
{
    if (file->sealed.prev != NULL)
        file->sealed.prev->sealed.next = file->sealed.next;
    else
        sealer->files = file->sealed.next;
    if (file->sealed.next != NULL)
        file->sealed.next->sealed.prev = file->sealed.prev;
}

static qf_shard_file *find_other(struct qf_sealer *sealer, const qf_shard_file *file)
{
    qf_shard_file *other = sealer->files;
    while (other != NULL &&
           (other == file || !qf_hash128_eq(other->sealed.key, file->sealed.key)))
        other = other->sealed.next;
    return other;
}

/* ---- reading ---- */

/* Gives the file a descriptor, taken over, unless it has one. */
static void set_fd(qf_shard_file *file, int fd)
{
    int none = -1;
    if (!atomic_compare_exchange_strong(&file->sealed.fd, &none, fd))
        close(fd);
}

static int open_sealed(const qf_shard_file *file)
{
    int fd = -1;
    int rc = qf_store_file_open(file->engine->store, file->sealed.key,
                                file->layout->file_size, &fd);
    return rc == 0 ? fd : -1;
}

int qf_shard_file_sealed_fd(const qf_shard_file *file)
{
    return atomic_load(&file->sealed.broken) ? -1 : atomic_load(&file->sealed.fd);
}

int qf_shard_file_digest(const qf_shard_file *file, uint64_t *out)
{
    bool known = qf_shard_file_sealed_fd(file) >= 0 &&
                 qf_store_file_digest(file->engine->store, file->sealed.key, out) == 0;
    return known ? 0 : -ENODATA;
}

bool qf_sealed_read(qf_shard_file *file, void *buf, size_t size, uint64_t off)
{
    int fd = qf_shard_file_sealed_fd(file);
    char *to = buf;
    size_t left = size;
    if (fd < 0)
        return false;
    while (left > 0) {
        ssize_t n = pread(fd, to, left, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            qf_log(QF_LOG_WARN, "a sealed shard cannot be read: %s",
                   n < 0 ? strerror(errno) : "it is too short");
            atomic_store(&file->sealed.broken, true);
            return false;
        }
        to += n;
        off += (uint64_t)n;
        left -= (size_t)n;
    }
    atomic_fetch_add(&file->engine->count.sealed_reads, 1);
    atomic_fetch_add(&file->engine->count.sealed_bytes, size);
    return true;
}

/* ---- writing ---- */

static bool stopped(const qf_engine *engine)
{
    return !atomic_load(&engine->sealer.on);
}

static int collect_keys(const qf_shard_file *file, struct keys *out)
{
    const struct qf_layout *layout = file->layout;
    size_t room = 1;
    for (uint32_t i = 0; i < layout->tensor_count; i++)
        if (layout->tensors[i].plan != NULL)
            room += (size_t)layout->tensors[i].plan->chunk_count +
                    (size_t)qf_seal_pieces(file, i);
    out->all = malloc(room * sizeof *out->all);
    if (out->all == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < layout->tensor_count; i++) {
        const struct qf_plan *plan = layout->tensors[i].plan;
        if (plan == NULL)
            continue;
        for (uint64_t n = 0; n < plan->chunk_count; n++)
            out->all[out->count++] =
                qf_record_key(file, (struct qf_record_id){i, n}, 0);
        for (uint64_t n = 0; n < qf_seal_pieces(file, i); n++)
            out->all[out->count++] =
                qf_record_key(file, (struct qf_record_id){i, QF_KEY_SEAL}, n);
    }
    return 0;
}

/* From the end: who reads a part of a shard mostly reads its beginning. */
static int probe_records(qf_shard_file *file)
{
    const struct qf_layout *layout = file->layout;
    for (size_t t = layout->tensor_count; t-- > 0;) {
        const struct qf_plan *plan = layout->tensors[t].plan;
        if (plan == NULL)
            continue;
        struct qf_record_id id = {(uint32_t)t, plan->chunk_count};
        while (id.number-- > 0) {
            struct qf_record record;
            if (stopped(file->engine))
                return -ECANCELED;
            if (!qf_record_peek(file, id, &record))
                return -ENOENT;
            qf_record_release(file->engine, &record);
        }
        if (!qf_seal_peek(file, id.tensor, NULL))
            return -ENOENT;
    }
    return 0;
}

static int check_room(const qf_shard_file *file)
{
    struct qf_store_stats stats;
    uint64_t size = file->layout->file_size;
    qf_store_stats(file->engine->store, &stats);
    bool fits =
        stats.bytes_limit == 0 || size <= stats.bytes_limit / CACHE_PART ||
        (stats.bytes < stats.bytes_limit && size <= stats.bytes_limit - stats.bytes);
    return fits ? 0 : -ENOSPC;
}

static int append_read(qf_store *store, qf_store_draft *draft,
                       const struct qf_read *read)
{
    size_t count;
    const struct iovec *pieces = qf_read_pieces(read, &count);
    for (size_t i = 0; i < count; i++) {
        int rc =
            qf_store_file_append(store, draft, pieces[i].iov_base, pieces[i].iov_len);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int append_all(qf_shard_file *file, qf_store_draft *draft)
{
    uint64_t off = 0;
    while (off < file->layout->file_size) {
        struct qf_read *read;
        if (stopped(file->engine))
            return -ECANCELED;
        int rc = qf_engine_read_stored(file, off, QF_FUSE_READ_SIZE_MAX, &read);
        if (rc != 0)
            return rc;
        rc = append_read(file->engine->store, draft, read);
        off += qf_read_size(read);
        qf_read_release(read);
        if (rc != 0)
            return rc;
    }
    return qf_shard_file_check(file);
}

static int write_file(qf_shard_file *file, const struct keys *keys)
{
    qf_store *store = file->engine->store;
    qf_store_draft *draft;
    int rc = qf_store_file_begin(store, file->sealed.key, file->origin,
                                 file->layout->file_size, &draft);
    if (rc != 0)
        return rc;
    rc = append_all(file, draft);
    if (rc != 0) {
        qf_store_file_abort(store, draft);
        return rc;
    }
    rc = qf_store_file_commit(store, draft, keys->all, keys->count);
    if (rc == 0)
        atomic_fetch_add(&file->engine->count.shards_sealed, 1);
    return rc;
}

/* Everybody who has the shard open reads the sealed file from now on. */
static void hand_out(qf_shard_file *file)
{
    struct qf_sealer *sealer = &file->engine->sealer;
    int fd = open_sealed(file);
    if (fd < 0)
        return;
    pthread_mutex_lock(&sealer->lock);
    for (qf_shard_file *f = sealer->files; f != NULL; f = f->sealed.next) {
        if (f == file || !qf_hash128_eq(f->sealed.key, file->sealed.key))
            continue;
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (copy >= 0)
            set_fd(f, copy);
    }
    set_fd(file, fd);
    pthread_mutex_unlock(&sealer->lock);
}

static int seal_shard(qf_shard_file *file)
{
    struct keys keys = {0};
    int rc = stopped(file->engine) ? -ECANCELED : 0;
    if (rc == 0) {
        qf_store_flush(file->engine->store);
        rc = probe_records(file);
    }
    if (rc == 0)
        rc = check_room(file);
    if (rc == 0)
        rc = collect_keys(file, &keys);
    if (rc == 0)
        rc = write_file(file, &keys);
    if (rc == 0 || rc == -EEXIST)
        hand_out(file);
    free(keys.all);
    return rc;
}

static void run_sealing(struct qf_task *task)
{
    qf_shard_file *file =
        (qf_shard_file *)((char *)task - offsetof(qf_shard_file, sealed.task));
    /* Of this thread alone, on Linux. */
    setpriority(PRIO_PROCESS, 0, SEALER_NICE);
    int rc = seal_shard(file);
    if (rc == 0)
        qf_log(QF_LOG_DEBUG, "sealed a shard of %llu bytes",
               (unsigned long long)file->layout->file_size);
    else if (rc != -ENOENT && rc != -EEXIST && rc != -ECANCELED)
        qf_log(QF_LOG_DEBUG, "a shard was not sealed: %s", strerror(-rc));
    if (rc == -ENOTSUP)
        atomic_store(&file->engine->sealer.on, false);
    qf_shard_file_unref(file);
}

/* ---- beginning and end ---- */

void qf_sealer_init(struct qf_sealer *sealer)
{
    *sealer = (struct qf_sealer){0};
    pthread_mutex_init(&sealer->lock, NULL);
}

void qf_sealer_stop(struct qf_sealer *sealer)
{
    pthread_mutex_lock(&sealer->lock);
    atomic_store(&sealer->on, false);
    pthread_mutex_unlock(&sealer->lock);
    qf_pool_free(sealer->pool);
}

void qf_sealer_fini(struct qf_sealer *sealer)
{
    assert(sealer->files == NULL);
    pthread_mutex_destroy(&sealer->lock);
}

void qf_engine_set_sealing(qf_engine *engine, bool on)
{
    struct qf_sealer *sealer = &engine->sealer;
    if (engine->store->ops->file_begin == NULL)
        on = false;
    pthread_mutex_lock(&sealer->lock);
    if (on && sealer->pool == NULL && qf_pool_new(1, &sealer->pool) != 0)
        on = false;
    atomic_store(&sealer->on, on);
    pthread_mutex_unlock(&sealer->lock);
}

/* Where nothing is encoded there is nothing that a cache saves: a flat file would be a
 * copy of the source, or several times as large. */
static bool has_records(const struct qf_layout *layout)
{
    for (size_t i = 0; i < layout->tensor_count; i++)
        if (layout->tensors[i].plan != NULL)
            return true;
    return false;
}

int qf_sealed_init(qf_shard_file *file)
{
    struct qf_sealer *sealer = &file->engine->sealer;
    file->sealed.task.run = run_sealing;
    atomic_init(&file->sealed.fd, -1);
    if (file->engine->store->ops->file_open == NULL ||
        file->layout->file_size < QF_SEALED_SIZE_MIN)
        return 0;
    int rc = make_key(file, &file->sealed.key);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&sealer->lock);
    list_add(sealer, file);
    pthread_mutex_unlock(&sealer->lock);
    int fd = open_sealed(file);
    if (fd >= 0)
        set_fd(file, fd);
    return 0;
}

bool qf_sealed_end(qf_shard_file *file)
{
    struct qf_sealer *sealer = &file->engine->sealer;
    if (!file->sealed.listed)
        return false;
    pthread_mutex_lock(&sealer->lock);
    bool seal = atomic_load(&sealer->on) && atomic_load(&file->sealed.fd) < 0 &&
                has_records(file->layout) &&
                atomic_exchange(&file->sealed.was_read, false);
    qf_shard_file *other = seal ? find_other(sealer, file) : NULL;
    if (other != NULL) {
        /* Not the last one; that one, or the sealing it is in, is to try again. */
        atomic_store(&other->sealed.was_read, true);
        seal = false;
    }
    if (seal) {
        atomic_store(&file->refs, 1);
        qf_pool_submit(sealer->pool, &file->sealed.task);
    } else {
        list_remove(sealer, file);
    }
    pthread_mutex_unlock(&sealer->lock);
    if (seal)
        return true; /* it may be gone already */
    int fd = atomic_load(&file->sealed.fd);
    if (fd >= 0)
        close(fd);
    return false;
}
