/* SPDX-License-Identifier: Apache-2.0 */
/* A directory is quantized whole or not at all: its weight sets share one config.json,
 * and a plain set under a quantized config loads as garbage. So whatever is wrong with
 * one file is a reason against the directory. Every file that was looked at, present or
 * not, goes into deps, because the damage of today is often the download of a minute
 * ago. */
#include "ckpt/model.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "ckpt/model_load.h"
#include "ckpt/printable.h"

/* What the user says about the model; view/overrides.h reads it. */
#define OVERRIDES_FILE "quantfs.json"

int qf_model_refuse(struct qf_model_load *load, bool is_error, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(load->model->reason, sizeof load->model->reason, fmt, args);
    va_end(args);
    load->model->reason_is_error = is_error;
    return QF_REFUSED;
}

char *qf_model_path(const char *dir, const char *name)
{
    size_t size = strlen(dir) + strlen(name) + 2;
    char *path = malloc(size);
    if (path != NULL)
        snprintf(path, size, "%s%s%s", dir, *dir != '\0' && *name != '\0' ? "/" : "",
                 name);
    return path;
}

int qf_model_note(struct qf_model_load *load, const char *name,
                  const struct qf_ident *ident)
{
    struct qf_model *model = load->model;
    struct qf_model_dep *deps =
        realloc(model->deps, (model->dep_count + 1) * sizeof *deps);
    if (deps == NULL)
        return -ENOMEM;
    model->deps = deps;
    struct qf_model_dep *dep = &deps[model->dep_count];
    *dep = (struct qf_model_dep){.name = strdup(name), .exists = ident != NULL};
    if (dep->name == NULL)
        return -ENOMEM;
    if (ident != NULL)
        dep->ident = *ident;
    model->dep_count++;
    return 0;
}

bool qf_model_is_lfs_pointer(const char *data, size_t size)
{
    static const char start[] = "version https://git-lfs";
    return size >= sizeof start - 1 && memcmp(data, start, sizeof start - 1) == 0;
}

int qf_model_refuse_file(struct qf_model_load *load, const char *name, int rc)
{
    /* A model must not turn plain because a disk or the memory failed for a moment. */
    if (!qf_err_is_of_file(rc))
        return rc;
    struct stat st;
    /* That of no file: the next check asks to look again. */
    struct qf_ident ident = {0};
    char *path = qf_model_path(load->path, name);
    if (path == NULL)
        return -ENOMEM;
    int found = qf_root_resolve(load->root, path, NULL, &st);
    free(path);
    if (found != 0 && !qf_err_is_of_file(found))
        return found;
    /* It may have come or come back meanwhile. */
    bool passing = rc == -ESTALE || (rc == -ENOENT && found == 0);
    if (found == 0 && !passing)
        ident = qf_ident_of(&st);
    int noted = qf_model_note(load, name, found == 0 || passing ? &ident : NULL);
    if (noted != 0)
        return noted;
    const char *what = rc == -EOPNOTSUPP ? "is not a regular file"
                       : rc == -ESTALE   ? "changed while it was read"
                       : rc == -EXDEV    ? "a symbolic link leaves the store"
                                         : strerror(-rc);
    return qf_model_refuse(load, rc != -ESTALE, "%s: %s", qf_printable(name).text,
                           what);
}

int qf_model_read(struct qf_model_load *load, const char *name, char **data,
                  size_t *size, struct qf_ident *ident)
{
    char *path = qf_model_path(load->path, name);
    if (path == NULL)
        return -ENOMEM;
    int rc = qf_root_read_file(load->root, path, QF_CONFIG_SIZE_MAX, data, size, ident,
                               NULL);
    free(path);
    if (rc == 0)
        rc = qf_model_note(load, name, ident);
    else
        rc = qf_model_refuse_file(load, name, rc);
    if (rc == 0 && qf_model_is_lfs_pointer(*data, *size))
        rc = qf_model_refuse(load, false, "%s: is a Git LFS pointer; run git lfs pull",
                             qf_printable(name).text);
    return rc;
}

/* ---- names ---- */

static int compare_names(const void *a, const void *b)
{
    const char *const *x = a, *const *y = b;
    return strcmp(*x, *y);
}

