/* SPDX-License-Identifier: Apache-2.0 */
/* Which files are weights follows the loaders: transformers takes model.safetensors
 * before model.safetensors.index.json, diffusers the index before the single file, both
 * with a variant in the name, and transformers a file that config.json names
 * (transformers_weights) before all others. A file of another name is no weight of this
 * model and passes through. */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/path.h"
#include "ckpt/model_load.h"
#include "ckpt/printable.h"

/* A name that a loader may take, and with which variant. */
struct candidate {
    const char *name;    /* borrowed from the load's names or the config */
    const char *variant; /* not ended */
    size_t variant_size;
    bool is_index;
    unsigned rank; /* lower is taken first */
};

/* "…-00001-of-00002": one shard of several, whatever else its name says. */
static bool is_shard_variant(const char *variant, size_t size)
{
    static const char form[] = "-00000-of-00000";
    const size_t n = sizeof form - 1;
    if (size < n)
        return false;
    const char *end = variant + size - n;
    for (size_t i = 0; i < n; i++)
        if (form[i] == '0' ? end[i] < '0' || end[i] > '9' : end[i] != form[i])
            return false;
    return true;
}

/* Matches "head" + ["." + variant] + "tail". */
static bool match(const char *name, const char *head, const char *tail,
                  struct candidate *c)
{
    size_t n = strlen(name), h = strlen(head), t = strlen(tail);
    if (n < h + t || memcmp(name, head, h) != 0 || memcmp(name + n - t, tail, t) != 0)
        return false;
    size_t middle = n - h - t;
    if (middle == 1 || (middle > 1 && name[h] != '.'))
        return false;
    c->name = name;
    c->variant = name + h + (middle > 0);
    c->variant_size = middle > 0 ? middle - 1 : 0;
    return true;
}

static bool classify(const char *name, enum qf_model_kind kind, struct candidate *c)
{
    bool diffusers = kind == QF_MODEL_DIFFUSERS;
    const char *stem = diffusers ? "diffusion_pytorch_model" : "model";
    const char *file =
        diffusers ? "diffusion_pytorch_model.safetensors" : "model.safetensors";
    const char *index = diffusers ? "diffusion_pytorch_model.safetensors.index"
                                  : "model.safetensors.index";
    c->is_index = false;
    c->rank = diffusers ? 2 : 1;
    if (match(name, stem, ".safetensors", c))
        return !is_shard_variant(c->variant, c->variant_size);
    c->is_index = true;
    c->rank = diffusers ? 1 : 2;
    if (match(name, index, ".json", c))
        return true;
    /* An older spelling of diffusers: the variant before "index". */
    c->rank = 3;
    return diffusers && match(name, file, ".index.json", c) && c->variant_size > 0;
}

static int compare_candidates(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    size_t n = x->variant_size < y->variant_size ? x->variant_size : y->variant_size;
    if ((x->rank == 0) != (y->rank == 0))
        return x->rank == 0 ? -1 : 1;
    int order = memcmp(x->variant, y->variant, n);
    if (order != 0)
        return order;
    if (x->variant_size != y->variant_size)
        return x->variant_size < y->variant_size ? -1 : 1;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

/* ---- downloads ---- */

static bool is_download_name(const char *name)
{
    return qf_path_ends_with(name, ".incomplete") || qf_path_ends_with(name, ".part") ||
           qf_path_ends_with(name, ".aria2") ||
           qf_path_ends_with(name, ".crdownload") ||
           qf_path_ends_with(name, ".download");
}

/* Whether directory "dir/below/name" holds an unfinished download. */
static bool has_incomplete(const qf_root *root, const char *dir, size_t dir_size,
                           const char *below, const char *name)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%.*s%s%s%s%s", (int)dir_size, dir,
                     dir_size > 0 ? "/" : "", below, *name != '\0' ? "/" : "", name);
    if (n < 0 || (size_t)n >= sizeof path)
        return false;
    bool found = false;
    int fd = qf_root_opendir(root, path);
    DIR *stream = fd >= 0 ? fdopendir(fd) : NULL;
    if (stream == NULL) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    const struct dirent *entry;
    while (!found && (entry = readdir(stream)) != NULL)
        found = qf_path_ends_with(entry->d_name, ".incomplete");
    closedir(stream);
    return found;
}

