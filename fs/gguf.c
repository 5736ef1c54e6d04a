/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "view/gguf.h"

const struct qf_weight_set *qf_gguf_set(const struct qf_target *target)
{
    return &target->variant->model->sets[0];
}

char *qf_gguf_shard_path(const struct qf_place *place, const struct qf_target *target,
                         size_t index)
{
    char *dir = qf_path_parent(place->path);
    char *path = NULL;
    if (dir != NULL)
        path = qf_path_join(dir, qf_gguf_set(target)->shards[index].name);
    free(dir);
    return path;
}

/* The file is as old as its newest shard; all else is the first one's. */
static int set_attributes(qf_tree *tree, const struct qf_place *place, uint64_t id,
                          struct qf_target *out)
{
    const struct qf_weight_set *set = qf_gguf_set(out);
    struct stat st;
    char *path = qf_gguf_shard_path(place, out, 0);
    int rc =
        path != NULL ? qf_root_resolve(tree->options.root, path, NULL, &st) : -ENOMEM;
    free(path);
    if (rc != 0)
        return rc;
    int64_t newest = set->shards[0].ident.mtime_ns;
    for (size_t i = 1; i < set->shard_count; i++)
        if (set->shards[i].ident.mtime_ns > newest)
            newest = set->shards[i].ident.mtime_ns;
    st.st_mtim = (struct timespec){.tv_sec = newest / 1000000000,
                                   .tv_nsec = newest % 1000000000};
    qf_entry_set_stat(&out->entry, &st, id);
    qf_entry_set_size(&out->entry, out->file->size);
    return 0;
}

/* New when any shard is, or the plan, or the program that makes the bytes. */
static int set_generation(struct qf_target *out)
{
    const struct qf_weight_set *set = qf_gguf_set(out);
    const uint64_t revision = QF_CODEC_REVISION;
    struct qf_buf what = {0};
    qf_buf_append(&what, &out->file->digest, sizeof out->file->digest);
    qf_buf_append(&what, &revision, sizeof revision);
    out->source.size = 0;
    for (size_t i = 0; i < set->shard_count; i++) {
        const struct qf_model_shard *shard = &set->shards[i];
        qf_buf_append(&what, &shard->ident, sizeof shard->ident);
        qf_buf_append(&what, &shard->header->header_hash,
                      sizeof shard->header->header_hash);
        out->source.size += shard->ident.size;
    }
    int rc = what.failed ? -ENOMEM : 0;
    if (rc == 0)
        out->entry.generation = qf_generation_of(what.data, what.size);
    qf_buf_fini(&what);
    return rc;
}

int qf_gguf_resolve(qf_tree *tree, const struct qf_place *place, bool fresh,
                    uint64_t id, struct qf_target *out)
{
    if (!qf_gguf_is_view(place->view) || !qf_path_ends_with(place->path, ".gguf"))
        return -ENOENT;
    char *dir = qf_path_parent(place->path);
    if (dir == NULL)
        return -ENOMEM;
    int rc = qf_catalog_get(tree->catalog, dir, place->view, fresh, &out->snapshot,
                            &out->variant);
    free(dir);
    if (rc != 0)
        return rc == -ENOTDIR ? -ENOENT : rc;
    out->file = qf_variant_find(out->variant, qf_path_name(place->path));
    rc = out->file == NULL || out->file->kind != QF_VARIANT_GGUF ? -ENOENT : 0;
    if (rc == 0)
        rc = set_attributes(tree, place, id, out);
    return rc == 0 ? set_generation(out) : rc; /* the caller lets go */
}

int qf_gguf_shard_id(qf_tree *tree, const struct qf_place *place,
                     const struct qf_target *target, size_t index,
                     struct qf_hash128 *out)
{
    struct stat st;
    char *real = NULL;
    char *path = qf_gguf_shard_path(place, target, index);
    int rc =
        path != NULL ? qf_root_resolve(tree->options.root, path, &real, &st) : -ENOMEM;
    if (rc == 0)
        *out = qf_shard_id(real, &qf_gguf_set(target)->shards[index]);
    free(real);
    free(path);
    return rc;
}
