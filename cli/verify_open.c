/* SPDX-License-Identifier: Apache-2.0 */
/* What a checkpoint is, it says itself: quantization_config has the codec, quant_state
 * the dtype and the block size. Which weights are quantized, its tensors say. Where it
 * keeps a weight that a default view would quantize, and its skip list says so, or
 * quantizes an output head, the view is made with the same override and then compared:
 * another setting is no difference. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/path.h"
#include "cli/verify.h"
#include "view/overrides.h"
#include "view/settings.h"

/* Names that are looked at to find out about a prefix. */
#define PREFIX_TRIES 16

static int no_memory(struct qf_err *err)
{
    return qf_err_set(err, -ENOMEM, "out of memory");
}

/* ---- the checkpoint's tensors ---- */

/* Opens dir/name and reads its header. */
static int open_header(const qf_root *root, const char *dir, const char *name,
                       struct qf_verify_shard *shard, struct qf_err *err)
{
    char first[8], *data = NULL, *path = qf_path_join(dir, name);
    uint64_t size = 0;
    int rc =
        path != NULL ? qf_srcfile_open(root, path, &shard->file, err) : no_memory(err);
    uint64_t file_size = rc == 0 ? qf_srcfile_ident(shard->file)->size : 0;
    if (rc == 0)
        rc = file_size >= 8 ? qf_srcfile_read(shard->file, first, 8, 0)
                            : qf_err_set(err, -EBADMSG, "too short for a header");
    if (rc == 0)
        rc = qf_shard_header_size(first, file_size, &size, err);
    if (rc == 0 && (data = malloc((size_t)size + 8)) == NULL)
        rc = no_memory(err);
    if (rc == 0)
        rc = qf_srcfile_read(shard->file, data, (size_t)size + 8, 0);
    if (rc == 0)
        rc = qf_shard_parse(data, (size_t)size + 8, file_size, &shard->header, err);
    if (rc != 0 && err->text[0] == '\0')
        qf_err_set(err, rc, "%s", strerror(-rc));
    if (rc != 0 && rc != -ENOMEM)
        qf_err_prefix(err, "/%s", path);
    free(data);
    free(path);
    return rc;
}

static int open_shard(struct qf_verify_dir *dir, char *name, struct qf_err *err)
{
    struct qf_verify_shard *more =
        realloc(dir->shards, (dir->shard_count + 1) * sizeof *more);
    if (more == NULL) {
        free(name);
        return no_memory(err);
    }
    dir->shards = more;
    more[dir->shard_count] = (struct qf_verify_shard){.name = name};
    return open_header(dir->root, dir->path, name, &more[dir->shard_count++], err);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct qf_verify_tensor *)a)->tensor->name,
                  ((const struct qf_verify_tensor *)b)->tensor->name);
}

static int index_tensors(struct qf_verify_dir *dir, struct qf_err *err)
{
    size_t count = 0;
    for (size_t i = 0; i < dir->shard_count; i++)
        count += dir->shards[i].header->tensor_count;
    dir->tensors = calloc(count + 1, sizeof *dir->tensors);
    if (dir->tensors == NULL)
        return no_memory(err);
    for (size_t i = 0; i < dir->shard_count; i++)
        for (size_t t = 0; t < dir->shards[i].header->tensor_count; t++) {
            struct qf_verify_tensor *tensor = &dir->tensors[dir->tensor_count++];
            tensor->tensor = &dir->shards[i].header->tensors[t];
            tensor->shard = i;
        }
    qsort(dir->tensors, count, sizeof *dir->tensors, compare_names);
    for (size_t i = 1; i < count; i++)
        if (compare_names(&dir->tensors[i - 1], &dir->tensors[i]) == 0)
            return qf_err_set(err, -EBADMSG,
                              "/%s: tensor '%s' is in %s and in %s: which one counts?",
                              dir->path, dir->tensors[i].tensor->name,
                              dir->shards[dir->tensors[i - 1].shard].name,
                              dir->shards[dir->tensors[i].shard].name);
    return 0;
}

