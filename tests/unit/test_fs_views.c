/* SPDX-License-Identifier: Apache-2.0 */
/* Names with settings in the tree: which there are, that every spelling is one
 * directory, what a policy does to them, and names that lead to others. */
#include "unit/test_fs_fixture.h"

#include "fs/views.h"

#define SHARD "org/model/model.safetensors"

static void begin(struct sfx *s, const char *views)
{
    sfx_begin(s);
    sfx_model(s, "org/model");
    sfx_open(s, views);
}

static void end(struct sfx *s)
{
    sfx_close(s);
    sfx_end(s);
}

static int lookup(const struct sfx *s, const char *path)
{
    struct qf_entry e;
    return sfx_lookup(s, path, &e);
}

static uint64_t id_of(const struct sfx *s, const char *path)
{
    return sfx_entry(s, path).st.st_ino;
}

static void test_lookup(void **state)
{
    (void)state;
    struct sfx s;
    begin(&s, "nf4:int8");
    assert_int_equal(sfx_entry(&s, "nf4+blocksize=128/" SHARD).st.st_mode & S_IFMT,
                     S_IFREG);
    assert_int_not_equal(sfx_entry(&s, "nf4+blocksize=128/" SHARD).st.st_size,
                         sfx_entry(&s, "nf4/" SHARD).st.st_size);
    assert_true(sfx_is_quantized(&s, "int8+threshold=5.0/org/model/config.json"));
    /* impossible settings, unknown codecs, and a codec that the mount does not show */
    assert_int_equal(lookup(&s, "nf4+blocksize=100"), -ENOENT);
    assert_int_equal(lookup(&s, "nf4+"), -ENOENT);
    assert_int_equal(lookup(&s, "q4+blocksize=128"), -ENOENT);
    assert_int_equal(lookup(&s, "dq"), -ENOENT);
    assert_int_equal(lookup(&s, "dq+blocksize=128"), -ENOENT);
    /* those that no mount lists by default are there in all */
    assert_int_equal(lookup(&s, "ao-int8wo"), 0);
    assert_int_equal(lookup(&s, "ct-w4a16+group=64"), 0);
    size_t size;
    char *config = sfx_contents(&s, "ao-int8wo/org/model/config.json", &size);
    assert_non_null(strstr(config, "\"quant_method\": \"torchao\""));
    free(config);
    assert_int_equal(lookup(&s, "fp8+group=64"), -ENOENT);
    /* settings belong to the root alone */
    assert_int_equal(lookup(&s, "nf4/nf4+blocksize=128"), -ENOENT);
    assert_string_equal(sfx_list(&s, QF_NODE_ROOT), "int8/ nf4/");
    end(&s);
}

static void test_one_directory(void **state)
{
    (void)state;
    struct sfx s;
    begin(&s, "nf4:dq+skip=b+skip=a");
#define NAME "nf4+compute=float16+blocksize=128+skip=a:b"
    uint64_t top = id_of(&s, NAME), shard = id_of(&s, NAME "/" SHARD);
    assert_int_equal(id_of(&s, "nf4+skip=b:a:b+blocksize=128+compute=float16"), top);
    assert_int_equal(
        id_of(&s, "nf4+skip=b+compute=torch.float16+skip=a+blocksize=128/" SHARD),
        shard);
    assert_int_equal(top, qf_node_id(NAME, ""));
    assert_int_equal(shard, qf_node_id(NAME, SHARD));
    assert_int_not_equal(id_of(&s, "nf4+compute=float16+blocksize=128"), top);
    /* the root lists the one name */
    assert_string_equal(sfx_list(&s, QF_NODE_ROOT), "dq+skip=a:b/ nf4/");
    assert_int_equal(id_of(&s, "dq+skip=b:a"), qf_node_id("dq+skip=a:b", ""));
    size_t size;
    char *text = sfx_contents(&s, ".quantfs/status", &size);
    assert_non_null(strstr(text, "\nviews=nf4:dq+skip=a+skip=b\n"));
    free(text);
    end(&s);
}

