/* SPDX-License-Identifier: Apache-2.0 */
#include "test_fs_fixture.h"

static void begin(struct sfx *s)
{
    sfx_begin(s);
    sfx_model(s, "org/model");
    tmpdir_write_text(s->dir, "notes.txt", "text");
    sfx_open(s, "nf4:int8:dq");
}

static void end(struct sfx *s)
{
    sfx_close(s);
    sfx_end(s);
}

static void test_lookup(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    begin(&s);
    e = sfx_entry(&s, "nf4");
    assert_true(S_ISDIR(e.st.st_mode));
    e = sfx_entry(&s, "nf4/org/model");
    assert_true(S_ISDIR(e.st.st_mode));
    e = sfx_entry(&s, "nf4/notes.txt");
    assert_true(S_ISREG(e.st.st_mode));
    assert_int_equal(e.st.st_size, 4);
    assert_int_equal(e.st.st_mode & 0222, 0);
    assert_int_equal(e.st.st_nlink, 1);
    assert_int_equal(sfx_lookup(&s, "fp4", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "org", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "nf4/absent", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "nf4/absent.safetensors", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "nf4/org/model/config.json/x", &e), -ENOTDIR);
    assert_int_equal(qf_tree_lookup(s.tree, 4711, "x", &e), -ESTALE);
    assert_int_equal(qf_tree_getattr(s.tree, 4711, &e), -ESTALE);
    char name[300];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_int_equal(qf_tree_lookup(s.tree, sfx_entry(&s, "nf4").st.st_ino, name, &e),
                     -ENAMETOOLONG);
    end(&s);
}

/* What the views change has its own size; what they leave has the source's. */
static void test_sizes(void **state)
{
    (void)state;
    struct sfx s;
    struct stat st;
    begin(&s);
    assert_int_equal(stat(sfx_path(&s, "org/model/model.safetensors"), &st), 0);
    uint64_t nf4 =
        (uint64_t)sfx_entry(&s, "nf4/org/model/model.safetensors").st.st_size;
    uint64_t int8 =
        (uint64_t)sfx_entry(&s, "int8/org/model/model.safetensors").st.st_size;
    assert_true(nf4 < (uint64_t)st.st_size && nf4 != int8);
    assert_int_equal(sfx_entry(&s, "dq/org/model/README.md").st.st_size, 6);
    assert_true((size_t)sfx_entry(&s, "dq/org/model/config.json").st.st_size >
                sizeof CONFIG);
    struct qf_engine_stats stats;
    qf_engine_stats(s.engine, &stats);
    assert_int_equal(stats.source_bytes_read, 0);
    end(&s);
}

static void test_dots(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    begin(&s);
    uint64_t nf4 = sfx_entry(&s, "nf4").st.st_ino;
    uint64_t org = sfx_entry(&s, "nf4/org").st.st_ino;
    struct qf_entry file = sfx_entry(&s, "nf4/org/model/config.json");
    assert_int_equal(qf_tree_lookup(s.tree, org, "..", &e), 0);
    assert_int_equal(e.st.st_ino, nf4);
    assert_int_equal(qf_tree_lookup(s.tree, nf4, "..", &e), 0);
    assert_int_equal(e.st.st_ino, QF_NODE_ROOT);
    assert_int_equal(qf_tree_lookup(s.tree, QF_NODE_ROOT, "..", &e), 0);
    assert_int_equal(e.st.st_ino, QF_NODE_ROOT);
    assert_int_equal(qf_tree_lookup(s.tree, QF_NODE_ROOT, ".", &e), 0);
    assert_int_equal(e.st.st_ino, QF_NODE_ROOT);
    assert_int_equal(qf_tree_lookup(s.tree, file.st.st_ino, ".", &e), 0);
    assert_int_equal(e.st.st_ino, file.st.st_ino);
    assert_int_equal(e.generation, file.generation);
    assert_int_equal(qf_tree_lookup(s.tree, file.st.st_ino, "..", &e), 0);
    assert_int_equal(e.st.st_ino, sfx_entry(&s, "nf4/org/model").st.st_ino);
    uint64_t control = sfx_entry(&s, ".quantfs").st.st_ino;
    assert_int_equal(qf_tree_lookup(s.tree, control, "..", &e), 0);
    assert_int_equal(e.st.st_ino, QF_NODE_ROOT);
    uint64_t status = sfx_entry(&s, ".quantfs/status").st.st_ino;
    assert_int_equal(qf_tree_lookup(s.tree, status, "..", &e), 0);
    assert_int_equal(e.st.st_ino, control);
    end(&s);
}

