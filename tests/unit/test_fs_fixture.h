/* SPDX-License-Identifier: Apache-2.0 */
/* A store in a directory and the tree over it. */
#ifndef QF_TESTS_UNIT_TEST_FS_FIXTURE_H
#define QF_TESTS_UNIT_TEST_FS_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it. */
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "fs/file.h"
#include "fs/tree.h"
#include "support/stfile.h"
#include "support/tmpdir.h"

#define CONFIG                                                                         \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "          \
    "\"torch_dtype\": \"bfloat16\"}\n"

static const struct stfile_tensor model_tensors[] = {
    {"model.layers.0.self_attn.q_proj.weight", QF_BF16, 2, {64, 64, 0, 0}, NULL},
    {"model.layers.0.self_attn.k_proj.weight", QF_BF16, 2, {32, 64, 0, 0}, NULL},
    {"model.norm.weight", QF_BF16, 1, {64, 0, 0, 0}, NULL},
};
#define MODEL_TENSORS 3

struct sfx {
    char *dir; /* of the store */
    struct qf_view views[QF_VIEWS_MAX];
    size_t view_count;
    qf_root *root;
    qf_backend *backend;
    qf_store *store;
    qf_store *(*wrap)(qf_store *store); /* NULL, or gives another one in its place */
    qf_passthrough *passthrough;        /* borrowed */
    qf_engine *engine;
    const char *policy; /* borrowed; NULL: none */
    bool alias_bnb;
    qf_tree *tree;
};

