/* SPDX-License-Identifier: Apache-2.0 */
/* Names that are not ours are answered before anything is looked up: the kernel and
 * tools ask for security.* and system.* of every file. */
#include "fs/xattr.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fs/file.h"
#include "fs/gguf.h"
#include "fs/tree_private.h"
#include "quant/gguf.h"

#define NAMESPACE "user."
#define PREFIX    NAMESPACE "quantfs."

enum attribute {
    ATTR_CODEC,
    ATTR_SETTINGS,
    ATTR_SOURCE,
    ATTR_SIZE_SOURCE,
    ATTR_KEY,
    ATTR_DIGEST,
    ATTR_REASON, /* from here on not listed */
    ATTR_VIEW,
    ATTR_COUNT
};

static const char *const names[ATTR_COUNT] = {
    [ATTR_CODEC] = "codec",   [ATTR_SETTINGS] = "settings",
    [ATTR_SOURCE] = "source", [ATTR_SIZE_SOURCE] = "size_source",
    [ATTR_KEY] = "key",       [ATTR_DIGEST] = "digest",
    [ATTR_REASON] = "reason", [ATTR_VIEW] = "view",
};

static enum attribute find_attribute(const char *name)
{
    int i = 0;
    while (i < ATTR_COUNT && strcmp(names[i], name) != 0)
        i++;
    return (enum attribute)i;
}

/* ---- values ---- */

/* D is that of the shard's own weights; a config.json speaks for the first set. */
static enum qf_dtype dtype_of(const struct qf_variant *variant,
                              const struct qf_variant_file *file)
{
    const struct qf_layout *layout = file != NULL ? file->layout : NULL;
    for (size_t i = 0; layout != NULL && i < layout->tensor_count; i++)
        if (layout->tensors[i].plan != NULL)
            return layout->tensors[i].plan->spec.dtype;
    return variant->policies[0].dtype;
}

static const char *storage_name(enum qf_dtype storage)
{
    return storage == QF_U8 ? "uint8" : qf_dtype_torch_name(storage);
}

static void append_4bit(const struct qf_view *view, enum qf_dtype dtype,
                        struct qf_buf *out)
{
    enum qf_dtype compute = view->compute != QF_DTYPE_NONE ? view->compute : dtype;
    qf_buf_appendf(out, ",compute_dtype=%s,blocksize=%" PRIu32 ",quant_storage=%s",
                   qf_dtype_torch_name(compute), view->blocksize,
                   storage_name(view->storage));
    if (view->codec == QF_CODEC_DQ)
        qf_buf_appendf(out, ",nested_blocksize=%u", QF_NESTED_BLOCKSIZE);
}

static void append_patterns(const char *key, const struct qf_patterns *patterns,
                            struct qf_buf *out)
{
    for (size_t i = 0; i < patterns->count; i++)
        qf_buf_appendf(out, "%s%s%s", i == 0 ? "," : ":", i == 0 ? key : "",
                       patterns->items[i]);
}

static void append_settings(const struct qf_variant *variant, enum qf_dtype dtype,
                            struct qf_buf *out)
{
    const struct qf_view *view = &variant->view;
    qf_buf_appendf(out, "dtype=%s", qf_dtype_torch_name(dtype));
    switch (qf_codec_info(view->codec)->family) {
    case QF_FAMILY_PLAIN:
        return;
    case QF_FAMILY_GGUF:
        qf_buf_appendf(out, ",type=%s", qf_gguf_info(view->codec)->name);
        break;
    case QF_FAMILY_BNB_4BIT:
        append_4bit(view, dtype, out);
        break;
    case QF_FAMILY_BNB_INT8:
        qf_buf_appendf(out, ",int8_threshold=%g", view->int8_threshold);
        break;
    default:
        if (view->group != 0)
            qf_buf_appendf(out, ",group=%" PRIu32, view->group);
    }
    append_patterns("only=", &view->only, out);
    append_patterns("skip=", &view->skip, out);
    append_patterns("force=", &view->force, out);
}

/* Of all shards of a GGUF file. */
static int hash_sources(qf_tree *tree, const struct qf_place *place,
                        const struct qf_target *target, struct qf_hash128 *out)
{
    struct qf_hash128 id = {0};
    struct qf_buf ids = {0};
    int rc = 0;
    for (size_t i = 0; i < qf_gguf_set(target)->shard_count && rc == 0; i++) {
        rc = qf_gguf_shard_id(tree, place, target, i, &id);
        qf_buf_append(&ids, &id, sizeof id);
    }
    if (rc == 0 && ids.failed)
        rc = -ENOMEM;
    if (rc == 0)
        *out = qf_hash128(ids.data, ids.size);
    qf_buf_fini(&ids);
    return rc;
}

/* A text's digest is that of its bytes; a shard's has everything but the weights. */
static int append_key(qf_tree *tree, const struct qf_place *place,
                      const struct qf_target *target, struct qf_buf *out)
{
    struct {
        struct qf_hash128 digest, source;
        uint64_t revision;
    } what = {.digest = target->file->digest};
    if (target->file->kind == QF_VARIANT_SHARD) {
        what.source = qf_target_source_id(target);
        what.revision = QF_CODEC_REVISION;
    } else if (target->file->kind == QF_VARIANT_GGUF) {
        int rc = hash_sources(tree, place, target, &what.source);
        if (rc != 0)
            return rc;
        what.revision = QF_CODEC_REVISION;
    }
    struct qf_hash128 key = qf_hash128(&what, sizeof what);
    qf_buf_appendf(out, "%016" PRIx64 "%016" PRIx64, key.high, key.low);
    return 0;
}

