/* SPDX-License-Identifier: Apache-2.0 */
#include "test_fs_fixture.h"

#include "fs/catalog.h"

struct ctx {
    struct sfx s;
    qf_root *root;
    struct qf_views views;
    qf_catalog *catalog;
};

static void begin(struct ctx *c, uint64_t memory_limit)
{
    sfx_begin(&c->s);
    qf_log_set_level(QF_LOG_ERROR);
    assert_int_equal(qf_root_open(c->s.dir, &c->root, NULL), 0);
    qf_views_init(&c->views, NULL, 0, NULL, 0);
    assert_int_equal(qf_catalog_new(c->root, &c->views, memory_limit, &c->catalog), 0);
}

static void end(struct ctx *c)
{
    qf_catalog_free(c->catalog);
    qf_views_fini(&c->views);
    qf_root_close(c->root);
    sfx_end(&c->s);
}

static uint64_t loaded(const struct ctx *c)
{
    struct qf_catalog_stats stats;
    qf_catalog_stats(c->catalog, &stats);
    return stats.models_loaded;
}

/* Gets and lets go; returns the variant's reason. */
static const char *look(struct ctx *c, const char *path, const char *view, bool force)
{
    static char reason[QF_ERR_TEXT_SIZE];
    qf_snapshot *snapshot;
    const struct qf_variant *variant;
    int rc = qf_catalog_get(c->catalog, path, view, force, &snapshot, &variant);
    if (rc != 0)
        fail_msg("%s: %s", path, strerror(-rc));
    snprintf(reason, sizeof reason, "%s", variant->reason);
    assert_string_equal(variant->view.name, view);
    assert_true((reason[0] == '\0') ==
                (qf_variant_find(variant, "config.json") != NULL));
    qf_snapshot_release(snapshot);
    return reason;
}

static void test_reuse(void **state)
{
    (void)state;
    struct ctx c;
    begin(&c, 64u << 20);
    sfx_model(&c.s, "m");
    sfx_model(&c.s, "n");
    for (int i = 0; i < 5; i++) {
        assert_string_equal(look(&c, "m", "nf4", false), "");
        assert_string_equal(look(&c, "m", "dq", true), "");
    }
    assert_int_equal(loaded(&c), 1);
    look(&c, "n", "nf4", false);
    assert_int_equal(loaded(&c), 2);
    look(&c, "", "nf4", false); /* no model, but a directory */
    assert_int_equal(loaded(&c), 3);
    struct qf_catalog_stats stats;
    qf_catalog_stats(c.catalog, &stats);
    assert_true(stats.header_bytes_read > 0);
    end(&c);
}

/* What is fresh is not looked at again, unless it has to be. */
static void test_freshness(void **state)
{
    (void)state;
    struct ctx c;
    begin(&c, 64u << 20);
    sfx_model(&c.s, "m");
    look(&c, "m", "nf4", false);
    assert_int_equal(unlink(sfx_path(&c.s, "m/config.json")), 0);
    assert_string_not_equal(look(&c, "m", "nf4", true), "");
    assert_int_equal(loaded(&c), 2);
    tmpdir_write_text(c.s.dir, "m/config.json", CONFIG);
    usleep((QF_CATALOG_FRESH_MS + 50) * 1000);
    assert_string_equal(look(&c, "m", "nf4", false), "");
    assert_int_equal(loaded(&c), 3);
    /* a file that does not matter, in a file that does not change: the directory's
     * times say that something did */
    tmpdir_write_text(c.s.dir, "m/notes", "");
    look(&c, "m", "nf4", true);
    assert_int_equal(loaded(&c), 4);
    end(&c);
}

/* Another policy: whoever holds a snapshot keeps what it was, the next look is new. */
static void test_other_policy(void **state)
{
    (void)state;
    struct ctx c;
    qf_snapshot *held, *next;
    const struct qf_variant *before, *after;
    static const char policy[] = "{\"blocksize\": 128}";
    begin(&c, 64u << 20);
    sfx_model(&c.s, "m");
    assert_int_equal(qf_catalog_get(c.catalog, "m", "nf4", false, &held, &before), 0);
    qf_views_set_policy(&c.views, policy, strlen(policy));
    assert_int_equal(qf_catalog_get(c.catalog, "m", "nf4", false, &next, &after), 0);
    assert_int_equal(before->view.blocksize, 64);
    assert_int_equal(after->view.blocksize, 128);
    qf_snapshot_release(held);
    qf_snapshot_release(next);
    assert_int_equal(loaded(&c), 2);
    look(&c, "m", "nf4", false); /* and it is kept */
    assert_int_equal(loaded(&c), 2);
    end(&c);
}

/* What passes through is not read again each time either, while nothing changes. */
static void test_damaged_is_kept(void **state)
{
    (void)state;
    struct ctx c;
    begin(&c, 64u << 20);
    sfx_model(&c.s, "m");
    assert_int_equal(truncate(sfx_path(&c.s, "m/model.safetensors"), 100), 0);
    const char *reason = look(&c, "m", "nf4", true);
    assert_non_null(strstr(reason, "model.safetensors"));
    usleep(30000); /* a new tick: what changes from here on can be told */
    look(&c, "m", "nf4", true);
    uint64_t before = loaded(&c);
    look(&c, "m", "nf4", true);
    assert_int_equal(loaded(&c), before);
    sfx_shard(&c.s, "m/model.safetensors");
    assert_string_equal(look(&c, "m", "nf4", true), "");
    end(&c);
}

