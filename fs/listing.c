/* SPDX-License-Identifier: Apache-2.0 */
/* Names: what a directory shows, and which path an id stands for. A link is shown as
 * what it leads to; one that leads out of the store, to nothing or back to an ancestor
 * of its own, is not shown (looking it up says why). Sockets, pipes and devices are not
 * shown. */
#include <assert.h>
#include <dirent.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/limits.h"
#include "fs/tree_private.h"
#include "view/gguf.h"

int qf_tree_check_loop(const qf_tree *tree, const char *path, const char *real)
{
    if (strcmp(path, real) == 0)
        return 0; /* no link on the way */
    int rc = 0;
    char *ancestor = strdup(path);
    if (ancestor == NULL)
        return -ENOMEM;
    while (rc == 0 && ancestor[0] != '\0') {
        char *slash = strrchr(ancestor, '/');
        *(slash != NULL ? slash : ancestor) = '\0';
        char *other = NULL;
        struct stat st;
        rc = qf_root_resolve(tree->options.root, ancestor, &other, &st);
        if (rc == 0 && strcmp(other, real) == 0)
            rc = -ELOOP;
        free(other);
    }
    free(ancestor);
    return rc;
}

/* The type behind a link, or behind a name whose type the filesystem does not tell.
 * *type 0: not shown. */
static int type_of_link(const qf_tree *tree, const char *dir, const char *name,
                        unsigned *type)
{
    char *path = qf_path_join(dir, name);
    char *real = NULL;
    struct stat st;
    *type = 0;
    if (path == NULL)
        return -ENOMEM;
    int rc = qf_root_resolve(tree->options.root, path, &real, &st);
    if (rc == 0 && S_ISDIR(st.st_mode))
        rc = qf_tree_check_loop(tree, path, real);
    if (rc == 0)
        *type = S_ISREG(st.st_mode) ? DT_REG : S_ISDIR(st.st_mode) ? DT_DIR : 0;
    free(real);
    free(path);
    return qf_err_is_of_file(rc) ? 0 : rc;
}

int qf_tree_list(const qf_tree *tree, const char *path,
                 int (*each)(void *arg, const char *name, unsigned type), void *arg)
{
    int fd = qf_root_opendir(tree->options.root, path);
    if (fd < 0)
        return fd;
    DIR *stream = fdopendir(fd);
    if (stream == NULL) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    int rc = 0;
    const struct dirent *d;
    errno = 0;
    while (rc == 0 && (d = readdir(stream)) != NULL) {
        if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
            continue;
        unsigned type = d->d_type;
        if (type == DT_LNK || type == DT_UNKNOWN)
            rc = type_of_link(tree, path, d->d_name, &type);
        if (rc == 0 && (type == DT_REG || type == DT_DIR))
            rc = each(arg, d->d_name, type);
        errno = 0;
    }
    if (rc == 0 && errno != 0)
        rc = -errno;
    closedir(stream);
    return rc;
}

/* ---- open directories ---- */

struct dir_entry {
    char *name;
    uint64_t id;
    unsigned type;
};

struct qf_dir {
    struct qf_handle handle; /* first */
    qf_tree *tree;
    struct qf_place place;
    size_t count;
    size_t capacity;
    struct dir_entry *entries;
    const struct qf_variant *variant; /* while it is filled, in a view of GGUF files */
    atomic_uint readings;             /* over */
};

static int add_entry(qf_dir *dir, const char *name, uint64_t id, unsigned type)
{
    if (dir->count == dir->capacity) {
        size_t capacity = dir->capacity != 0 ? dir->capacity * 2 : 32;
        struct dir_entry *entries =
            realloc(dir->entries, capacity * sizeof *dir->entries);
        if (entries == NULL)
            return -ENOMEM;
        dir->entries = entries;
        dir->capacity = capacity;
    }
    char *copy = strdup(name);
    if (copy == NULL)
        return -ENOMEM;
    dir->entries[dir->count++] = (struct dir_entry){copy, id, type};
    return 0;
}

static int add_child(void *arg, const char *name, unsigned type)
{
    qf_dir *dir = arg;
    if (dir->variant != NULL && qf_variant_hides(dir->variant, name))
        return 0;
    char *path = qf_path_join(dir->place.path, name);
    if (path == NULL)
        return -ENOMEM;
    uint64_t id = qf_node_id(dir->place.view, path);
    free(path);
    return add_entry(dir, name, id, type);
}

