/* SPDX-License-Identifier: Apache-2.0 */
/* Checksums prove that a value is what was written, not that the right thing was. So a
 * sample is read twice, by two engines that share no store: one that never encodes and
 * one that has nothing to look up. A view is the one of its name with default settings
 * and the model's own quantfs.json; values made by other settings (-o policy=FILE) have
 * other keys and are not met. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "cli/cache.h"
#include "engine/engine.h"
#include "view/variant.h"

#define SAMPLES_OF_SHARD 32u
#define SAMPLE_SIZE      (64u << 10)

struct deep {
    const struct qf_cache_args *args;
    const struct qf_admin_origin *origin;
    struct qf_cache_deep *out;
    qf_root *root;
    qf_backend *backend;
    qf_store *nothing;
    qf_engine *engine_kept;
    qf_engine *engine_anew;
    qf_shard_file *kept;
    qf_shard_file *anew;
    unsigned char bytes[2][SAMPLE_SIZE];
};

static void nothing_to_release(void *owner)
{
    (void)owner;
}

static void take_pieces(struct qf_read *read, unsigned char *out, size_t *size)
{
    size_t count;
    const struct iovec *pieces = qf_read_pieces(read, &count);
    *size = 0;
    for (size_t i = 0; i < count; i++) {
        memcpy(out + *size, pieces[i].iov_base, pieces[i].iov_len);
        *size += pieces[i].iov_len;
    }
    qf_read_release(read);
}

/* -ENOENT: not kept. */
static int read_kept(struct deep *d, uint64_t off, size_t size, size_t *got)
{
    struct qf_read *read;
    int fd = qf_shard_file_sealed_fd(d->kept);
    if (fd >= 0) {
        ssize_t n = pread(fd, d->bytes[0], size, (off_t)off);
        *got = n > 0 ? (size_t)n : 0;
        return n < 0 ? -errno : 0;
    }
    int rc = qf_engine_read_stored(d->kept, off, size, &read);
    if (rc == 0)
        take_pieces(read, d->bytes[0], got);
    return rc;
}

static int compare(struct deep *d, const char *name, uint64_t off, size_t size)
{
    struct qf_read *read;
    size_t got[2];
    int rc = read_kept(d, off, size, &got[0]);
    if (rc != 0)
        return rc == -ENOENT ? 0 : rc;
    rc = qf_engine_read(d->anew, off, size, &read);
    if (rc != 0)
        return rc;
    take_pieces(read, d->bytes[1], &got[1]);
    d->out->samples++;
    d->out->bytes += got[1];
    if (got[0] == got[1] && memcmp(d->bytes[0], d->bytes[1], got[1]) == 0)
        return 0;
    d->out->different++;
    if (!d->args->json)
        printf("different: %s %s/%s/%s at byte %llu\n", d->origin->view,
               d->origin->store, d->origin->model, name, (unsigned long long)off);
    return 0;
}

static bool is_encoded(const struct qf_layout *layout, const struct qf_span *span)
{
    return span->kind == QF_SPAN_PART &&
           layout->tensors[span->tensor].plan->parts[span->part].stage != QF_STAGE_PLAN;
}

/* Some spans, spread evenly, a piece out of the middle of each. */
static int compare_shard(struct deep *d, const char *name,
                         const struct qf_layout *layout)
{
    size_t encoded = 0, taken = 0;
    for (size_t i = 0; i < layout->span_count; i++)
        encoded += is_encoded(layout, &layout->spans[i]);
    size_t step = encoded / SAMPLES_OF_SHARD + 1;
    int rc = 0;
    for (size_t i = 0; i < layout->span_count && rc == 0; i++) {
        const struct qf_span *span = &layout->spans[i];
        if (!is_encoded(layout, span) || taken++ % step != 0)
            continue;
        uint64_t size = span->size < SAMPLE_SIZE ? span->size : SAMPLE_SIZE;
        rc = compare(d, name, span->off + (span->size - size) / 2, (size_t)size);
    }
    return rc;
}

static int open_pair(struct deep *d, const qf_srcfile *src,
                     const struct qf_layout *layout, struct qf_hash128 source)
{
    const struct qf_shard_source sources[] = {{src, source}};
    int rc = qf_shard_file_open(d->engine_kept, layout, sources, 1, 0,
                                nothing_to_release, NULL, &d->kept);
    if (rc == 0)
        rc = qf_shard_file_open(d->engine_anew, layout, sources, 1, 0,
                                nothing_to_release, NULL, &d->anew);
    return rc;
}