static int open_shards(struct qf_verify_dir *dir, struct qf_err *err)
{
    int fd = qf_root_opendir(dir->root, dir->path);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    int rc = list != NULL ? 0 : fd < 0 ? fd : -errno;
    const struct dirent *d;
    if (rc != 0)
        return qf_err_set(err, rc, "/%s: %s", dir->path, strerror(-rc));
    while (rc == 0 && (d = readdir(list)) != NULL) {
        if (!qf_path_ends_with(d->d_name, ".safetensors"))
            continue;
        char *name = strdup(d->d_name);
        rc = name != NULL ? open_shard(dir, name, err) : no_memory(err);
    }
    closedir(list);
    return rc == 0 ? index_tensors(dir, err) : rc;
}

static struct qf_verify_tensor *find_exactly(const struct qf_verify_dir *dir,
                                             const char *name)
{
    struct qf_tensor tensor = {.name = name};
    struct qf_verify_tensor key = {.tensor = &tensor};
    return bsearch(&key, dir->tensors, dir->tensor_count, sizeof *dir->tensors,
                   compare_names);
}

static struct qf_verify_tensor *find_renamed(const struct qf_verify_dir *dir,
                                             const char *prefix, bool added,
                                             const char *name)
{
    size_t n = strlen(prefix), size = n + strlen(name) + 1;
    if (!added)
        return strncmp(name, prefix, n) == 0 ? find_exactly(dir, name + n) : NULL;
    char *longer = malloc(size);
    if (longer == NULL)
        return NULL;
    strcpy(stpcpy(longer, prefix), name);
    struct qf_verify_tensor *found = find_exactly(dir, longer);
    free(longer);
    return found;
}

struct qf_verify_tensor *qf_verify_find(const struct qf_verify_dir *dir,
                                        const char *name)
{
    struct qf_verify_tensor *found = find_exactly(dir, name);
    if (found == NULL && dir->prefix != NULL)
        found = find_renamed(dir, dir->prefix, dir->prefix_added, name);
    return found;
}

/* ---- what it says it is ---- */

static int read_config(struct qf_verify_dir *dir, struct qf_err *err)
{
    char *text = NULL, *path = qf_path_join(dir->path, "config.json");
    size_t size;
    if (path == NULL)
        return no_memory(err);
    int rc =
        qf_root_read_file(dir->root, path, QF_CONFIG_SIZE_MAX, &text, &size, NULL, err);
    if (rc == 0) {
        dir->config = qf_json_parse(text, size, err);
        rc = dir->config != NULL ? 0 : -EBADMSG;
    }
    if (rc != 0 && rc != -ENOENT)
        qf_err_prefix(err, "/%s", path);
    free(text);
    free(path);
    return rc == -ENOENT ? 0 : rc;
}

/* The first quant_state: they all have the same settings. NULL: there is none. */
static qf_json *read_state(const struct qf_verify_dir *dir)
{
    for (size_t i = 0; i < dir->tensor_count; i++) {
        const struct qf_tensor *t = dir->tensors[i].tensor;
        char text[4096];
        if (strstr(t->name, ".quant_state.bitsandbytes__") == NULL ||
            t->size > sizeof text ||
            qf_srcfile_read(dir->shards[dir->tensors[i].shard].file, text,
                            (size_t)t->size, t->off) != 0)
            continue;
        return qf_json_parse(text, (size_t)t->size, NULL);
    }
    return NULL;
}

static const char *codec_name(const qf_json *quantization)
{
    const char *type = qf_json_string(qf_json_get(quantization, "bnb_4bit_quant_type"));
    if (qf_json_is_true(qf_json_get(quantization, "load_in_8bit")) ||
        qf_json_is_true(qf_json_get(quantization, "_load_in_8bit")))
        return "int8";
    if (qf_json_is_true(qf_json_get(quantization, "bnb_4bit_use_double_quant")))
        return type != NULL && strcmp(type, "nf4") == 0 ? "dq" : NULL;
    return type != NULL && strcmp(type, "fp4") == 0 ? "fp4" : "nf4";
}

/* Appends a setting to the view's name if there is a value that it can have. */
static void add_setting(const struct qf_view *plain, enum qf_setting setting,
                        const char *value, struct qf_buf *name)
{
    struct qf_view scratch = *plain;
    if (value != NULL && qf_setting_fits(setting, plain->codec) &&
        qf_setting_set_text(&scratch, setting, value, strlen(value), NULL) == 0)
        qf_buf_appendf(name, "+%s=%s", qf_settings[setting].name, value);
}

