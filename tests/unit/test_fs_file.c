/* SPDX-License-Identifier: Apache-2.0 */
/* Open files, and stores that change under them. */
#include "test_fs_fixture.h"

#define SHARD "nf4/m/model.safetensors"

static void begin(struct sfx *s)
{
    sfx_begin(s);
    sfx_model(s, "m");
    sfx_open(s, "nf4:dq");
}

static void end(struct sfx *s)
{
    sfx_close(s);
    sfx_end(s);
}

/* Puts another file in the place of this one, as a download does. */
static void replace(const struct sfx *s, const char *path,
                    const struct stfile_tensor *tensors, size_t count)
{
    stfile_write(s->dir, "new", tensors, count);
    assert_int_equal(rename(sfx_path(s, "new"), sfx_path(s, path)), 0);
}

static void test_kinds(void **state)
{
    (void)state;
    struct sfx s;
    size_t size;
    qf_file *file;
    begin(&s);
    char *text = sfx_contents(&s, "nf4/m/README.md", &size);
    assert_string_equal(text, "hello\n");
    free(text);
    assert_true(sfx_is_quantized(&s, SHARD));
    assert_true(sfx_is_quantized(&s, "dq/m/config.json"));
    assert_int_equal(qf_file_open(s.tree, sfx_entry(&s, "nf4/m").st.st_ino, &file),
                     -EISDIR);
    assert_int_equal(qf_file_open(s.tree, QF_NODE_ROOT, &file), -EISDIR);
    assert_int_equal(qf_file_open(s.tree, sfx_entry(&s, ".quantfs").st.st_ino, &file),
                     -EISDIR);
    assert_int_equal(qf_file_open(s.tree, 4711, &file), -ESTALE);
    qf_file_close(NULL);
    end(&s);
}

/* Reads at and past the end, of every kind. */
static void test_ends(void **state)
{
    (void)state;
    static const char *const paths[] = {SHARD, "nf4/m/config.json", "nf4/m/README.md"};
    struct sfx s;
    begin(&s);
    for (size_t i = 0; i < 3; i++) {
        struct qf_entry e = sfx_entry(&s, paths[i]);
        uint64_t size = (uint64_t)e.st.st_size;
        struct qf_file_read read;
        qf_file *file;
        assert_int_equal(qf_file_open(s.tree, e.st.st_ino, &file), 0);
        assert_int_equal(qf_file_read(file, size - 1, 100, &read), 0);
        assert_int_equal(read.size, 1);
        qf_file_read_done(&read);
        const uint64_t offs[] = {size, size + 1, INT64_MAX};
        for (size_t k = 0; k < 3; k++) {
            assert_int_equal(qf_file_read(file, offs[k], 4096, &read), 0);
            assert_int_equal(read.size, 0);
            qf_file_read_done(&read);
        }
        assert_int_equal(qf_file_read(file, 0, SIZE_MAX, &read), 0);
        assert_int_equal(read.size, size);
        qf_file_read_done(&read);
        qf_file_close(file);
    }
    end(&s);
}

/* The kernel holds an id and a generation; the contents change; its open fails with
 * ESTALE, it looks the name up again, and all is well. */
static void test_generation(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    qf_file *file;
    const struct stfile_tensor other[] = {
        {"model.layers.0.self_attn.q_proj.weight", QF_BF16, 2, {64, 128, 0, 0}, NULL},
        {"model.norm.weight", QF_BF16, 1, {128, 0, 0, 0}, NULL},
    };
    begin(&s);
    struct qf_entry shard = sfx_entry(&s, SHARD);
    struct qf_entry config = sfx_entry(&s, "nf4/m/config.json");
    assert_int_equal(qf_tree_getattr(s.tree, shard.st.st_ino, &e), 0);
    assert_int_equal(e.generation, shard.generation);
    replace(&s, "m/model.safetensors", other, 2);
    assert_int_equal(qf_tree_getattr(s.tree, shard.st.st_ino, &e), -ESTALE);
    assert_int_equal(qf_file_open(s.tree, shard.st.st_ino, &file), -ESTALE);
    e = sfx_entry(&s, SHARD);
    assert_int_equal(e.st.st_ino, shard.st.st_ino);
    assert_int_not_equal(e.generation, shard.generation);
    assert_int_not_equal(e.st.st_size, shard.st.st_size);
    assert_true(sfx_is_quantized(&s, SHARD));
    /* config.json says what it said */
    assert_int_equal(sfx_entry(&s, "nf4/m/config.json").generation, config.generation);
    end(&s);
}

