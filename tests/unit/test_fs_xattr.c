/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes by node id: which names where, and when a key changes. */
#include "unit/test_fs_fixture.h"

#include "fs/xattr.h"

static struct sfx s;

static int setup(void **state)
{
    (void)state;
    sfx_begin(&s);
    sfx_model(&s, "org/model");
    tmpdir_write_text(s.dir, "org/plain/notes.txt", "text");
    tmpdir_write_text(s.dir, "org/bad/config.json", CONFIG);
    tmpdir_write_text(s.dir, "org/bad/model.safetensors", "no shard");
    sfx_open(&s, "nf4:int8:dq");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sfx_close(&s);
    sfx_end(&s);
    return 0;
}

static char value[4096];

/* The value, in `value`, or the error. */
static int get(const char *path, const char *name)
{
    char whole[64];
    struct qf_buf out = {0};
    uint64_t id = path[0] != '\0' ? sfx_entry(&s, path).st.st_ino : QF_NODE_ROOT;
    snprintf(whole, sizeof whole, "user.quantfs.%s", name);
    int rc = qf_xattr_get(s.tree, id, whole, &out);
    snprintf(value, sizeof value, "%.*s", (int)out.size,
             out.data != NULL ? out.data : "");
    qf_buf_fini(&out);
    return rc;
}

static void expect(const char *path, const char *name, const char *want)
{
    assert_int_equal(get(path, name), 0);
    assert_string_equal(value, want);
}

static size_t count(const char *path)
{
    struct qf_buf out = {0};
    uint64_t id = path[0] != '\0' ? sfx_entry(&s, path).st.st_ino : QF_NODE_ROOT;
    assert_int_equal(qf_xattr_list(s.tree, id, &out), 0);
    size_t n = 0;
    for (size_t i = 0; i < out.size; i++)
        n += out.data[i] == '\0';
    qf_buf_fini(&out);
    return n;
}

static void test_files(void **state)
{
    (void)state;
#define SHARD "org/model/model.safetensors"
    struct stat st;
    char size[32];
    assert_int_equal(stat(sfx_path(&s, SHARD), &st), 0);
    snprintf(size, sizeof size, "%lld", (long long)st.st_size);
    expect("nf4/" SHARD, "codec", "nf4");
    expect("nf4/" SHARD, "source", SHARD);
    expect("nf4/" SHARD, "size_source", size);
    expect("nf4/" SHARD, "settings",
           "dtype=bfloat16,compute_dtype=bfloat16,blocksize=64,quant_storage=uint8");
    expect("dq/" SHARD, "settings",
           "dtype=bfloat16,compute_dtype=bfloat16,blocksize=64,quant_storage=uint8,"
           "nested_blocksize=256");
    expect("int8/" SHARD, "settings", "dtype=bfloat16,int8_threshold=6");
    expect("nf4+blocksize=128+compute=float32+skip=b:a+only=self_attn/" SHARD,
           "settings",
           "dtype=bfloat16,compute_dtype=float32,blocksize=128,quant_storage=uint8,"
           "only=self_attn,skip=a:b");
    expect("int8+threshold=5.5+force=x/org/model", "settings",
           "dtype=bfloat16,int8_threshold=5.5,force=x");
    /* The one name of a view, whichever way it was spelled. */
    expect("nf4+skip=b:a/" SHARD, "view", "nf4+skip=a:b");
    expect("nf4+skip=b:a", "view", "nf4+skip=a:b");
    expect("dq/org/plain/notes.txt", "view", "dq");
    expect("int8/org/model/config.json", "codec", "int8");
    assert_int_equal(get("nf4/" SHARD, "reason"), -ENODATA);
    assert_int_equal(get("nf4/" SHARD, "digest"), -ENODATA);
    assert_int_equal(count("nf4/" SHARD), 5);
    assert_int_equal(count("nf4/org/model/config.json"), 6);
    /* as it is in the store */
    expect("nf4/org/model/README.md", "source", "org/model/README.md");
    static const char *const others[] = {"codec", "settings", "size_source", "key",
                                         "digest"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        assert_int_equal(get("nf4/org/model/README.md", others[i]), -ENODATA);
        assert_int_equal(get("nf4/org/bad/model.safetensors", others[i]), -ENODATA);
    }
    assert_int_equal(count("nf4/org/model/README.md"), 1);
    assert_int_equal(count("nf4/org/bad/model.safetensors"), 1);
}