/* Settings that change a byte of a tensor go into the view's name, where they win over
 * a quantfs.json of the source. A block size that no view has is left out; then the
 * absmax have another shape, and that is told. */
static int read_settings(struct qf_verify_dir *dir, const qf_json *quantization,
                         struct qf_err *err)
{
    struct qf_buf name = {0};
    char blocks[32];
    qf_json *state = read_state(dir);
    const char *dtype = qf_json_string(qf_json_get(state, "dtype"));
    double blocksize = qf_json_number(qf_json_get(state, "blocksize"));
    if (dtype == NULL)
        dtype = qf_json_string(qf_json_get(dir->config, "dtype"));
    if (dtype == NULL)
        dtype = qf_json_string(qf_json_get(dir->config, "torch_dtype"));
    snprintf(blocks, sizeof blocks, "%.0f", blocksize);
    qf_buf_append_str(&name, dir->view.name);
    add_setting(&dir->view, QF_SETTING_DTYPE, dtype, &name);
    add_setting(&dir->view, QF_SETTING_BLOCKSIZE, blocks, &name);
    add_setting(&dir->view, QF_SETTING_STORAGE,
                qf_json_string(qf_json_get(quantization, "bnb_4bit_quant_storage")),
                &name);
    qf_json_free(state);
    int rc = name.failed ? no_memory(err)
                         : qf_view_parse(name.data, name.size, &dir->view, err);
    qf_buf_fini(&name);
    return rc;
}

static int read_view(const struct qf_verify *verify, struct qf_verify_dir *dir,
                     struct qf_err *err)
{
    const qf_json *quantization = qf_json_get(dir->config, "quantization_config");
    const char *method = qf_json_string(qf_json_get(quantization, "quant_method"));
    if (verify->view != NULL && !qf_view_is_default(verify->view->codec))
        return qf_err_set(err, -ENOTSUP,
                          "view '%s': verify knows the formats of bitsandbytes alone",
                          verify->view->name);
    if (verify->view != NULL) {
        dir->view = *verify->view;
        return 0;
    }
    /* What is not quantized is compared with a view that should not change it. */
    const char *name = quantization != NULL ? codec_name(quantization) : "nf4";
    if (quantization != NULL && method != NULL && strcmp(method, "bitsandbytes") != 0)
        return qf_err_set(err, -ENOTSUP, "/%s: quantized by %s, not by bitsandbytes",
                          dir->path, method);
    if (name == NULL)
        return qf_err_set(err, -ENOTSUP,
                          "/%s: fp4 with double quantization has no view to compare it "
                          "with",
                          dir->path);
    int rc = qf_view_parse(name, strlen(name), &dir->view, err);
    return rc == 0 ? read_settings(dir, quantization, err) : rc;
}

bool qf_verify_is_quantized(const struct qf_verify_dir *dir, const char *name)
{
    static const char *const states[] = {".quant_state.bitsandbytes__nf4",
                                         ".quant_state.bitsandbytes__fp4"};
    size_t n = strlen(name);
    char *companion = malloc(n + 64);
    bool found = false;
    for (size_t i = 0; companion != NULL && i < 2; i++) {
        strcpy(stpcpy(companion, name), states[i]);
        found = found || qf_verify_find(dir, companion) != NULL;
    }
    if (companion != NULL && qf_path_ends_with(name, ".weight")) {
        memcpy(companion, name, n);
        strcpy(companion + n - strlen("weight"), "SCB");
        found = found || qf_verify_find(dir, companion) != NULL;
    }
    free(companion);
    return found;
}

/* ---- its names ---- */

/* "model" of "model-00001-of-00002.safetensors" and of "model.safetensors". */
static size_t stem_of(const char *name)
{
    size_t n = strlen(name) - strlen(".safetensors");
    const char *number = n > 15 ? name + n - 15 : "";
    return strlen(number) >= 15 && number[0] == '-' &&
                   memcmp(number + 6, "-of-", 4) == 0
               ? n - 15
               : n;
}

/* The weight set that has the same name as the checkpoint's; else the first. */
static const struct qf_weight_set *find_set(const struct qf_verify_dir *dir)
{
    const struct qf_model *model = dir->model;
    const char *theirs = dir->shards[0].name;
    for (size_t i = 0; i < model->set_count; i++) {
        const char *mine = model->sets[i].shards[0].name;
        if (stem_of(mine) == stem_of(theirs) &&
            strncmp(mine, theirs, stem_of(mine)) == 0)
            return &model->sets[i];
    }
    return &model->sets[0];
}

