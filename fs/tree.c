/* SPDX-License-Identifier: Apache-2.0 */
/* Everything is found out from the store when it is asked for; the kernel caches what
 * we answer, and the catalog caches models. Nothing here is remembered between calls
 * but which path an id stands for. */
#include "fs/tree.h"

#include <assert.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "fs/gguf.h"
#include "fs/status.h"
#include "fs/tree_private.h"

/* NFS handles carry 32 bits of it; 0 means "unknown" to us. */
uint64_t qf_generation_of(const void *data, size_t size)
{
    return (qf_hash64(data, size) & 0x7fffffff) | 1;
}

/* ---- what is at a place ---- */

void qf_entry_set_stat(struct qf_entry *entry, const struct stat *source, uint64_t id)
{
    entry->st = *source;
    entry->st.st_ino = id;
    entry->st.st_mode = source->st_mode & (S_IFMT | 0555);
    entry->st.st_nlink = S_ISDIR(source->st_mode) ? 2 : 1;
    entry->st.st_blksize = 4096;
}

void qf_entry_set_size(struct qf_entry *entry, uint64_t size)
{
    entry->st.st_size = (off_t)size;
    entry->st.st_blocks = (blkcnt_t)((size + 511) / 512);
}

const char *const qf_control_names[QF_CONTROL_COUNT] = {
    [QF_CONTROL_STATUS] = "status",
    [QF_CONTROL_METRICS] = "metrics",
};

enum qf_control qf_control_find(const char *name)
{
    int i = 0;
    while (i < QF_CONTROL_COUNT && strcmp(qf_control_names[i], name) != 0)
        i++;
    return (enum qf_control)i;
}

static int resolve_control(qf_tree *tree, const struct qf_place *place, uint64_t id,
                           struct qf_target *out)
{
    struct stat st;
    int rc = qf_root_resolve(tree->options.root, "", NULL, &st);
    if (rc != 0)
        return rc;
    bool file = qf_control_find(place->path) != QF_CONTROL_COUNT;
    if (!file && place->path[0] != '\0')
        return -ENOENT;
    if (file)
        st.st_mode = S_IFREG | 0444;
    qf_entry_set_stat(&out->entry, &st, id);
    qf_entry_set_size(&out->entry, 0);
    return 0;
}

/* Only files of these names can be changed by a view. */
static bool may_be_changed(const char *name)
{
    return strcmp(name, "config.json") == 0 || strstr(name, ".safetensors") != NULL;
}

static const struct qf_ident *source_ident(const struct qf_variant *variant,
                                           const struct qf_variant_file *file)
{
    switch (file->kind) {
    case QF_VARIANT_CONFIG:
        return &variant->model->config_ident;
    case QF_VARIANT_SHARD:
        return &file->source->ident;
    case QF_VARIANT_INDEX:
        for (size_t i = 0; i < variant->model->set_count; i++)
            if (variant->model->sets[i].index_name == file->name)
                return &variant->model->sets[i].index_ident;
        break;
    case QF_VARIANT_GGUF:
        break;
    }
    return NULL;
}

/* Finds the file in its directory's variant; a catalog that knows another version of it
 * is made to look again. */
static int find_in_variant(qf_tree *tree, const struct qf_place *place, bool fresh,
                           struct qf_target *out)
{
    char *dir = qf_path_parent(place->path);
    if (dir == NULL)
        return -ENOMEM;
    int rc = 0;
    for (int attempt = 0; attempt < 2; attempt++) {
        const struct qf_variant *variant;
        rc = qf_catalog_get(tree->catalog, dir, place->view, fresh || attempt > 0,
                            &out->snapshot, &variant);
        if (rc != 0)
            break;
        if (qf_variant_hides(variant, qf_path_name(place->path))) {
            rc = -ENOENT;
            break;
        }
        const struct qf_variant_file *file =
            qf_variant_find(variant, qf_path_name(place->path));
        if (file != NULL && file->kind == QF_VARIANT_GGUF)
            file = NULL; /* the store's own file of that name */
        const struct qf_ident *known =
            file != NULL ? source_ident(variant, file) : NULL;
        if (file == NULL || (known != NULL && qf_ident_eq(known, &out->source))) {
            out->file = file;
            out->variant = variant;
            break;
        }
        qf_snapshot_release(out->snapshot);
        out->snapshot = NULL;
        rc = -ESTALE;
    }
    if (out->file == NULL) {
        qf_snapshot_release(out->snapshot);
        out->snapshot = NULL;
    }
    free(dir);
    return rc;
}