static void test_directories(void **state)
{
    (void)state;
    expect("nf4/org/model", "codec", "nf4");
    assert_int_equal(get("nf4/org/model", "settings"), 0);
    assert_int_equal(get("nf4/org/model", "reason"), -ENODATA);
    assert_int_equal(get("nf4/org/model", "source"), -ENODATA);
    assert_int_equal(get("nf4/org/bad", "reason"), 0);
    assert_non_null(strstr(value, "model.safetensors"));
    assert_int_equal(get("nf4/org/bad", "codec"), -ENODATA);
    static const char *const plain[] = {"",         "nf4",
                                        "nf4/org",  "nf4/org/plain",
                                        ".quantfs", ".quantfs/status"};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        assert_int_equal(get(plain[i], "codec"), -ENODATA);
        assert_int_equal(get(plain[i], "reason"), -ENODATA);
        assert_int_equal(get(plain[i], "source"), -ENODATA);
        assert_int_equal(count(plain[i]), 0);
    }
    assert_int_equal(count("nf4/org/model"), 0);
}

static void key_of(const char *path, char out[33])
{
    assert_int_equal(get(path, "key"), 0);
    assert_int_equal(strlen(value), 32);
    assert_int_equal(strspn(value, "0123456789abcdef"), 32);
    memcpy(out, value, 33);
}

static void test_key(void **state)
{
    (void)state;
    char nf4[33], dq[33], again[33], changed[33], config[33];
    key_of("nf4/" SHARD, nf4);
    key_of("dq/" SHARD, dq);
    key_of("nf4/" SHARD, again);
    key_of("nf4/org/model/config.json", config);
    assert_string_equal(nf4, again);
    assert_string_not_equal(nf4, dq);
    assert_string_not_equal(nf4, config);
    uint64_t id = sfx_entry(&s, "nf4/" SHARD).st.st_ino;
    struct timespec times[2] = {{1, 0}, {1, 0}};
    assert_int_equal(utimensat(AT_FDCWD, sfx_path(&s, SHARD), times, 0), 0);
    /* not the file any more that the kernel was told of */
    struct qf_buf out = {0};
    assert_int_equal(qf_xattr_get(s.tree, id, "user.quantfs.key", &out), -ESTALE);
    assert_int_equal(qf_xattr_list(s.tree, id, &out), -ESTALE);
    assert_int_equal(out.size, 0);
    key_of("nf4/" SHARD, changed);
    assert_string_not_equal(nf4, changed);
}

static void test_other_names(void **state)
{
    (void)state;
    uint64_t id = sfx_entry(&s, "nf4/" SHARD).st.st_ino;
    struct qf_buf out = {0};
    static const struct {
        const char *name;
        int rc;
    } cases[] = {
        {"security.capability", -EOPNOTSUPP},
        {"system.posix_acl_access", -EOPNOTSUPP},
        {"trusted.x", -EOPNOTSUPP},
        {"", -EOPNOTSUPP},
        {"user.", -ENODATA},
        {"user.quantfs.", -ENODATA},
        {"user.quantfs", -ENODATA},
        {"user.quantfs.codecs", -ENODATA},
        {"user.mime_type", -ENODATA},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(qf_xattr_get(s.tree, id, cases[i].name, &out), cases[i].rc);
    assert_int_equal(qf_xattr_get(s.tree, 12345, "user.quantfs.key", &out), -ESTALE);
    assert_int_equal(out.size, 0);
}

int main(void)
{
#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH(test_files),
        WITH(test_directories),
        WITH(test_key),
        WITH(test_other_names),
    };
    return cmocka_run_group_tests_name("fs_xattr", tests, NULL, NULL);
}