static size_t count_found(const struct qf_verify_dir *dir,
                          const struct qf_weight_set *set, const char *prefix,
                          bool added)
{
    size_t count = 0;
    for (size_t i = 0; i < set->shard_count; i++)
        for (size_t t = 0; t < set->shards[i].header->tensor_count; t++) {
            const char *name = set->shards[i].header->tensors[t].name;
            count += (prefix != NULL ? find_renamed(dir, prefix, added, name)
                                     : find_exactly(dir, name)) != NULL;
        }
    return count;
}

/* Whether `longer` is `name` behind a prefix that ends with a dot. */
static bool is_behind_prefix(const char *longer, const char *name)
{
    size_t n = strlen(longer), k = strlen(name);
    return n > k && longer[n - k - 1] == '.' && strcmp(longer + n - k, name) == 0;
}

/* Tries the prefix that would make these two the same tensor. */
static int try_prefix(struct qf_verify_dir *dir, const struct qf_weight_set *set,
                      const char *mine, const char *theirs, size_t *best)
{
    bool added = is_behind_prefix(theirs, mine);
    if (!added && !is_behind_prefix(mine, theirs))
        return 0;
    size_t a = strlen(theirs), b = strlen(mine);
    char *prefix = added ? strndup(theirs, a - b) : strndup(mine, b - a);
    if (prefix == NULL)
        return -ENOMEM;
    size_t count = count_found(dir, set, prefix, added);
    if (count <= *best) {
        free(prefix);
        return 0;
    }
    *best = count;
    free(dir->prefix);
    dir->prefix = prefix;
    dir->prefix_added = added;
    return 0;
}

/* A model may be saved by a class that holds it under a name ("bert."), or by the one
 * inside. Some names tell which prefix that is: what most names agree on, counts. */
static int find_prefix(struct qf_verify_dir *dir, const struct qf_weight_set *set)
{
    const struct qf_shard *first = set->shards[0].header;
    size_t best = count_found(dir, set, NULL, false);
    int rc = 0;
    for (size_t t = 0; t < first->tensor_count && t < PREFIX_TRIES && rc == 0; t++) {
        const char *name = first->tensors[t].name;
        if (find_exactly(dir, name) != NULL)
            continue;
        for (size_t i = 0; i < dir->tensor_count && rc == 0; i++)
            rc = try_prefix(dir, set, name, dir->tensors[i].tensor->name, &best);
    }
    return rc;
}

/* ---- the view that it should be ---- */

/* Appends the module of a weight to a list of JSON strings. */
static void add_module(const char *weight, struct qf_buf *list)
{
    qf_buf_append_str(list, list->size != 0 ? "," : "");
    qf_buf_append_json(list, weight, strlen(weight) - strlen(".weight"));
}

static bool is_skipped(const struct qf_verify_dir *dir, const char *tensor)
{
    const qf_json *list = qf_json_get(qf_json_get(dir->config, "quantization_config"),
                                      "llm_int8_skip_modules");
    char *module = strndup(tensor, strlen(tensor) - strlen(".weight"));
    bool hit = false;
    for (const qf_json *e = qf_json_first(list); e != NULL && !hit;
         e = qf_json_after(e))
        hit = module != NULL && qf_json_string(e) != NULL &&
              qf_skip_hits(qf_json_string(e), module);
    free(module);
    return hit;
}

/* Overrides for weights about which the checkpoint is of another mind than the view. */
static int adapt(struct qf_verify_dir *dir)
{
    struct qf_buf force = {0}, skip = {0}, text = {0};
    for (size_t f = 0; f < dir->variant->file_count; f++) {
        const struct qf_layout *layout = dir->variant->files[f].layout;
        for (size_t i = 0; layout != NULL && i < layout->tensor_count; i++) {
            const char *name = layout->tensors[i].src->name;
            bool mine = layout->tensors[i].plan != NULL;
            if (!qf_path_ends_with(name, ".weight") ||
                mine == qf_verify_is_quantized(dir, name))
                continue;
            if (!mine)
                add_module(name, &force);
            else if (qf_verify_find(dir, name) != NULL && is_skipped(dir, name))
                add_module(name, &skip);
        }
    }
    bool any = force.size != 0 || skip.size != 0;
    qf_buf_appendf(&text, "{\"force\":[%.*s],\"skip\":[%.*s]}", (int)force.size,
                   force.size != 0 ? (const char *)force.data : "", (int)skip.size,
                   skip.size != 0 ? (const char *)skip.data : "");
    bool failed = force.failed || skip.failed || text.failed;
    if (any && !failed)
        dir->overrides = qf_buf_take(&text, NULL);
    qf_buf_fini(&force);
    qf_buf_fini(&skip);
    qf_buf_fini(&text);
    return failed || (any && dir->overrides == NULL) ? -ENOMEM : 0;
}