static void assert_dots(const struct sfx *s, uint64_t id, uint64_t parent)
{
    qf_dir *dir;
    uint64_t child;
    unsigned type;
    assert_int_equal(qf_tree_opendir(s->tree, id, &dir), 0);
    assert_string_equal(qf_dir_entry(dir, 0, &child, &type), ".");
    assert_int_equal(child, id);
    assert_string_equal(qf_dir_entry(dir, 1, &child, &type), "..");
    assert_int_equal(child, parent);
    qf_dir_close(dir);
}

static void test_listing(void **state)
{
    (void)state;
    struct sfx s;
    qf_dir *dir;
    begin(&s);
    assert_string_equal(sfx_list(&s, QF_NODE_ROOT), "dq/ int8/ nf4/");
    uint64_t nf4 = sfx_entry(&s, "nf4").st.st_ino;
    uint64_t org = sfx_entry(&s, "nf4/org").st.st_ino;
    uint64_t model = sfx_entry(&s, "nf4/org/model").st.st_ino;
    assert_string_equal(sfx_list(&s, nf4), "notes.txt org/");
    assert_string_equal(sfx_list(&s, model), "README.md config.json model.safetensors");
    assert_string_equal(sfx_list(&s, sfx_entry(&s, ".quantfs").st.st_ino),
                        "metrics status");
    assert_dots(&s, QF_NODE_ROOT, QF_NODE_ROOT);
    assert_dots(&s, nf4, QF_NODE_ROOT);
    assert_dots(&s, org, nf4);
    assert_dots(&s, model, org);
    /* ids of a listing are those that lookups give */
    assert_int_equal(qf_tree_opendir(s.tree, model, &dir), 0);
    for (size_t i = 2; i < qf_dir_count(dir); i++) {
        uint64_t id;
        unsigned type;
        struct qf_entry e;
        const char *name = qf_dir_entry(dir, i, &id, &type);
        assert_int_equal(qf_tree_lookup(s.tree, model, name, &e), 0);
        assert_int_equal(e.st.st_ino, id);
        assert_int_equal(type, DT_REG);
    }
    /* a listing stays what it was */
    tmpdir_write_text(s.dir, "org/model/later", "");
    assert_int_equal(qf_dir_count(dir), 5);
    qf_dir_close(dir);
    assert_int_equal(qf_tree_opendir(s.tree, sfx_entry(&s, "nf4/notes.txt").st.st_ino,
                                     &dir),
                     -ENOTDIR);
    assert_int_equal(qf_tree_opendir(s.tree, sfx_entry(&s, ".quantfs/status").st.st_ino,
                                     &dir),
                     -ENOTDIR);
    assert_int_equal(qf_tree_opendir(s.tree, 4711, &dir), -ESTALE);
    end(&s);
}

/* Ids and generations are the same in every process, and an id alone is enough. */
static void test_restart(void **state)
{
    (void)state;
    static const char *const paths[] = {
        "nf4",           "nf4/org/model",   "int8/org/model/model.safetensors",
        "nf4/notes.txt", ".quantfs/status", "dq/org/model/config.json"};
    struct qf_entry first[6], e;
    struct sfx s;
    begin(&s);
    for (size_t i = 0; i < 6; i++)
        first[i] = sfx_entry(&s, paths[i]);
    sfx_close(&s);
    sfx_open(&s, "nf4:int8:dq");
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(qf_tree_getattr(s.tree, first[i].st.st_ino, &e), 0);
        assert_int_equal(e.st.st_ino, first[i].st.st_ino);
        assert_int_equal(e.st.st_size, first[i].st.st_size);
        assert_int_equal(e.generation, first[i].generation);
    }
    assert_int_equal(qf_tree_lookup(s.tree, first[1].st.st_ino, "config.json", &e), 0);
    qf_file *file;
    assert_int_equal(qf_file_open(s.tree, first[2].st.st_ino, &file), 0);
    qf_file_close(file);
    assert_int_equal(qf_tree_lookup(s.tree, first[2].st.st_ino, "..", &e), 0);
    sfx_close(&s);
    /* other views, other places in the list: the same ids */
    sfx_open(&s, "dq:int8:nf4");
    for (size_t i = 0; i < 6; i++) {
        e = sfx_entry(&s, paths[i]);
        assert_int_equal(e.st.st_ino, first[i].st.st_ino);
        assert_int_equal(e.generation, first[i].generation);
    }
    sfx_close(&s);
    sfx_open(&s, "fp4");
    assert_int_equal(qf_tree_getattr(s.tree, first[0].st.st_ino, &e), -ESTALE);
    end(&s);
}