/* A view's contents are new when the source is, or what the plan makes of it, or what
 * another program makes of the plan (a mount outlives programs). */
static void set_changed(struct qf_target *out)
{
    const struct qf_variant_file *file = out->file;
    struct {
        struct qf_hash128 digest, header;
        struct qf_ident source;
        uint64_t revision;
    } what = {.digest = file->digest};
    if (file->kind == QF_VARIANT_SHARD) {
        what.revision = QF_CODEC_REVISION;
        what.header = file->source->header->header_hash;
        what.source = out->source;
    }
    qf_entry_set_size(&out->entry, file->size);
    out->entry.generation = qf_generation_of(&what, sizeof what);
}

static int resolve_store(qf_tree *tree, const struct qf_place *place, bool fresh,
                         uint64_t id, struct qf_target *out)
{
    struct stat st;
    int rc = qf_root_resolve(tree->options.root, place->path, &out->real, &st);
    if (rc == -ENOENT)
        return qf_gguf_resolve(tree, place, fresh, id, out);
    if (rc != 0)
        return rc;
    if (S_ISDIR(st.st_mode)) {
        rc = qf_tree_check_loop(tree, place->path, out->real);
        qf_entry_set_stat(&out->entry, &st, id);
        return rc;
    }
    if (!S_ISREG(st.st_mode))
        return -ENOENT;
    qf_entry_set_stat(&out->entry, &st, id);
    out->source = qf_ident_of(&st);
    if (may_be_changed(qf_path_name(place->path)))
        rc = find_in_variant(tree, place, fresh, out);
    if (out->file != NULL)
        set_changed(out);
    else
        out->entry.generation = qf_generation_of(&out->source, sizeof out->source);
    return rc;
}

int qf_tree_resolve(qf_tree *tree, const struct qf_place *place, bool fresh,
                    struct qf_target *out)
{
    *out = (struct qf_target){.entry.generation = 1};
    uint64_t id = qf_node_id(place->view, place->path);
    int rc;
    if (qf_place_is_control(place)) {
        rc = resolve_control(tree, place, id, out);
    } else if (qf_place_is_root(place)) {
        struct stat st;
        rc = qf_root_resolve(tree->options.root, "", NULL, &st);
        if (rc == 0)
            qf_entry_set_stat(&out->entry, &st, QF_NODE_ROOT);
    } else {
        rc = resolve_store(tree, place, fresh, id, out);
    }
    if (rc != 0)
        qf_target_fini(out);
    return rc;
}

struct qf_hash128 qf_shard_id(const char *real, const struct qf_model_shard *shard)
{
    struct qf_hash128 header = shard->header->header_hash, id;
    if (!qf_source_id_of_blob(real, shard->ident.size, header, &id))
        id = qf_source_id(&shard->ident, header);
    return id;
}

struct qf_hash128 qf_target_source_id(const struct qf_target *target)
{
    return qf_shard_id(target->real, target->file->source);
}

void qf_target_fini(struct qf_target *target)
{
    free(target->real);
    qf_snapshot_release(target->snapshot);
    target->real = NULL;
    target->snapshot = NULL;
    target->file = NULL;
    target->variant = NULL;
}

/* ---- ids ---- */

int qf_tree_place(qf_tree *tree, uint64_t id, struct qf_place *place,
                  uint64_t *generation)
{
    *generation = 0;
    if (id == QF_NODE_ROOT) {
        *place = (struct qf_place){.path = strdup("")};
        return place->path != NULL ? 0 : -ENOMEM;
    }
    int rc = qf_node_find(&tree->nodes, id, place, generation);
    if (rc != -ENOENT)
        return rc;
    /* A handle from before a restart: the id alone must lead to the path. */
    pthread_mutex_lock(&tree->search_lock);
    rc = qf_tree_search(tree, id, place);
    pthread_mutex_unlock(&tree->search_lock);
    return rc == -ENOENT ? -ESTALE : rc;
}

/* The place of `name` in the directory at `parent`. */
static int child_place(qf_tree *tree, const struct qf_place *parent, const char *name,
                       struct qf_place *out)
{
    int rc = 0;
    strcpy(out->view, parent->view);
    out->path = NULL;
    if (strcmp(name, ".") == 0) {
        out->path = strdup(parent->path);
    } else if (strcmp(name, "..") == 0) {
        if (parent->path[0] == '\0')
            out->view[0] = '\0';
        out->path = qf_path_parent(parent->path);
    } else if (qf_place_is_root(parent)) {
        if (strcmp(name, QF_CONTROL_DIR) == 0)
            strcpy(out->view, name);
        else
            rc = qf_views_find(&tree->views, name, out->view);
        if (rc != 0)
            return rc;
        out->path = strdup("");
    } else {
        out->path = qf_path_join(parent->path, name);
    }
    return out->path != NULL ? 0 : -ENOMEM;
}