bool qf_model_has(const struct qf_model_load *load, const char *name)
{
    return load->name_count > 0 && bsearch(&name, load->names, load->name_count,
                                           sizeof *load->names, compare_names) != NULL;
}

static bool may_matter(const char *name)
{
    if (qf_model_is_text(name))
        return true;
    return strstr(name, ".safetensors") != NULL || strcmp(name, "config.json") == 0 ||
           strcmp(name, "adapter_config.json") == 0 ||
           strcmp(name, OVERRIDES_FILE) == 0;
}

static int add_name(struct qf_model_load *load, size_t *capacity, const char *name)
{
    if (load->name_count == *capacity) {
        size_t more = *capacity == 0 ? 32 : *capacity * 2;
        char **names = realloc(load->names, more * sizeof *names);
        if (names == NULL)
            return -ENOMEM;
        load->names = names;
        *capacity = more;
    }
    char *copy = strdup(name);
    if (copy == NULL)
        return -ENOMEM;
    load->names[load->name_count++] = copy;
    return 0;
}

static int list_names(struct qf_model_load *load)
{
    size_t capacity = 0;
    int fd = qf_root_opendir(load->root, load->path);
    if (fd < 0)
        return fd;
    DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    int rc = 0;
    while (rc == 0) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            rc = -errno;
            break;
        }
        if (may_matter(entry->d_name))
            rc = add_name(load, &capacity, entry->d_name);
    }
    closedir(dir);
    if (rc == 0 && load->name_count > 1)
        qsort(load->names, load->name_count, sizeof *load->names, compare_names);
    return rc;
}

/* ---- config.json ---- */

static enum qf_model_kind kind_of(const qf_json *config)
{
    if (qf_json_string(qf_json_get(config, "_class_name")) != NULL)
        return QF_MODEL_DIFFUSERS;
    if (!qf_json_is_null(qf_json_get(config, "model_type")) ||
        !qf_json_is_null(qf_json_get(config, "architectures")))
        return QF_MODEL_TRANSFORMERS;
    return QF_MODEL_NONE;
}

/* The quantization settings of a config or sub-config, or NULL. */
static const qf_json *quantization_of(const qf_json *config)
{
    static const char *const names[] = {"quantization_config", "compression_config"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const qf_json *value = qf_json_get(config, names[i]);
        if (!qf_json_is_null(value))
            return value;
    }
    return NULL;
}

static int check_quantization(struct qf_model_load *load)
{
    const qf_json *config = load->model->config;
    const qf_json *found = quantization_of(config);
    const qf_json *sub = qf_json_first(config);
    for (; found == NULL && sub != NULL; sub = qf_json_after(sub))
        found = quantization_of(sub);
    if (found == NULL)
        return 0;
    const char *method = qf_json_string(qf_json_get(found, "quant_method"));
    load->says_bnb = method != NULL
                         ? strcmp(method, "bitsandbytes") == 0
                         : qf_json_is_true(qf_json_get(found, "load_in_4bit")) ||
                               qf_json_is_true(qf_json_get(found, "load_in_8bit"));
    if (load->says_bnb)
        return 0;
    return qf_model_refuse(load, false, "already quantized (quant_method %s)",
                           qf_printable(method != NULL ? method : "unknown").text);
}

static int load_config(struct qf_model_load *load)
{
    struct qf_model *model = load->model;
    struct qf_err err = {.text = ""};
    int rc = qf_model_read(load, "config.json", &model->config_text,
                           &model->config_size, &model->config_ident);
    if (rc != 0)
        return rc;
    model->config = qf_json_parse(model->config_text, model->config_size, &err);
    if (model->config == NULL)
        return errno == ENOMEM
                   ? -ENOMEM
                   : qf_model_refuse(load, true, "config.json: %s", err.text);
    model->kind = kind_of(model->config);
    return 0;
}