static int add_dots(qf_dir *dir, uint64_t id)
{
    const char *slash = strrchr(dir->place.path, '/');
    uint64_t parent = QF_NODE_ROOT;
    if (dir->place.path[0] != '\0') {
        char *path = strndup(dir->place.path,
                             slash != NULL ? (size_t)(slash - dir->place.path) : 0);
        if (path == NULL)
            return -ENOMEM;
        parent = qf_node_id(dir->place.view, path);
        free(path);
    }
    int rc = add_entry(dir, ".", id, DT_DIR);
    return rc == 0 ? add_entry(dir, "..", parent, DT_DIR) : rc;
}

static bool has_entry(const qf_dir *dir, const char *name)
{
    for (size_t i = 0; i < dir->count; i++)
        if (strcmp(dir->entries[i].name, name) == 0)
            return true;
    return false;
}

/* The GGUF file of the directory's model instead of its weights. A directory whose
 * model cannot be looked at is listed as it is. */
static int add_gguf(qf_dir *dir)
{
    qf_snapshot *snapshot = NULL;
    int rc = qf_catalog_get(dir->tree->catalog, dir->place.path, dir->place.view, false,
                            &snapshot, &dir->variant);
    if (rc != 0 && !qf_err_is_of_file(rc))
        return rc;
    rc = qf_tree_list(dir->tree, dir->place.path, add_child, dir);
    for (size_t i = 0; dir->variant != NULL && rc == 0 && i < dir->variant->file_count;
         i++)
        if (!has_entry(dir, dir->variant->files[i].name))
            rc = add_child(dir, dir->variant->files[i].name, DT_REG);
    dir->variant = NULL;
    qf_snapshot_release(snapshot);
    return rc;
}

static int add_all(qf_dir *dir, uint64_t id)
{
    const struct qf_tree_options *options = &dir->tree->options;
    int rc = add_dots(dir, id);
    if (rc != 0)
        return rc;
    if (qf_place_is_in_view(&dir->place) && qf_gguf_is_view(dir->place.view))
        return add_gguf(dir);
    if (qf_place_is_in_view(&dir->place))
        return qf_tree_list(dir->tree, dir->place.path, add_child, dir);
    if (qf_place_is_root(&dir->place)) {
        for (size_t i = 0; i < options->view_count && rc == 0; i++)
            rc = add_entry(dir, options->views[i].name,
                           qf_node_id(options->views[i].name, ""), DT_DIR);
        return rc;
    }
    rc = dir->place.path[0] != '\0' ? -ENOTDIR : 0;
    for (size_t i = 0; i < QF_CONTROL_COUNT && rc == 0; i++)
        rc = add_child(dir, qf_control_names[i], DT_REG);
    return rc;
}

static void close_handle(struct qf_handle *handle)
{
    qf_dir_close((qf_dir *)handle);
}

int qf_tree_opendir(qf_tree *tree, uint64_t id, qf_dir **out)
{
    qf_dir *dir = calloc(1, sizeof *dir);
    if (dir == NULL)
        return -ENOMEM;
    dir->tree = tree;
    uint64_t generation;
    int rc = qf_tree_place(tree, id, &dir->place, &generation);
    if (rc == 0)
        rc = add_all(dir, id);
    if (rc != 0) {
        qf_dir_close(dir);
        return rc;
    }
    qf_tree_add_handle(tree, &dir->handle, close_handle);
    *out = dir;
    return 0;
}

size_t qf_dir_count(const qf_dir *dir)
{
    return dir->count;
}

const char *qf_dir_entry(const qf_dir *dir, size_t index, uint64_t *id, unsigned *type)
{
    assert(index < dir->count);
    *id = dir->entries[index].id;
    *type = dir->entries[index].type;
    return dir->entries[index].name;
}

uint64_t qf_dir_generation(const qf_dir *dir)
{
    uint64_t hash = 0;
    for (size_t i = 0; i < dir->count; i++) {
        const uint64_t what[] = {hash, dir->entries[i].id, dir->entries[i].type};
        hash = qf_hash64(what, sizeof what);
    }
    return hash;
}

void qf_dir_read_done(qf_dir *dir)
{
    atomic_fetch_add(&dir->readings, 1);
}