/* The view's plan, as a mount with these overrides makes it. */
static int plan(struct qf_verify_dir *dir, struct qf_err *err)
{
    struct qf_view view;
    int rc = qf_overrides_apply(&dir->view, dir->overrides,
                                dir->overrides != NULL ? strlen(dir->overrides) : 0,
                                &view, err);
    if (rc != 0)
        return rc;
    qf_variant_free(dir->variant);
    dir->variant = NULL;
    rc = qf_variant_new(dir->model, &view, &dir->variant);
    qf_view_fini(&view);
    return rc == 0 ? 0 : no_memory(err);
}

static int make_variant(const struct qf_verify *verify, struct qf_verify_dir *dir,
                        struct qf_err *err)
{
    int rc = qf_model_load(dir->root, dir->source, &dir->model, err);
    if (rc != 0) {
        qf_err_prefix(err, "/%s", dir->source);
        return rc;
    }
    if (dir->model->set_count != 0 && find_prefix(dir, find_set(dir)) != 0)
        return no_memory(err);
    rc = plan(dir, err);
    if (rc == 0 && verify->view == NULL) {
        rc = adapt(dir) == 0 ? 0 : no_memory(err);
        if (rc == 0 && dir->overrides != NULL)
            rc = plan(dir, err);
    }
    if (rc == 0 && dir->variant->reason[0] != '\0' &&
        qf_json_get(dir->config, "quantization_config") != NULL)
        return qf_err_set(err, -ENOTSUP, "/%s has no view: %s", dir->source,
                          dir->variant->reason);
    return rc;
}

static int open_stack(const struct qf_verify *verify, struct qf_verify_dir *dir,
                      struct qf_err *err)
{
    dir->options = *verify->options;
    dir->options.views[0] = dir->view;
    dir->options.view_count = 1;
    const struct qf_stack_options options = {.mount = &dir->options,
                                             .store_path = "/",
                                             .overrides = dir->overrides};
    int rc = qf_stack_open(&dir->stack, &options, err);
    dir->served = (struct qf_views_source){&qf_source_stack_ops, &dir->stack, NULL};
    return rc == 0 || err->text[0] != '\0' ? rc
                                           : qf_err_set(err, rc, "%s", strerror(-rc));
}

/* ---- what is to be compared ---- */

static void place_parts(const struct qf_layout *layout, struct qf_verify_unit *units)
{
    for (size_t i = 0; i < layout->span_count; i++) {
        const struct qf_span *span = &layout->spans[i];
        if (span->kind != QF_SPAN_HEADER)
            units[span->tensor].offs[span->part] = span->off;
    }
}

static int alloc_units(struct qf_verify *verify, size_t count, struct qf_err *err)
{
    verify->units = calloc(count + 1, sizeof *verify->units);
    verify->unit_count = 0;
    verify->next_unit = 0;
    return verify->units != NULL ? 0 : no_memory(err);
}

static void add_units(struct qf_verify *verify, const char *name,
                      const struct qf_shard *header, const struct qf_layout *layout)
{
    struct qf_verify_unit *units = &verify->units[verify->unit_count];
    for (size_t t = 0; t < header->tensor_count; t++) {
        const struct qf_tensor *src = &header->tensors[t];
        units[t] = (struct qf_verify_unit){src,
                                           layout != NULL ? &layout->tensors[t] : NULL,
                                           name,
                                           {layout != NULL ? 0 : src->off}};
    }
    if (layout != NULL)
        place_parts(layout, units);
    verify->unit_count += header->tensor_count;
}