static int get_of_directory(qf_tree *tree, const struct qf_place *place,
                            enum attribute attribute, struct qf_buf *out)
{
    qf_snapshot *snapshot;
    const struct qf_variant *variant;
    if (attribute != ATTR_CODEC && attribute != ATTR_SETTINGS &&
        attribute != ATTR_REASON)
        return -ENODATA;
    int rc = qf_catalog_get(tree->catalog, place->path, place->view, false, &snapshot,
                            &variant);
    if (rc != 0)
        return rc;
    const struct qf_model *model = variant->model;
    bool passes = variant->reason[0] != '\0';
    bool is_model = model->kind != QF_MODEL_NONE || model->reason[0] != '\0';
    if (attribute == ATTR_REASON && is_model)
        qf_buf_append_str(out, variant->reason);
    else if (attribute == ATTR_CODEC && !passes)
        qf_buf_append_str(out, qf_codec_name(variant->view.codec));
    else if (attribute == ATTR_SETTINGS && !passes)
        append_settings(variant, dtype_of(variant, NULL), out);
    qf_snapshot_release(snapshot);
    return out->size != 0 ? 0 : -ENODATA;
}

/* What there is to know of the bytes is known to who has them open. */
static int append_digest(qf_tree *tree, uint64_t id, struct qf_buf *out)
{
    qf_file *file;
    uint64_t digest;
    int rc = qf_file_open(tree, id, &file);
    if (rc != 0)
        return rc;
    rc = qf_file_digest(file, &digest);
    qf_file_close(file);
    if (rc == 0)
        qf_buf_appendf(out, "xxh3:%016" PRIx64, digest);
    return rc;
}

static int get_of_file(qf_tree *tree, uint64_t id, const struct qf_place *place,
                       const struct qf_target *target, enum attribute attribute,
                       struct qf_buf *out)
{
    if (attribute == ATTR_SOURCE && target->file != NULL &&
        target->file->kind == QF_VARIANT_GGUF) {
        char *dir = qf_path_parent(place->path);
        qf_buf_append_str(out, dir != NULL ? dir : "");
        free(dir);
        return dir != NULL ? 0 : -ENOMEM;
    }
    if (attribute == ATTR_SOURCE) {
        qf_buf_append_str(out, place->path);
        return 0;
    }
    if (target->file == NULL)
        return -ENODATA;
    switch (attribute) {
    case ATTR_CODEC:
        qf_buf_append_str(out, qf_codec_name(target->variant->view.codec));
        return 0;
    case ATTR_SETTINGS:
        append_settings(target->variant, dtype_of(target->variant, target->file), out);
        return 0;
    case ATTR_SIZE_SOURCE:
        qf_buf_appendf(out, "%" PRIu64, target->source.size);
        return 0;
    case ATTR_KEY:
        return append_key(tree, place, target, out);
    case ATTR_DIGEST:
        return append_digest(tree, id, out);
    default:
        return -ENODATA;
    }
}

/* ---- by id ---- */

/* -ESTALE, as for getattr, for what is no longer what the kernel was told of. */
static int resolve(qf_tree *tree, uint64_t id, struct qf_place *place,
                   struct qf_target *target)
{
    uint64_t generation;
    int rc = qf_tree_place(tree, id, place, &generation);
    if (rc != 0)
        return rc;
    rc = qf_tree_resolve(tree, place, false, target);
    if (rc == 0) {
        rc = qf_tree_check_generation(tree, id, generation, target->entry.generation);
        if (rc != 0)
            qf_target_fini(target);
    }
    if (rc != 0)
        free(place->path);
    return rc == -ENOENT ? -ESTALE : rc;
}

int qf_xattr_get(qf_tree *tree, uint64_t id, const char *name, struct qf_buf *out)
{
    assert(out->size == 0);
    if (strncmp(name, NAMESPACE, strlen(NAMESPACE)) != 0)
        return -EOPNOTSUPP;
    enum attribute attribute = ATTR_COUNT;
    if (strncmp(name, PREFIX, strlen(PREFIX)) == 0)
        attribute = find_attribute(name + strlen(PREFIX));
    if (attribute == ATTR_COUNT)
        return -ENODATA;
    struct qf_place place;
    struct qf_target target;
    int rc = resolve(tree, id, &place, &target);
    if (rc != 0)
        return rc;
    if (!qf_place_is_in_view(&place))
        rc = -ENODATA;
    else if (attribute == ATTR_VIEW)
        qf_buf_append_str(out, place.view);
    else if (S_ISDIR(target.entry.st.st_mode))
        rc = get_of_directory(tree, &place, attribute, out);
    else
        rc = get_of_file(tree, id, &place, &target, attribute, out);
    qf_target_fini(&target);
    free(place.path);
    return rc == 0 && out->failed ? -ENOMEM : rc;
}

int qf_xattr_list(qf_tree *tree, uint64_t id, struct qf_buf *out)
{
    struct qf_place place;
    struct qf_target target;
    int rc = resolve(tree, id, &place, &target);
    if (rc != 0)
        return rc;
    bool file = qf_place_is_in_view(&place) && !S_ISDIR(target.entry.st.st_mode);
    for (int i = 0; file && i < ATTR_REASON; i++) {
        if (target.file == NULL && i != ATTR_SOURCE)
            continue;
        struct qf_buf ignored = {0};
        bool unknown = i == ATTR_DIGEST && append_digest(tree, id, &ignored) != 0;
        qf_buf_fini(&ignored);
        if (unknown)
            continue;
        qf_buf_appendf(out, PREFIX "%s", names[i]);
        qf_buf_append(out, "", 1);
    }
    qf_target_fini(&target);
    free(place.path);
    return out->failed ? -ENOMEM : 0;
}