/* Repositories that hold a 4-bit copy of another one are called like this: somebody who
 * asks for the copy gets what a view makes of the original. Changes the place to that
 * of the original's name; false: it is no such name. */
static bool strip_alias(const struct qf_place *place)
{
    static const char suffix[] = "-bnb-4bit";
    size_t size = strlen(qf_path_name(place->path)), n = sizeof suffix - 1;
    char *end = place->path + strlen(place->path);
    struct qf_view view;
    if (!qf_place_is_in_view(place) || size <= n || strcmp(end - n, suffix) != 0 ||
        qf_view_parse(place->view, strlen(place->view), &view, NULL) != 0 ||
        qf_codec_info(view.codec)->family != QF_FAMILY_BNB_4BIT)
        return false;
    end[-(ptrdiff_t)n] = '\0';
    return true;
}

/* What the place is, or what the name that it is an alias of leads to. */
static int resolve_name(qf_tree *tree, struct qf_place *place, struct qf_target *out)
{
    int rc = qf_tree_resolve(tree, place, false, out);
    if (rc != -ENOENT || !tree->options.alias_bnb || !strip_alias(place))
        return rc;
    rc = qf_tree_resolve(tree, place, false, out);
    if (rc == 0 && !S_ISDIR(out->entry.st.st_mode)) {
        qf_target_fini(out);
        rc = -ENOENT;
    }
    return rc;
}

int qf_tree_lookup(qf_tree *tree, uint64_t parent, const char *name,
                   struct qf_entry *out)
{
    struct qf_place dir, place = {0};
    uint64_t generation;
    if (name[0] == '\0' || strchr(name, '/') != NULL)
        return -EINVAL; /* would be a second name of something else */
    uint64_t ticket = qf_node_ticket(&tree->nodes);
    int rc = qf_tree_place(tree, parent, &dir, &generation);
    if (rc != 0)
        return rc;
    struct qf_target target = {0};
    rc = child_place(tree, &dir, name, &place);
    if (rc == 0)
        rc = resolve_name(tree, &place, &target);
    if (rc == 0) {
        *out = target.entry;
        if (out->st.st_ino != QF_NODE_ROOT)
            rc = qf_node_remember(&tree->nodes, ticket, out->st.st_ino, place.view,
                                  place.path, out->generation);
        qf_target_fini(&target);
    }
    free(dir.path);
    free(place.path);
    return rc;
}

int qf_tree_check_generation(qf_tree *tree, uint64_t id, uint64_t told, uint64_t now)
{
    if (told == 0 || told == now)
        return 0;
    /* Once: a lookup may be on its way that will end the doubt. */
    if (told != QF_GENERATION_UNSURE)
        qf_node_doubt(&tree->nodes, id);
    return -ESTALE;
}

void qf_tree_forget(qf_tree *tree, uint64_t id, uint64_t count)
{
    qf_node_forget(&tree->nodes, id, count);
}

int qf_tree_getattr(qf_tree *tree, uint64_t id, struct qf_entry *out)
{
    struct qf_place place;
    uint64_t generation;
    int rc = qf_tree_place(tree, id, &place, &generation);
    if (rc != 0)
        return rc;
    struct qf_target target;
    rc = qf_tree_resolve(tree, &place, false, &target);
    if (rc == 0) {
        *out = target.entry;
        rc = qf_tree_check_generation(tree, id, generation, out->generation);
        qf_target_fini(&target);
    }
    free(place.path);
    return rc == -ENOENT ? -ESTALE : rc;
}

char *qf_tree_name(qf_tree *tree, uint64_t id)
{
    struct qf_place place;
    uint64_t generation;
    if (qf_node_find(&tree->nodes, id, &place, &generation) != 0)
        return strdup("");
    char *name = qf_path_join(place.view, place.path);
    free(place.path);
    return name;
}

/* ---- the tree ---- */

/* A view that this mount has not (it was begun with others, or the policy forbids one)
 * takes its nodes with it: who holds one is told so. */