/* Only times change: the weights may have. */
static void test_touch(void **state)
{
    (void)state;
    struct sfx s;
    qf_file *file;
    struct qf_file_read read;
    begin(&s);
    struct qf_entry shard = sfx_entry(&s, SHARD);
    struct qf_entry readme = sfx_entry(&s, "nf4/m/README.md");
    qf_file *readme_file;
    assert_int_equal(qf_file_open(s.tree, shard.st.st_ino, &file), 0);
    assert_int_equal(qf_file_open(s.tree, readme.st.st_ino, &readme_file), 0);
    const struct timespec times[2] = {{5, 5}, {5, 5}};
    assert_int_equal(utimensat(AT_FDCWD, sfx_path(&s, "m/model.safetensors"), times, 0),
                     0);
    assert_int_equal(utimensat(AT_FDCWD, sfx_path(&s, "m/README.md"), times, 0), 0);
    assert_int_equal(qf_file_read(file, 0, 100, &read), -ESTALE);
    assert_int_equal(qf_file_read(readme_file, 0, 100, &read), -ESTALE);
    qf_file_close(file);
    qf_file_close(readme_file);
    assert_int_equal(qf_file_open(s.tree, shard.st.st_ino, &file), -ESTALE);
    assert_int_equal(qf_file_open(s.tree, readme.st.st_ino, &file), -ESTALE);
    assert_int_not_equal(sfx_entry(&s, SHARD).generation, shard.generation);
    assert_true(sfx_is_quantized(&s, SHARD));
    end(&s);
}

/* A config.json that changes what the plan is changes the shards, too. */
static void test_config_decides(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    qf_file *file;
    begin(&s);
    struct qf_entry shard = sfx_entry(&s, SHARD);
    tmpdir_write_text(s.dir, "m/config.json",
                      "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": "
                      "\"llama\", \"torch_dtype\": \"float16\"}");
    /* the open looks closely, whatever was looked at a moment ago */
    assert_int_equal(qf_file_open(s.tree, shard.st.st_ino, &file), -ESTALE);
    e = sfx_entry(&s, SHARD);
    assert_int_not_equal(e.generation, shard.generation);
    size_t size;
    char *text = sfx_contents(&s, SHARD, &size);
    assert_non_null(memmem(text, size, "\"dtype\": \"float16\"", 18));
    free(text);
    end(&s);
}