static bool has_shard(const struct qf_verify_dir *dir, const char *name)
{
    for (size_t i = 0; i < dir->shard_count; i++)
        if (strcmp(dir->shards[i].name, name) == 0)
            return true;
    return false;
}

/* Files of the source that the checkpoint has not. */
static int note_absent(struct qf_verify *verify, const struct qf_verify_dir *dir,
                       struct qf_err *err)
{
    int fd = qf_root_opendir(dir->root, dir->source);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *d;
    if (list == NULL)
        return qf_err_set(err, fd < 0 ? fd : -errno, "/%s: %s", dir->source,
                          strerror(fd < 0 ? -fd : errno));
    while ((d = readdir(list)) != NULL)
        if (qf_path_ends_with(d->d_name, ".safetensors") && !has_shard(dir, d->d_name))
            qf_verify_note(verify, QF_VERIFY_MISSING, d->d_name, UINT64_MAX, "", "");
    closedir(list);
    return 0;
}

/* No model: files of the same names, as they are. */
static int list_plain(struct qf_verify *verify, struct qf_verify_dir *dir,
                      struct qf_err *err)
{
    size_t count = 0;
    dir->plain = calloc(dir->shard_count, sizeof *dir->plain);
    if (dir->plain == NULL)
        return no_memory(err);
    for (size_t i = 0; i < dir->shard_count; i++) {
        int rc = open_header(dir->root, dir->source, dir->shards[i].name,
                             &dir->plain[i], err);
        if (rc != 0)
            return rc;
        count += dir->plain[i].header->tensor_count;
    }
    int rc = alloc_units(verify, count, err);
    for (size_t i = 0; rc == 0 && i < dir->shard_count; i++)
        add_units(verify, dir->shards[i].name, dir->plain[i].header, NULL);
    return rc == 0 ? note_absent(verify, dir, err) : rc;
}

static int list_units(struct qf_verify *verify, struct qf_verify_dir *dir,
                      struct qf_err *err)
{
    size_t count = 0;
    /* A quantized source has the headers of the plain one: for views, not for copies.
     */
    if (dir->model->set_count == 0 ||
        (dir->model->is_bnb && dir->variant->reason[0] != '\0'))
        return list_plain(verify, dir, err);
    const struct qf_weight_set *set = find_set(dir);
    for (size_t i = 0; i < set->shard_count; i++)
        count += set->shards[i].header->tensor_count;
    int rc = alloc_units(verify, count, err);
    for (size_t i = 0; rc == 0 && i < set->shard_count; i++) {
        const struct qf_model_shard *shard = &set->shards[i];
        const struct qf_variant_file *file = qf_variant_find(dir->variant, shard->name);
        add_units(verify, shard->name, shard->header,
                  file != NULL ? file->layout : NULL);
    }
    return rc;
}

int qf_verify_dir_open(struct qf_verify *verify, struct qf_verify_dir *dir,
                       struct qf_err *err)
{
    int rc = qf_root_open("/", &dir->root, err);
    if (rc == 0)
        rc = open_shards(dir, err);
    if (rc == 0)
        rc = read_config(dir, err);
    if (rc == 0)
        rc = read_view(verify, dir, err);
    if (rc == 0)
        rc = make_variant(verify, dir, err);
    if (rc == 0)
        rc = open_stack(verify, dir, err);
    if (rc == 0)
        rc = list_units(verify, dir, err);
    if (rc != 0 && err->text[0] == '\0')
        qf_err_set(err, rc, "/%s: %s", dir->path, strerror(-rc));
    return rc;
}

static void close_shards(struct qf_verify_shard *shards, size_t count)
{
    for (size_t i = 0; shards != NULL && i < count; i++) {
        qf_srcfile_close(shards[i].file);
        qf_shard_free(shards[i].header);
        free(shards[i].name);
    }
    free(shards);
}

void qf_verify_dir_close(struct qf_verify_dir *dir)
{
    qf_stack_close(&dir->stack);
    qf_variant_free(dir->variant);
    qf_model_free(dir->model);
    qf_json_free(dir->config);
    close_shards(dir->plain, dir->shard_count);
    close_shards(dir->shards, dir->shard_count);
    free(dir->overrides);
    free(dir->tensors);
    qf_root_close(dir->root);
    free(dir->prefix);
    free(dir->path);
    free(dir->source);
}