static int restore_node(void *arg, uint64_t id, const void *data, size_t size)
{
    qf_tree *tree = arg;
    const struct qf_node_record *record = data;
    if (size < sizeof *record)
        return -EBADMSG;
    const char *view = (const char *)(record + 1);
    size_t names_size = size - sizeof *record;
    if (record->view_size == 0 || record->view_size >= names_size ||
        view[record->view_size - 1] != '\0' || view[names_size - 1] != '\0')
        return -EBADMSG;
    const char *path = view + record->view_size;
    if (qf_node_id(view, path) != id)
        return -EBADMSG;
    char found[QF_VIEW_NAME_SIZE];
    int rc = strcmp(view, QF_CONTROL_DIR) != 0
                 ? qf_views_find(&tree->views, view, found)
                 : 0;
    if (rc != 0)
        return rc == -ENOENT ? 0 : rc;
    return qf_node_restore(&tree->nodes, id, view, path, record->generation,
                           record->unsure != 0);
}

int qf_tree_keep(qf_tree *tree, qf_journal *journal, bool restore)
{
    tree->resumed = restore;
    int rc =
        restore ? qf_journal_each(journal, QF_JOURNAL_NODE, restore_node, tree) : 0;
    if (rc == 0)
        qf_node_keep(&tree->nodes, journal);
    return rc;
}

void qf_tree_keep_nothing(qf_tree *tree)
{
    qf_node_keep(&tree->nodes, NULL);
}

void qf_tree_set_policy(qf_tree *tree, const char *policy, size_t size)
{
    qf_views_set_policy(&tree->views, policy, size);
}

void qf_tree_status(qf_tree *tree, struct qf_buf *out)
{
    qf_status_text(&tree->options, tree->catalog, out);
}

qf_metrics *qf_tree_metrics(qf_tree *tree)
{
    return tree->metrics;
}

int qf_tree_statfs(qf_tree *tree, struct statvfs *out)
{
    /* By descriptor: the store's path may lead through the mount itself. */
    int fd = qf_root_opendir(tree->options.root, "");
    if (fd < 0)
        return fd;
    int rc = fstatvfs(fd, out) != 0 ? -errno : 0;
    close(fd);
    if (rc != 0)
        return rc;
    /* Nothing can be written here, whatever room the source has. */
    out->f_bfree = out->f_bavail = 0;
    out->f_ffree = out->f_favail = 0;
    return 0;
}

int qf_tree_new(const struct qf_tree_options *options, qf_tree **out)
{
    assert(options->view_count <= QF_VIEWS_MAX);
    qf_tree *tree = calloc(1, sizeof *tree);
    if (tree == NULL)
        return -ENOMEM;
    tree->options = *options;
    int rc = qf_node_table_init(&tree->nodes);
    if (rc == 0)
        rc = qf_metrics_new(&tree->metrics);
    if (rc == 0)
        rc = qf_catalog_new(options->root, &tree->views, QF_CATALOG_MEMORY,
                            &tree->catalog);
    if (rc != 0) {
        qf_metrics_free(tree->metrics);
        qf_node_table_fini(&tree->nodes);
        free(tree);
        return rc;
    }
    qf_views_init(&tree->views, options->views, options->view_count, options->policy,
                  options->policy_size);
    pthread_mutex_init(&tree->search_lock, NULL);
    pthread_mutex_init(&tree->handles_lock, NULL);
    *out = tree;
    return 0;
}

void qf_tree_add_handle(qf_tree *tree, struct qf_handle *handle,
                        void (*close)(struct qf_handle *handle))
{
    pthread_mutex_lock(&tree->handles_lock);
    *handle = (struct qf_handle){.next = tree->handles, .close = close};
    if (tree->handles != NULL)
        tree->handles->prev = handle;
    tree->handles = handle;
    pthread_mutex_unlock(&tree->handles_lock);
}

void qf_tree_remove_handle(qf_tree *tree, struct qf_handle *handle)
{
    if (handle->close == NULL)
        return;
    pthread_mutex_lock(&tree->handles_lock);
    if (handle->prev != NULL)
        handle->prev->next = handle->next;
    else
        tree->handles = handle->next;
    if (handle->next != NULL)
        handle->next->prev = handle->prev;
    pthread_mutex_unlock(&tree->handles_lock);
}

void qf_tree_free(qf_tree *tree)
{
    if (tree == NULL)
        return;
    while (tree->handles != NULL)
        tree->handles->close(tree->handles);
    pthread_mutex_destroy(&tree->handles_lock);
    qf_catalog_free(tree->catalog);
    qf_metrics_free(tree->metrics);
    qf_node_table_fini(&tree->nodes);
    qf_views_fini(&tree->views);
    pthread_mutex_destroy(&tree->search_lock);
    free(tree);
}