void qf_dir_close(qf_dir *dir)
{
    if (dir == NULL)
        return;
    (void)atomic_load(&dir->readings);
    qf_tree_remove_handle(dir->tree, &dir->handle);
    for (size_t i = 0; i < dir->count; i++)
        free(dir->entries[i].name);
    free(dir->entries);
    free(dir->place.path);
    free(dir);
}

/* ---- from an id back to a path ---- */

struct search {
    qf_tree *tree;
    uint64_t id;
    const char *dir;     /* being listed */
    struct qf_place hit; /* path NULL: not found yet */
    char **queue;        /* directories still to list; owned */
    size_t count, capacity;
};

static int queue_dir(struct search *search, char *path)
{
    if (search->count == search->capacity) {
        size_t capacity = search->capacity != 0 ? search->capacity * 2 : 64;
        char **queue = realloc(search->queue, capacity * sizeof *queue);
        if (queue == NULL) {
            free(path);
            return -ENOMEM;
        }
        search->queue = queue;
        search->capacity = capacity;
    }
    search->queue[search->count++] = path;
    return 0;
}

/* Whether the path has the id in one of the views; takes nothing. */
static bool try_path(struct search *search, const char *path)
{
    struct qf_place *hit = &search->hit;
    for (size_t i = 0; qf_views_at(&search->tree->views, i, hit->view); i++) {
        if (qf_node_id(hit->view, path) == search->id) {
            hit->path = strdup(path);
            return true;
        }
    }
    return false;
}

static int try_child(void *arg, const char *name, unsigned type)
{
    struct search *search = arg;
    char *path = qf_path_join(search->dir, name);
    if (path == NULL)
        return -ENOMEM;
    if (try_path(search, path)) {
        free(path);
        return 1;
    }
    if (type == DT_DIR)
        return queue_dir(search, path);
    free(path);
    return 0;
}

/* Files that the store has not: one a kind of view. */
static int try_gguf(struct search *search)
{
    char model[QF_MODEL_NAME_SIZE], name[QF_GGUF_FILE_NAME_SIZE];
    bool found = false;
    qf_model_name(search->tree->options.root, search->dir, model);
    for (int c = QF_CODEC_GGUF_Q8_0; c <= QF_CODEC_GGUF_BF16 && !found; c++) {
        if (!qf_gguf_file_name(model, (enum qf_codec)c, name))
            continue;
        char *path = qf_path_join(search->dir, name);
        if (path == NULL)
            return -ENOMEM;
        found = try_path(search, path);
        free(path);
    }
    return found;
}

static bool try_control(struct search *search)
{
    for (size_t i = 0; i <= QF_CONTROL_COUNT; i++) {
        const char *path = i < QF_CONTROL_COUNT ? qf_control_names[i] : "";
        if (qf_node_id(QF_CONTROL_DIR, path) == search->id) {
            search->hit =
                (struct qf_place){.view = QF_CONTROL_DIR, .path = strdup(path)};
            return true;
        }
    }
    return false;
}

int qf_tree_search(qf_tree *tree, uint64_t id, struct qf_place *place)
{
    struct search search = {.tree = tree, .id = id};
    bool found = try_control(&search) || try_path(&search, "");
    char *top = found ? NULL : strdup("");
    int rc = 0, trouble = -ENOENT;
    if (!found)
        rc = top != NULL ? queue_dir(&search, top) : -ENOMEM;
    for (uint64_t n = 0; rc == 0 && !found && search.count > 0; n++) {
        if (n == QF_SEARCH_DIRS_MAX)
            break;
        char *dir = search.queue[--search.count];
        search.dir = dir;
        rc = try_gguf(&search);
        if (rc == 0)
            rc = qf_tree_list(tree, dir, try_child, &search);
        found = rc == 1;
        /* A directory that cannot be listed hides what is in it, nothing else. */
        if (rc < 0 && !qf_err_is_of_file(rc))
            trouble = rc;
        if (rc != -ENOMEM)
            rc = 0;
        free(dir);
    }
    for (size_t i = 0; i < search.count; i++)
        free(search.queue[i]);
    free(search.queue);
    if (rc != 0)
        return rc;
    if (!found)
        return trouble;
    *place = search.hit;
    return place->path != NULL ? 0 : -ENOMEM;
}