static void test_forget(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    begin(&s);
    struct qf_entry file = sfx_entry(&s, "nf4/notes.txt");
    sfx_entry(&s, "nf4/notes.txt");
    qf_tree_forget(s.tree, file.st.st_ino, 1);
    tmpdir_write_text(s.dir, "notes.txt", "longer");
    /* still known, so the generation it was told is still compared */
    assert_int_equal(qf_tree_getattr(s.tree, file.st.st_ino, &e), -ESTALE);
    qf_tree_forget(s.tree, file.st.st_ino, 1);
    /* forgotten: found by search, as it is now */
    assert_int_equal(qf_tree_getattr(s.tree, file.st.st_ino, &e), 0);
    assert_int_equal(e.st.st_size, 6);
    qf_tree_forget(s.tree, 4711, 5);
    qf_tree_forget(s.tree, QF_NODE_ROOT, 5);
    end(&s);
}

static void test_removed(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    qf_file *file;
    begin(&s);
    struct qf_entry shard = sfx_entry(&s, "nf4/org/model/model.safetensors");
    assert_int_equal(unlink(sfx_path(&s, "org/model/model.safetensors")), 0);
    assert_int_equal(qf_tree_getattr(s.tree, shard.st.st_ino, &e), -ESTALE);
    int rc = qf_file_open(s.tree, shard.st.st_ino, &file);
    assert_true(rc == -ENOENT || rc == -ESTALE);
    assert_int_equal(sfx_lookup(&s, "nf4/org/model/model.safetensors", &e), -ENOENT);
    end(&s);
}

static void test_statfs(void **state)
{
    (void)state;
    struct sfx s;
    struct statvfs st;
    begin(&s);
    assert_int_equal(qf_tree_statfs(s.tree, &st), 0);
    assert_true(st.f_blocks > 0 && st.f_bsize > 0);
    assert_int_equal(st.f_bavail, 0);
    assert_int_equal(st.f_favail, 0);
    end(&s);
}

static void test_status(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    size_t size;
    char line[128];
    begin(&s);
    assert_int_equal(sfx_lookup(&s, ".quantfs/other", &e), -ENOENT);
    free(sfx_contents(&s, "nf4/org/model/model.safetensors", &size));
    char *text = sfx_contents(&s, ".quantfs/status", &size);
    snprintf(line, sizeof line, "\npid=%d\n", (int)getpid());
    assert_non_null(strstr(text, line));
    assert_non_null(strstr(text, "\nviews=nf4:int8:dq\n"));
    assert_non_null(strstr(text, "\nchunks_encoded=2\n"));
    assert_non_null(strstr(text, "\nmodels_loaded=1\n"));
    assert_non_null(strstr(text, "\ncache=memory\n"));
    assert_int_equal(text[size - 1], '\n');
    assert_int_equal(sfx_entry(&s, ".quantfs/status").st.st_size, 0);
    free(text);
    end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lookup),  cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_dots),    cmocka_unit_test(test_listing),
        cmocka_unit_test(test_restart), cmocka_unit_test(test_forget),
        cmocka_unit_test(test_removed), cmocka_unit_test(test_statfs),
        cmocka_unit_test(test_status),
    };
    return cmocka_run_group_tests_name("fs_tree", tests, NULL, NULL);
}