static int load_directory(struct qf_model_load *load)
{
    struct stat st;
    int rc = qf_root_resolve(load->root, load->path, NULL, &st);
    if (rc == 0 && !S_ISDIR(st.st_mode))
        rc = -ENOTDIR;
    if (rc != 0)
        return rc;
    qf_stat_settle(&st);
    rc = qf_root_resolve(load->root, load->path, NULL, &st);
    if (rc != 0)
        return rc;
    struct qf_ident ident = qf_ident_of(&st);
    rc = qf_model_note(load, "", &ident);
    if (rc == 0)
        rc = list_names(load);
    if (rc == 0 && qf_model_has(load, "config.json"))
        rc = load_config(load);
    if (rc == 0 && qf_model_has(load, "adapter_config.json"))
        rc = qf_model_refuse(load, false,
                             "an adapter (adapter_config.json), not a model");
    if (rc != 0 || load->model->kind == QF_MODEL_NONE)
        return rc;
    rc = check_quantization(load);
    if (rc == 0 && qf_model_has(load, OVERRIDES_FILE))
        rc = qf_model_read(load, OVERRIDES_FILE, &load->model->overrides_text,
                           &load->model->overrides_size, &load->model->overrides_ident);
    if (rc == 0)
        rc = qf_model_load_sets(load);
    if (rc == 0 && load->whole && load->model->kind == QF_MODEL_TRANSFORMERS)
        rc = qf_model_load_texts(load);
    return rc == 0 ? qf_model_check_sets(load) : rc;
}

/* ---- the model ---- */

static void free_sets(struct qf_model *model)
{
    for (size_t i = 0; i < model->set_count; i++) {
        struct qf_weight_set *set = &model->sets[i];
        for (size_t k = 0; k < set->shard_count; k++) {
            free(set->shards[k].name);
            qf_shard_free(set->shards[k].header);
        }
        free(set->shards);
        free(set->index_name);
        free(set->index_text);
        qf_index_fini(&set->index);
    }
    free(model->sets);
    model->sets = NULL;
    model->set_count = 0;
    model->is_bnb = false;
}

static int load_model(const qf_root *root, const char *path, bool whole,
                      struct qf_model **out, struct qf_err *err)
{
    struct qf_model_load load = {.root = root, .path = path, .whole = whole};
    load.model = calloc(1, sizeof *load.model);
    int rc = load.model != NULL ? 0 : -ENOMEM;
    if (rc == 0) {
        qf_model_name(root, path, load.model->name);
        rc = load_directory(&load);
    }
    for (size_t i = 0; i < load.name_count; i++)
        free(load.names[i]);
    free(load.names);
    if (rc == QF_REFUSED) {
        free_sets(load.model);
        rc = 0;
    }
    if (rc != 0) {
        qf_model_free(load.model);
        return qf_err_set(err, rc, "%s: %s", *path != '\0' ? path : qf_root_path(root),
                          strerror(-rc));
    }
    *out = load.model;
    return 0;
}

int qf_model_load(const qf_root *root, const char *path, struct qf_model **out,
                  struct qf_err *err)
{
    return load_model(root, path, false, out, err);
}

int qf_model_load_whole(const qf_root *root, const char *path, struct qf_model **out,
                        struct qf_err *err)
{
    return load_model(root, path, true, out, err);
}

int qf_model_check(const qf_root *root, const char *path, const struct qf_model *model)
{
    for (size_t i = 0; i < model->dep_count; i++) {
        const struct qf_model_dep *dep = &model->deps[i];
        char *full = qf_model_path(path, dep->name);
        if (full == NULL)
            return -ENOMEM;
        struct stat st;
        int rc = qf_root_resolve(root, full, NULL, &st);
        free(full);
        if (rc == -ENOMEM)
            return rc;
        if ((rc == 0) != dep->exists)
            return -ESTALE;
        struct qf_ident now = dep->exists ? qf_ident_of(&st) : dep->ident;
        if (!qf_ident_eq(&now, &dep->ident))
            return -ESTALE;
    }
    return 0;
}

void qf_model_free(struct qf_model *model)
{
    if (model == NULL)
        return;
    free_sets(model);
    qf_model_free_texts(model);
    for (size_t i = 0; i < model->dep_count; i++)
        free(model->deps[i].name);
    free(model->deps);
    free(model->config_text);
    free(model->overrides_text);
    qf_json_free(model->config);
    free(model);
}