static inline void sfx_open(struct sfx *s, const char *views)
{
    struct qf_err err = {""};
    qf_log_set_level(QF_LOG_ERROR);
    if (qf_view_parse_list(views, s->views, &s->view_count, &err) != 0 ||
        qf_root_open(s->dir, &s->root, &err) != 0 ||
        qf_cpu_backend_open(NULL, &s->backend, &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(qf_store_mem_open(16u << 20, &s->store), 0);
    if (s->wrap != NULL)
        s->store = s->wrap(s->store);
    struct qf_engine_options engine = {.backend = s->backend,
                                       .store = s->store,
                                       .thread_count = 2};
    assert_int_equal(qf_engine_new(&engine, &s->engine), 0);
    struct qf_tree_options tree = {.root = s->root,
                                   .views = s->views,
                                   .view_count = s->view_count,
                                   .engine = s->engine,
                                   .store = s->store,
                                   .passthrough = s->passthrough,
                                   .policy = s->policy,
                                   .policy_size =
                                       s->policy != NULL ? strlen(s->policy) : 0,
                                   .alias_bnb = s->alias_bnb};
    assert_int_equal(qf_tree_new(&tree, &s->tree), 0);
}

static inline void sfx_close(struct sfx *s)
{
    qf_tree_free(s->tree);
    qf_engine_free(s->engine);
    qf_store_close(s->store);
    qf_backend_close(s->backend);
    qf_root_close(s->root);
}

static inline void sfx_begin(struct sfx *s)
{
    *s = (struct sfx){.dir = tmpdir_make()};
}

static inline void sfx_end(struct sfx *s)
{
    tmpdir_remove(s->dir);
}

static inline const char *sfx_path(const struct sfx *s, const char *path)
{
    static char buffers[4][4096];
    static unsigned next;
    char *out = buffers[next++ % 4];
    snprintf(out, sizeof buffers[0], "%s/%s", s->dir, path);
    return out;
}

static inline void sfx_shard(const struct sfx *s, const char *path)
{
    stfile_write(s->dir, path, model_tensors, MODEL_TENSORS);
}

/* A model that every view quantizes. */
static inline void sfx_model(const struct sfx *s, const char *dir)
{
    char path[512];
    snprintf(path, sizeof path, "%s/config.json", dir);
    tmpdir_write_text(s->dir, path, CONFIG);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    sfx_shard(s, path);
    snprintf(path, sizeof path, "%s/README.md", dir);
    tmpdir_write_text(s->dir, path, "hello\n");
}

/* Walks a path of the mount from its root; the error or 0. */
static inline int sfx_lookup(const struct sfx *s, const char *path,
                             struct qf_entry *out)
{
    char copy[4096];
    uint64_t id = QF_NODE_ROOT;
    snprintf(copy, sizeof copy, "%s", path);
    char *rest = copy;
    for (char *name; (name = strsep(&rest, "/")) != NULL;) {
        int rc = qf_tree_lookup(s->tree, id, name, out);
        if (rc != 0)
            return rc;
        id = out->st.st_ino;
    }
    return 0;
}

static inline struct qf_entry sfx_entry(const struct sfx *s, const char *path)
{
    struct qf_entry entry = {0};
    int rc = sfx_lookup(s, path, &entry);
    if (rc != 0)
        fail_msg("%s: %s", path, strerror(-rc));
    return entry;
}

/* The contents of an open file. Returns owned, or NULL with *rc. */
static inline char *sfx_read(qf_file *file, size_t *size, int *rc)
{
    struct qf_buf all = {0};
    for (;;) {
        struct qf_file_read read;
        *rc = qf_file_read(file, all.size, 100000, &read);
        if (*rc != 0) {
            qf_buf_fini(&all);
            return NULL;
        }
        for (size_t i = 0; i < read.piece_count; i++)
            qf_buf_append(&all, read.pieces[i].iov_base, read.pieces[i].iov_len);
        size_t n = read.size;
        qf_file_read_done(&read);
        if (n == 0)
            return qf_buf_take(&all, size);
    }
}

static inline char *sfx_contents(const struct sfx *s, const char *path, size_t *size)
{
    struct qf_entry entry = sfx_entry(s, path);
    qf_file *file;
    int rc = qf_file_open(s->tree, entry.st.st_ino, &file);
    if (rc == -ESTALE) { /* as the kernel does: once more, from the name */
        entry = sfx_entry(s, path);
        rc = qf_file_open(s->tree, entry.st.st_ino, &file);
    }
    if (rc != 0)
        fail_msg("open %s: %s", path, strerror(-rc));
    char *text = sfx_read(file, size, &rc);
    if (text == NULL)
        fail_msg("read %s: %s", path, strerror(-rc));
    bool dynamic = qf_file_is_dynamic(file);
    qf_file_close(file);
    if (!dynamic)
        assert_int_equal(*size, entry.st.st_size);
    return text;
}

/* What a directory shows, sorted, with '/' behind directories: "a/ b". */
static inline char *sfx_list(const struct sfx *s, uint64_t id)
{
    static char text[4096];
    const char *names[256];
    char types[256];
    qf_dir *dir;
    int rc = qf_tree_opendir(s->tree, id, &dir);
    if (rc != 0)
        fail_msg("opendir: %s", strerror(-rc));
    size_t count = 0;
    for (size_t i = 2; i < qf_dir_count(dir); i++) {
        uint64_t child;
        unsigned type;
        const char *name = qf_dir_entry(dir, i, &child, &type);
        size_t at = count++;
        for (; at > 0 && strcmp(names[at - 1], name) > 0; at--) {
            names[at] = names[at - 1];
            types[at] = types[at - 1];
        }
        names[at] = name;
        types[at] = type == DT_DIR ? '/' : ' ';
    }
    text[0] = '\0';
    for (size_t i = 0, n = 0; i < count; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s%s", i != 0 ? " " : "",
                              names[i], types[i] == '/' ? "/" : "");
    qf_dir_close(dir);
    return text;
}

static inline bool sfx_is_quantized(const struct sfx *s, const char *path)
{
    size_t size;
    char *text = sfx_contents(s, path, &size);
    bool found = memmem(text, size, "bitsandbytes", 12) != NULL;
    free(text);
    return found;
}

#endif