/* Shards named by an index come one by one: nothing is quantized before the last. */
static void test_download(void **state)
{
    (void)state;
    struct sfx s;
    qf_file *file;
    const struct stfile_tensor first[] = {model_tensors[0]};
    const struct stfile_tensor second[] = {model_tensors[1], model_tensors[2]};
    sfx_begin(&s);
    tmpdir_write_text(s.dir, "m/config.json", CONFIG);
    tmpdir_write_text(s.dir, "m/model.safetensors.index.json",
                      "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {"
                      "\"model.layers.0.self_attn.q_proj.weight\": \"a.safetensors\", "
                      "\"model.layers.0.self_attn.k_proj.weight\": \"b.safetensors\", "
                      "\"model.norm.weight\": \"b.safetensors\"}}");
    stfile_write(s.dir, "m/a.safetensors", first, 1);
    tmpdir_write_text(s.dir, "m/b.safetensors.incomplete", "x");
    sfx_open(&s, "nf4");
    struct qf_entry config = sfx_entry(&s, "nf4/m/config.json");
    struct qf_entry a = sfx_entry(&s, "nf4/m/a.safetensors");
    assert_int_equal(config.st.st_size, sizeof CONFIG - 1);
    assert_false(sfx_is_quantized(&s, "nf4/m/a.safetensors"));
    assert_false(sfx_is_quantized(&s, "nf4/m/config.json"));
    stfile_write(s.dir, "m/b.safetensors", second, 2);
    assert_int_equal(unlink(sfx_path(&s, "m/b.safetensors.incomplete")), 0);
    assert_int_equal(qf_file_open(s.tree, a.st.st_ino, &file), -ESTALE);
    assert_true(sfx_is_quantized(&s, "nf4/m/a.safetensors"));
    assert_true(sfx_is_quantized(&s, "nf4/m/b.safetensors"));
    assert_true(sfx_is_quantized(&s, "nf4/m/config.json"));
    assert_true(sfx_is_quantized(&s, "nf4/m/model.safetensors.index.json"));
    assert_int_not_equal(sfx_entry(&s, "nf4/m/config.json").generation,
                         config.generation);
    /* and it goes again with a shard */
    assert_int_equal(truncate(sfx_path(&s, "m/b.safetensors"), 50), 0);
    a = sfx_entry(&s, "nf4/m/a.safetensors");
    assert_int_equal(qf_file_open(s.tree, a.st.st_ino, &file), -ESTALE);
    assert_false(sfx_is_quantized(&s, "nf4/m/a.safetensors"));
    assert_false(sfx_is_quantized(&s, "nf4/m/config.json"));
    sfx_close(&s);
    sfx_end(&s);
}

/* An open file keeps what it needs when the model is forgotten. */
static void test_snapshot_outlives(void **state)
{
    (void)state;
    struct sfx s;
    qf_file *file, *text_file;
    int rc;
    size_t size;
    begin(&s);
    assert_int_equal(qf_file_open(s.tree, sfx_entry(&s, SHARD).st.st_ino, &file), 0);
    assert_int_equal(qf_file_open(s.tree, sfx_entry(&s, "nf4/m/config.json").st.st_ino,
                                  &text_file),
                     0);
    assert_int_equal(unlink(sfx_path(&s, "m/config.json")), 0);
    assert_false(sfx_is_quantized(&s, SHARD));
    /* the source of the shard is what it was */
    char *text = sfx_read(file, &size, &rc);
    assert_non_null(text);
    assert_non_null(memmem(text, size, "bitsandbytes", 12));
    free(text);
    text = sfx_read(text_file, &size, &rc);
    assert_non_null(memmem(text, size, "quantization_config", 19));
    free(text);
    qf_file_close(file);
    qf_file_close(text_file);
    end(&s);
}

static void test_no_permission(void **state)
{
    (void)state;
    struct sfx s;
    qf_file *file;
    begin(&s);
    assert_int_equal(chmod(sfx_path(&s, "."), 0755), 0);
    assert_int_equal(chmod(sfx_path(&s, "m"), 0755), 0);
    assert_int_equal(chmod(sfx_path(&s, "m/README.md"), 0), 0);
    struct qf_entry e = sfx_entry(&s, "nf4/m/README.md");
    struct qf_entry readable = sfx_entry(&s, "nf4/m/config.json");
    bool root = geteuid() == 0; /* who may read everything */
    assert_int_equal(root ? seteuid(65534) : 0, 0);
    int rc = qf_file_open(s.tree, e.st.st_ino, &file);
    int other = qf_file_open(s.tree, readable.st.st_ino, &file);
    assert_int_equal(root ? seteuid(0) : 0, 0);
    assert_int_equal(rc, -EACCES);
    assert_int_equal(other, 0);
    qf_file_close(file);
    end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_generation),
        cmocka_unit_test(test_touch),
        cmocka_unit_test(test_config_decides),
        cmocka_unit_test(test_download),
        cmocka_unit_test(test_snapshot_outlives),
        cmocka_unit_test(test_no_permission),
    };
    return cmocka_run_group_tests_name("fs_file", tests, NULL, NULL);
}