/* Where the hub's client keeps unfinished files of this directory: in
 * .cache/huggingface/download of it or, for a component, of its parent; in a hub cache
 * in blobs, beside snapshots. */
static bool hub_is_downloading(const struct qf_model_load *load)
{
    static const char cache[] = ".cache/huggingface/download";
    static const char snapshots[] = "snapshots/";
    const char *path = load->path;
    const char *slash = strrchr(path, '/');
    size_t parent = slash != NULL ? (size_t)(slash - path) : 0;
    const char *hub = strstr(path, "/snapshots/");
    if (has_incomplete(load->root, path, strlen(path), cache, "") ||
        has_incomplete(load->root, path, parent, cache,
                       slash != NULL ? slash + 1 : path))
        return true;
    if (hub != NULL)
        return has_incomplete(load->root, path, (size_t)(hub - path), "blobs", "");
    return strncmp(path, snapshots, sizeof snapshots - 1) == 0 &&
           has_incomplete(load->root, "", 0, "blobs", "");
}

static bool is_downloading(const struct qf_model_load *load, const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < load->name_count; i++)
        if (strncmp(load->names[i], name, n) == 0 && is_download_name(load->names[i]))
            return true;
    return hub_is_downloading(load);
}

static int refuse_absent(struct qf_model_load *load, const char *name)
{
    struct qf_printable shown = qf_printable(name);
    int rc = qf_model_note(load, name, NULL);
    if (rc != 0)
        return rc;
    if (is_downloading(load, name))
        return qf_model_refuse(load, false, "%s: is still being downloaded",
                               shown.text);
    if (qf_model_has(load, name))
        return qf_model_refuse(load, true, "%s: the symbolic link leads nowhere",
                               shown.text);
    return qf_model_refuse(load, true, "%s: is missing", shown.text);
}

/* ---- shards ---- */

/* Reads and parses the header. -EBADMSG with err. */
static int read_header(const qf_srcfile *file, struct qf_shard **out,
                       struct qf_err *err)
{
    uint64_t file_size = qf_srcfile_ident(file)->size;
    uint64_t n = 0;
    char first[64] = {0};
    size_t first_size = file_size < sizeof first ? (size_t)file_size : sizeof first;
    int rc = qf_srcfile_read(file, first, first_size, 0);
    if (rc != 0)
        return rc;
    if (qf_model_is_lfs_pointer(first, first_size))
        return -ENODATA;
    rc = qf_shard_header_size(first, file_size, &n, err);
    if (rc != 0)
        return rc;
    size_t size = 8 + (size_t)n;
    char *header = malloc(size);
    if (header == NULL)
        return -ENOMEM;
    struct qf_shard *shard = NULL;
    rc = qf_srcfile_read(file, header, size, 0);
    if (rc == 0)
        rc = qf_srcfile_check(file);
    if (rc == 0)
        rc = qf_shard_parse(header, size, file_size, &shard, err);
    free(header);
    *out = shard;
    return rc;
}

static int load_shard(struct qf_model_load *load, struct qf_model_shard *shard,
                      const char *name)
{
    struct qf_printable shown = qf_printable(name);
    struct qf_err err = {.text = ""};
    qf_srcfile *file = NULL;
    char *path = qf_model_path(load->path, name);
    shard->name = strdup(name);
    if (path == NULL || shard->name == NULL) {
        free(path);
        return -ENOMEM;
    }
    int rc = qf_srcfile_open(load->root, path, &file, NULL);
    free(path);
    if (rc == -ENOENT)
        return refuse_absent(load, name);
    if (rc != 0)
        return qf_model_refuse_file(load, name, rc);
    shard->ident = *qf_srcfile_ident(file);
    rc = read_header(file, &shard->header, &err);
    qf_srcfile_close(file);
    if (rc != 0 && rc != -EBADMSG && rc != -ENODATA)
        return qf_model_refuse_file(load, name, rc);
    int noted = qf_model_note(load, name, &shard->ident);
    if (noted != 0 || rc == 0)
        return noted;
    if (rc == -ENODATA)
        return qf_model_refuse(load, false,
                               "%s: is a Git LFS pointer; run git lfs pull",
                               shown.text);
    return qf_model_refuse(load, true, "%s: %s", shown.text, err.text);
}