/* The policy applies to every view, and the name wins over it. */
static void test_policy(void **state)
{
    (void)state;
    struct sfx s;
    sfx_begin(&s);
    sfx_model(&s, "org/model");
    s.policy = "{\"blocksize\": 256, \"views\": {\"nf4\": {\"dtype\": \"float16\"}}}";
    sfx_open(&s, "nf4:dq");
    size_t size;
    static const struct {
        const char *view, *dtype, *blocksize;
    } cases[] = {{"nf4", "float16", "256"},
                 {"nf4+compute=float32", "float16", "256"},
                 {"nf4+blocksize=64", "float16", "64"},
                 {"nf4+dtype=float32", "float32", "256"},
                 {"dq+compute=float32", "bfloat16", "256"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[512], state_text[256];
        snprintf(path, sizeof path, "%s/" SHARD, cases[i].view);
        char *text = sfx_contents(&s, path, &size);
        snprintf(state_text, sizeof state_text,
                 "\"blocksize\": %s, \"dtype\": \"%s\", \"shape\"", cases[i].blocksize,
                 cases[i].dtype);
        if (memmem(text, size, state_text, strlen(state_text)) == NULL)
            fail_msg("%s: no %s", cases[i].view, state_text);
        free(text);
    }
    end(&s);
}

/* A policy that leaves no room for another pattern: the view cannot be. */
static void test_policy_forbids(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_buf text = {0};
    sfx_begin(&s);
    sfx_model(&s, "org/model");
    qf_buf_append_str(&text, "{\"skip\": [\"0\"");
    for (int i = 1; i < 1024; i++)
        qf_buf_appendf(&text, ", \"%d\"", i);
    qf_buf_append_str(&text, "]}");
    char *policy = qf_buf_take(&text, NULL);
    s.policy = policy;
    sfx_open(&s, "nf4");
    assert_int_equal(lookup(&s, "nf4+blocksize=128"), 0);
    assert_int_equal(lookup(&s, "nf4+skip=x"), -ENOENT);
    end(&s);
    free(policy);
}

/* An id alone is enough for those asked for lately: at the limit, and not past it. */
static void test_forgotten_ids(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    begin(&s, "nf4");
    uint64_t first = id_of(&s, "nf4+skip=first/" SHARD);
    qf_tree_forget(s.tree, first, 1);
    for (unsigned i = 1; i < QF_VIEWS_RECENT_MAX; i++) {
        char name[64];
        snprintf(name, sizeof name, "nf4+skip=x%u", i);
        assert_int_equal(lookup(&s, name), 0);
    }
    assert_int_equal(qf_tree_getattr(s.tree, first, &e), 0);
    assert_int_equal(e.st.st_ino, first);
    assert_int_equal(lookup(&s, "nf4+skip=one.more"), 0);
    assert_int_equal(qf_tree_getattr(s.tree, first, &e), -ESTALE);
    uint64_t second = id_of(&s, "nf4+skip=first/" SHARD);
    assert_int_equal(second, first);
    qf_tree_forget(s.tree, first, 1);
    for (unsigned i = 0; i < 2 * QF_VIEWS_RECENT_MAX; i++)
        assert_int_equal(lookup(&s, i % 2 == 0 ? "nf4+skip=a" : "nf4+skip=b"), 0);
    assert_int_equal(qf_tree_getattr(s.tree, first, &e), 0);
    end(&s);
}

static void test_recent_names(void **state)
{
    (void)state;
    struct qf_view listed[QF_VIEWS_MAX];
    struct qf_views views;
    char name[QF_VIEW_NAME_SIZE];
    size_t count;
    assert_int_equal(qf_view_parse_list("dq", listed, &count, NULL), 0);
    qf_views_init(&views, listed, 1, NULL, 0);
    assert_int_equal(qf_views_find(&views, "dq", name), 0);
    assert_false(qf_views_at(&views, 1, name)); /* listed: not remembered twice */
    assert_int_equal(qf_views_find(&views, "dq+blocksize=128", name), 0);
    assert_int_equal(qf_views_find(&views, "dq+skip=b:a", name), 0);
    assert_string_equal(name, "dq+skip=a:b");
    assert_int_equal(qf_views_find(&views, "dq+blocksize=128", name), 0);
    assert_int_equal(qf_views_find(&views, "dq+blocksize=1", name), -ENOENT);
    static const char *const order[] = {"dq", "dq+blocksize=128", "dq+skip=a:b"};
    for (size_t i = 0; i < 3; i++) {
        assert_true(qf_views_at(&views, i, name));
        assert_string_equal(name, order[i]);
    }
    assert_false(qf_views_at(&views, 3, name));
    qf_views_fini(&views);
}

static void test_alias(void **state)
{
    (void)state;
    struct sfx s;
    sfx_begin(&s);
    sfx_model(&s, "org/model");
    sfx_model(&s, "org/real");
    sfx_model(&s, "org/real-bnb-4bit");
    sfx_model(&s, "models--org--name/snapshots/abc");
    tmpdir_write_text(s.dir, "org/file", "text");
    s.alias_bnb = true;
    sfx_open(&s, "nf4:dq:int8");
    uint64_t model = id_of(&s, "nf4/org/model");
    assert_int_equal(id_of(&s, "nf4/org/model-bnb-4bit"), model);
    assert_int_equal(id_of(&s, "nf4/org/model-bnb-4bit/model.safetensors"),
                     id_of(&s, "nf4/" SHARD));
    assert_int_equal(id_of(&s, "dq+blocksize=128/org/model-bnb-4bit"),
                     id_of(&s, "dq+blocksize=128/org/model"));
    assert_int_equal(id_of(&s, "nf4/models--org--name-bnb-4bit/snapshots/abc"),
                     id_of(&s, "nf4/models--org--name/snapshots/abc"));
    /* what has the name is itself */
    assert_int_not_equal(id_of(&s, "nf4/org/real-bnb-4bit"), id_of(&s, "nf4/org/real"));
    /* neither another word, nor a file, nor nothing, nor twice, nor in an 8-bit view */
    static const char *const absent[] = {"nf4/org/model-bnb-8bit",
                                         "nf4/org/file-bnb-4bit",
                                         "nf4/org/absent-bnb-4bit",
                                         "nf4/org/-bnb-4bit",
                                         "nf4/org/model-bnb-4bit-bnb-4bit",
                                         "nf4/org/model-unsloth-bnb-4bit",
                                         "int8/org/model-bnb-4bit",
                                         "nf4/org/model-BNB-4bit",
                                         "nf4-bnb-4bit",
                                         ".quantfs/status-bnb-4bit"};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        if (lookup(&s, absent[i]) != -ENOENT)
            fail_msg("%s", absent[i]);
    assert_string_equal(sfx_list(&s, id_of(&s, "nf4/org")),
                        "file model/ real/ real-bnb-4bit/");
    sfx_close(&s);
    /* only on request */
    s.alias_bnb = false;
    sfx_open(&s, "nf4");
    assert_int_equal(lookup(&s, "nf4/org/model-bnb-4bit"), -ENOENT);
    end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lookup),        cmocka_unit_test(test_one_directory),
        cmocka_unit_test(test_policy),        cmocka_unit_test(test_policy_forbids),
        cmocka_unit_test(test_forgotten_ids), cmocka_unit_test(test_recent_names),
        cmocka_unit_test(test_alias),
    };
    return cmocka_run_group_tests_name("fs_views", tests, NULL, NULL);
}
