/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF files in the tree, and every allocation and system call behind one failing. */
#include "test_fs_fixture.h"

#include "fs/xattr.h"
#include "support/faults.h"

#define LLAMA                                                                          \
    "{\"model_type\": \"llama\", \"num_attention_heads\": 2, \"hidden_size\": 64, "    \
    "\"num_hidden_layers\": 1, \"max_position_embeddings\": 8, \"vocab_size\": 4, "    \
    "\"intermediate_size\": 64, \"rms_norm_eps\": 1e-5, \"bos_token_id\": [1]}"
#define TOKENIZER                                                                      \
    "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1}, \"merges\": "    \
    "[[\"a\", \"b\"], \"a a\"]}, \"pre_tokenizer\": {\"type\": \"ByteLevel\"}}"
#define INDEX                                                                          \
    "{\"weight_map\": {\"model.embed_tokens.weight\": \"model-1.safetensors\", "       \
    "\"model.layers.0.self_attn.q_proj.weight\": \"model-1.safetensors\", "            \
    "\"model.norm.weight\": \"model-2.safetensors\"}}"

static const struct stfile_tensor first[] = {
    {"model.embed_tokens.weight", QF_BF16, 2, {4, 64, 0, 0}, NULL},
    {"model.layers.0.self_attn.q_proj.weight", QF_BF16, 2, {64, 64, 0, 0}, NULL},
};
static const struct stfile_tensor second[] = {
    {"model.norm.weight", QF_BF16, 1, {64, 0, 0, 0}, NULL},
};

static const char path[] = "gguf-q8_0/org/tiny/tiny-Q8_0.gguf";

static void begin(struct sfx *s)
{
    sfx_begin(s);
    tmpdir_write_text(s->dir, "org/tiny/config.json", LLAMA);
    tmpdir_write_text(s->dir, "org/tiny/tokenizer.json", TOKENIZER);
    tmpdir_write_text(s->dir, "org/tiny/model.safetensors.index.json", INDEX);
    stfile_write(s->dir, "org/tiny/model-1.safetensors", first, 2);
    stfile_write(s->dir, "org/tiny/model-2.safetensors", second, 1);
}

static void test_listed(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    begin(&s);
    sfx_open(&s, "nf4");
    e = sfx_entry(&s, "gguf-q8_0/org/tiny");
    assert_string_equal(sfx_list(&s, e.st.st_ino),
                        "config.json tiny-Q8_0.gguf tokenizer.json");
    e = sfx_entry(&s, "nf4/org/tiny");
    assert_string_equal(sfx_list(&s, e.st.st_ino),
                        "config.json model-1.safetensors model-2.safetensors "
                        "model.safetensors.index.json tokenizer.json");
    assert_int_equal(sfx_lookup(&s, "gguf-q8_0/org/tiny/model-1.safetensors", &e),
                     -ENOENT);
    assert_int_equal(sfx_lookup(&s, "gguf-q8_0/org/tiny/tiny-Q4_0.gguf", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "gguf-q8_0/org/x.gguf", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "gguf-q8_0/gone/x.gguf", &e), -ENOENT);
    sfx_close(&s);
    sfx_end(&s);
}

/* The id is the same in another daemon, which finds the file by it alone. */
static void test_found_by_id(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e, again;
    begin(&s);
    sfx_open(&s, "nf4:gguf-q8_0");
    e = sfx_entry(&s, path);
    sfx_close(&s);
    sfx_open(&s, "gguf-q8_0");
    assert_int_equal(qf_tree_getattr(s.tree, e.st.st_ino, &again), 0);
    assert_int_equal(again.generation, e.generation);
    assert_int_equal(again.st.st_size, e.st.st_size);
    sfx_close(&s);
    sfx_open(&s, "nf4");
    assert_int_equal(qf_tree_getattr(s.tree, e.st.st_ino, &again), -ESTALE);
    sfx_close(&s);
    sfx_end(&s);
}

/* Another shard, another tokenizer: another generation, and the old one is stale. */
static void test_changes(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e[3];
    qf_file *file;
    begin(&s);
    sfx_open(&s, "gguf-q8_0");
    e[0] = sfx_entry(&s, path);
    stfile_write(s.dir, "org/tiny/model-2.safetensors", second, 1);
    assert_int_equal(qf_file_open(s.tree, e[0].st.st_ino, &file), -ESTALE);
    e[1] = sfx_entry(&s, path);
    assert_true(e[1].generation != e[0].generation);
    tmpdir_write_text(s.dir, "org/tiny/tokenizer_config.json", "{}");
    assert_int_equal(unlink(sfx_path(&s, "org/tiny/model-1.safetensors")), 0);
    int rc = qf_file_open(s.tree, e[1].st.st_ino, &file);
    assert_true(rc == -ESTALE || rc == -ENOENT);
    assert_int_equal(sfx_lookup(&s, path, &e[2]), -ENOENT);
    sfx_close(&s);
    sfx_end(&s);
}