/* aria2 gives a file its full size at once and keeps its notes beside it. */
static int check_complete(struct qf_model_load *load, const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < load->name_count; i++)
        if (strncmp(load->names[i], name, n) == 0 &&
            strcmp(load->names[i] + n, ".aria2") == 0)
            return qf_model_refuse(load, false, "%s: is still being downloaded",
                                   qf_printable(name).text);
    return 0;
}

static int load_shards(struct qf_model_load *load, struct qf_weight_set *set,
                       char *const *names, size_t count)
{
    set->shards = calloc(count, sizeof *set->shards);
    if (set->shards == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        if (!qf_path_ends_with(names[i], ".safetensors"))
            return qf_model_refuse(load, false, "%s: is not a safetensors file",
                                   qf_printable(names[i]).text);
        int rc = check_complete(load, names[i]);
        if (rc != 0)
            return rc;
        set->shard_count++;
        rc = load_shard(load, &set->shards[i], names[i]);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int load_index(struct qf_model_load *load, struct qf_weight_set *set,
                      const char *name)
{
    struct qf_err err = {.text = ""};
    set->index_name = strdup(name);
    if (set->index_name == NULL)
        return -ENOMEM;
    int rc = qf_model_read(load, name, &set->index_text, &set->index_size,
                           &set->index_ident);
    if (rc != 0)
        return rc;
    rc = qf_index_parse(set->index_text, set->index_size, &set->index, &err);
    if (rc == -EBADMSG)
        return qf_model_refuse(load, true, "%s: %s", qf_printable(name).text, err.text);
    if (rc != 0)
        return rc;
    if (set->index.shard_count == 0)
        return qf_model_refuse(load, true, "%s: weight_map is empty",
                               qf_printable(name).text);
    return load_shards(load, set, set->index.shards, set->index.shard_count);
}

/* ---- all of them ---- */

/* The file that config.json names. It is a candidate like any other, so that what the
 * loader takes is never plain under a quantized config. */
static int add_named(struct qf_model_load *load, struct candidate *list, size_t *count)
{
    const char *name =
        qf_json_string(qf_json_get(load->model->config, "transformers_weights"));
    if (name == NULL || load->model->kind != QF_MODEL_TRANSFORMERS)
        return 0;
    bool is_index = qf_path_ends_with(name, ".safetensors.index.json");
    if (strchr(name, '/') != NULL ||
        (!is_index && !qf_path_ends_with(name, ".safetensors")))
        return qf_model_refuse(load, false,
                               "config.json names its weights in a way that is not "
                               "supported (transformers_weights: %s)",
                               qf_printable(name).text);
    for (size_t i = 0; i < *count; i++) {
        if (strcmp(list[i].name, name) == 0) {
            list[i].rank = 0;
            return 0;
        }
    }
    list[(*count)++] =
        (struct candidate){.name = name, .variant = "", .is_index = is_index};
    return 0;
}

static int load_candidates(struct qf_model_load *load, const struct candidate *list,
                           size_t count)
{
    struct qf_model *model = load->model;
    if (count == 0)
        return qf_model_refuse(load, false, "no safetensors weights");
    model->sets = calloc(count, sizeof *model->sets);
    if (model->sets == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        struct qf_weight_set *set = &model->sets[model->set_count++];
        char *name = strdup(list[i].name);
        if (name == NULL)
            return -ENOMEM;
        int rc = list[i].is_index ? load_index(load, set, name)
                                  : load_shards(load, set, &name, 1);
        free(name);
        if (rc != 0)
            return rc;
    }
    return 0;
}

int qf_model_load_sets(struct qf_model_load *load)
{
    struct candidate *list = calloc(load->name_count + 1, sizeof *list);
    size_t count = 0;
    if (list == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < load->name_count; i++)
        if (classify(load->names[i], load->model->kind, &list[count]))
            count++;
    int rc = add_named(load, list, &count);
    if (rc == 0 && count > 1)
        qsort(list, count, sizeof *list, compare_candidates);
    if (rc == 0)
        rc = load_candidates(load, list, count);
    free(list);
    return rc;
}