/* Users hold what the catalog has let go; a small limit lets go at once. */
static void test_small_memory(void **state)
{
    (void)state;
    struct ctx c;
    qf_snapshot *held;
    const struct qf_variant *variant;
    begin(&c, 1);
    sfx_model(&c.s, "m");
    sfx_model(&c.s, "n");
    assert_int_equal(qf_catalog_get(c.catalog, "m", "nf4", false, &held, &variant), 0);
    look(&c, "n", "nf4", false);
    look(&c, "m", "nf4", false);
    look(&c, "n", "nf4", false);
    assert_int_equal(loaded(&c), 4);
    /* The one used last stays, although it alone is over the limit. */
    look(&c, "n", "dq", false);
    look(&c, "n", "nf4", true);
    assert_int_equal(loaded(&c), 4);
    assert_string_equal(variant->reason, "");
    assert_non_null(qf_variant_find(variant, "model.safetensors"));
    qf_snapshot_release(held);
    qf_snapshot_release(NULL);
    end(&c);
}

/* The one used last stays when there is room for one. */
static void test_lru(void **state)
{
    (void)state;
    struct ctx c;
    begin(&c, 64u << 10);
    char name[16];
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof name, "m%d", i);
        sfx_model(&c.s, name);
        look(&c, name, "nf4", false);
        look(&c, "m0", "nf4", false); /* always wanted */
    }
    assert_int_equal(loaded(&c), 20);
    look(&c, "m1", "nf4", false);
    assert_int_equal(loaded(&c), 21);
    look(&c, "m1", "nf4", false);
    assert_int_equal(loaded(&c), 21);
    end(&c);
}

/* A crawler that asks for ever new views of one model: so many plans are kept, and no
 * more; those used last stay, and users keep what they have. */
static void test_many_views(void **state)
{
    (void)state;
    struct ctx c;
    qf_snapshot *held, *again;
    const struct qf_variant *variant, *other;
    begin(&c, 64u << 20);
    sfx_model(&c.s, "m");
    assert_int_equal(qf_catalog_get(c.catalog, "m", "nf4+skip=x0", false, &held,
                                    &variant),
                     0);
    for (unsigned i = 1; i < QF_VARIANTS_MAX; i++) {
        char name[QF_VIEW_NAME_SIZE];
        snprintf(name, sizeof name, "nf4+skip=x%u", i);
        look(&c, "m", name, false);
    }
    /* At the limit: still the same plan, and used last now. */
    assert_int_equal(qf_catalog_get(c.catalog, "m", "nf4+skip=x0", false, &again,
                                    &other),
                     0);
    assert_ptr_equal(other, variant);
    qf_snapshot_release(again);
    look(&c, "m", "dq", false); /* one too many: x1 goes, not x0 */
    assert_int_equal(qf_catalog_get(c.catalog, "m", "nf4+skip=x0", false, &again,
                                    &other),
                     0);
    assert_ptr_equal(other, variant);
    qf_snapshot_release(again);
    for (unsigned i = 0; i < 3 * QF_VARIANTS_MAX; i++) {
        char name[QF_VIEW_NAME_SIZE];
        snprintf(name, sizeof name, "int8+threshold=%u.5", i);
        look(&c, "m", name, false);
    }
    assert_int_equal(qf_catalog_get(c.catalog, "m", "nf4+skip=x0", false, &again,
                                    &other),
                     0);
    assert_ptr_not_equal(other, variant);
    qf_snapshot_release(again);
    assert_string_equal(variant->view.name, "nf4+skip=x0");
    assert_non_null(qf_variant_find(variant, "model.safetensors"));
    qf_snapshot_release(held);
    assert_int_equal(loaded(&c), 1); /* the headers were read once */
    end(&c);
}

static void test_errors(void **state)
{
    (void)state;
    struct ctx c;
    qf_snapshot *snapshot;
    const struct qf_variant *variant;
    begin(&c, 64u << 20);
    sfx_model(&c.s, "m");
    assert_int_equal(qf_catalog_get(c.catalog, "absent", "nf4", false, &snapshot,
                                    &variant),
                     -ENOENT);
    assert_int_equal(qf_catalog_get(c.catalog, "m/config.json", "nf4", false, &snapshot,
                                    &variant),
                     -ENOTDIR);
    look(&c, "m", "nf4", false);
    assert_int_equal(rename(sfx_path(&c.s, "m"), sfx_path(&c.s, "k")), 0);
    assert_int_equal(qf_catalog_get(c.catalog, "m", "nf4", true, &snapshot, &variant),
                     -ENOENT);
    assert_string_equal(look(&c, "k", "nf4", false), "");
    assert_int_equal(rename(sfx_path(&c.s, "k"), sfx_path(&c.s, "m")), 0);
    assert_string_equal(look(&c, "m", "nf4", true), "");
    qf_catalog_free(NULL);
    end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reuse),           cmocka_unit_test(test_freshness),
        cmocka_unit_test(test_damaged_is_kept), cmocka_unit_test(test_other_policy),
        cmocka_unit_test(test_small_memory),    cmocka_unit_test(test_lru),
        cmocka_unit_test(test_many_views),      cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests_name("fs_catalog", tests, NULL, NULL);
}