/* ---- faults ---- */

static int list_dir(struct sfx *s, uint64_t id)
{
    qf_dir *dir;
    int rc = qf_tree_opendir(s->tree, id, &dir);
    if (rc != 0)
        return rc;
    /* A model that cannot be looked at is listed as it is. */
    rc = qf_dir_count(dir) == 5 || qf_dir_count(dir) == 7 ? 0 : -EPROTO;
    qf_dir_close(dir);
    return rc;
}

static int read_attribute(struct sfx *s, uint64_t id)
{
    struct qf_buf out = {0};
    int rc = qf_xattr_get(s->tree, id, "user.quantfs.key", &out);
    if (rc == 0)
        rc =
            qf_xattr_get(s->tree, id, "user.quantfs.source", (qf_buf_fini(&out), &out));
    if (rc == 0 && (out.size != 8 || memcmp(out.data, "org/tiny", 8) != 0))
        rc = -EPROTO;
    qf_buf_fini(&out);
    return rc;
}

/* Without memory of its own, which would fail, too. */
static int compare(qf_file *file, const char *want, size_t want_size)
{
    size_t at = 0;
    for (;;) {
        struct qf_file_read read;
        int rc = qf_file_read(file, at, 3000, &read);
        if (rc != 0)
            return rc;
        size_t n = read.size;
        for (size_t i = 0; i < read.piece_count && rc == 0; i++) {
            size_t size = read.pieces[i].iov_len;
            if (at + size > want_size ||
                memcmp(want + at, read.pieces[i].iov_base, size) != 0)
                rc = -EPROTO;
            at += size;
        }
        qf_file_read_done(&read);
        if (n == 0 || rc != 0)
            return rc != 0 ? rc : at == want_size ? 0 : -EPROTO;
    }
}

/* Looks it up, lists its directory, reads all of it. */
static int work(struct sfx *s, const char *want, size_t want_size)
{
    struct qf_entry e, dir;
    qf_file *file;
    int rc = sfx_lookup(s, "gguf-q8_0/org/tiny", &dir);
    if (rc == 0)
        rc = list_dir(s, dir.st.st_ino);
    if (rc == 0)
        rc = sfx_lookup(s, path, &e);
    if (rc == 0)
        rc = read_attribute(s, e.st.st_ino);
    if (rc == 0)
        rc = qf_file_open(s->tree, e.st.st_ino, &file);
    if (rc != 0)
        return rc;
    rc = compare(file, want, want_size);
    qf_file_close(file);
    return rc;
}

static void fail_each(unsigned calls, int error)
{
    struct sfx s;
    size_t size;
    long n = 1, live = 0;
    begin(&s);
    sfx_open(&s, "gguf-q8_0");
    char *want = sfx_contents(&s, path, &size);
    sfx_close(&s);
    for (;; n++) {
        struct faults faults = {.calls = calls, .error = error, .at = n};
        sfx_open(&s, "gguf-q8_0");
        faults_arm(&faults);
        int rc = work(&s, want, size);
        long count = faults_disarm();
        assert_int_not_equal(rc, -EPROTO);
        /* What failed has left nothing that the next one could stumble over. */
        int again = work(&s, want, size);
        sfx_close(&s);
        if (n > 1)
            assert_true(faults_live_blocks() <= live);
        live = faults_live_blocks();
        assert_true(again == 0 || again == -ENOENT || again == -ESTALE);
        if (count < n)
            break;
    }
    print_message("%ld calls of kind %x failed\n", n - 1, calls);
    assert_true(n > 5);
    free(want);
    sfx_end(&s);
}

static void test_faults(void **state)
{
    (void)state;
#ifdef FAULTS_MISSING
    skip();
#else
#ifndef FAULTS_NO_ALLOC
    fail_each(FAULT_ALLOC, ENOMEM);
#endif
    fail_each(FAULT_OPEN, EMFILE);
    fail_each(FAULT_OPEN, EACCES);
    fail_each(FAULT_STAT, EIO);
    fail_each(FAULT_READ, EIO);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listed),
        cmocka_unit_test(test_found_by_id),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