static int make_engines(struct deep *d)
{
    const struct qf_engine_options kept = {.backend = d->backend,
                                           .store = d->args->store,
                                           .thread_count = 1,
                                           .memory_limit = QF_ENGINE_MEMORY_MIN};
    struct qf_engine_options anew = kept;
    anew.store = d->nothing;
    int rc = qf_engine_new(&kept, &d->engine_kept);
    return rc != 0 ? rc : qf_engine_new(&anew, &d->engine_anew);
}

/* Engines last as long as a shard: what they hold borrows from it. */
static void close_pair(struct deep *d)
{
    if (d->kept != NULL)
        qf_shard_file_close(d->kept);
    if (d->anew != NULL)
        qf_shard_file_close(d->anew);
    qf_engine_free(d->engine_kept);
    qf_engine_free(d->engine_anew);
    d->kept = d->anew = NULL;
    d->engine_kept = d->engine_anew = NULL;
}

static int check_file(struct deep *d, const struct qf_variant_file *file)
{
    const struct qf_model_shard *shard = file->source;
    struct qf_buf buf = {0};
    qf_srcfile *src = NULL;
    char *real = NULL;
    struct stat st;
    qf_buf_appendf(&buf, "%s%s%s", d->origin->model,
                   d->origin->model[0] != '\0' ? "/" : "", shard->name);
    char *path = qf_buf_take(&buf, NULL);
    int rc = path != NULL ? qf_root_resolve(d->root, path, &real, &st) : -ENOMEM;
    if (rc == 0)
        rc = qf_srcfile_open(d->root, path, &src, NULL);
    if (rc == 0 && !qf_ident_eq(qf_srcfile_ident(src), &shard->ident))
        rc = -ESTALE;
    if (rc == 0)
        rc = make_engines(d);
    if (rc == 0) {
        struct qf_hash128 header = shard->header->header_hash, id;
        if (!qf_source_id_of_blob(real, shard->ident.size, header, &id))
            id = qf_source_id(&shard->ident, header);
        rc = open_pair(d, src, file->layout, id);
    }
    if (rc == 0)
        rc = compare_shard(d, file->name, file->layout);
    close_pair(d);
    qf_srcfile_close(src);
    free(real);
    free(path);
    return rc;
}

static int check_model(struct deep *d, const struct qf_view *view)
{
    struct qf_model *model = NULL;
    struct qf_variant *variant = NULL;
    int rc = qf_root_open(d->origin->store, &d->root, NULL);
    if (rc == 0)
        rc = qf_model_load(d->root, d->origin->model, &model, NULL);
    if (rc == 0)
        rc = qf_variant_new(model, view, &variant);
    if (rc == 0)
        rc = qf_cpu_backend_open(NULL, &d->backend, NULL);
    if (rc == 0)
        rc = qf_store_mem_open(0, &d->nothing);
    for (size_t i = 0; rc == 0 && i < variant->file_count; i++) {
        if (variant->files[i].kind == QF_VARIANT_SHARD)
            rc = check_file(d, &variant->files[i]);
    }
    qf_store_close(d->nothing);
    qf_backend_close(d->backend);
    qf_variant_free(variant);
    qf_model_free(model);
    qf_root_close(d->root);
    return rc;
}

int qf_cache_deep(const struct qf_cache_args *args,
                  const struct qf_admin_origin *origin, struct qf_cache_deep *out)
{
    struct qf_view view;
    *out = (struct qf_cache_deep){0};
    /* A GGUF file is no shard of one source. */
    if (qf_view_parse(origin->view, strlen(origin->view), &view, NULL) != 0 ||
        qf_codec_info(view.codec)->family == QF_FAMILY_GGUF) {
        out->skipped = 1;
        return 0;
    }
    struct deep *d = calloc(1, sizeof *d);
    if (d == NULL)
        return -ENOMEM;
    d->args = args;
    d->origin = origin;
    d->out = out;
    int rc = check_model(d, &view);
    free(d);
    if (rc == -ENOMEM)
        return rc;
    /* A source that is gone, changes, or cannot be read tells nothing of the cache. */
    out->skipped = rc != 0;
    return 0;
}
