/* SPDX-License-Identifier: Apache-2.0 */
/* What is open, and what the next daemon makes of it. */
#include "test_fs_fixture.h"

#include "fs/handles.h"

#define SHARD  "nf4/m/model.safetensors"
#define README "nf4/m/README.md"
#define STATUS ".quantfs/status"

struct ctx {
    struct sfx s;
    qf_journal *journal;
    qf_handles *handles;
    size_t restored;
};

static void begin(struct ctx *c, bool journal)
{
    *c = (struct ctx){.journal = NULL};
    sfx_begin(&c->s);
    sfx_model(&c->s, "m");
    sfx_open(&c->s, "nf4:dq");
    if (journal) {
        assert_int_equal(qf_journal_new(&c->journal), 0);
        assert_int_equal(qf_tree_keep(c->s.tree, c->journal, false), 0);
    }
    assert_int_equal(qf_handles_new(c->s.tree, c->journal, &c->handles), 0);
}

static void stop(struct ctx *c)
{
    qf_handles_free(c->handles);
    sfx_close(&c->s);
    c->handles = NULL;
}

static void end(struct ctx *c)
{
    stop(c);
    qf_journal_close(c->journal);
    sfx_end(&c->s);
}

static void restored(void *arg, const struct qf_handle_info *info)
{
    struct ctx *c = arg;
    assert_int_not_equal(info->node, 0);
    c->restored++;
}

/* The daemon is killed, and the next one goes on; -o views=VIEWS. */
static int next_daemon(struct ctx *c, const char *views)
{
    qf_journal *next;
    assert_int_equal(qf_journal_open(dup(qf_journal_fd(c->journal)), &next), 0);
    qf_tree_keep_nothing(c->s.tree); /* what is closed now, is not by the kernel */
    stop(c);
    qf_journal_close(c->journal);
    c->journal = next;
    c->restored = 0;
    sfx_open(&c->s, views);
    assert_int_equal(qf_handles_new(c->s.tree, next, &c->handles), 0);
    int rc = qf_tree_keep(c->s.tree, next, true);
    return rc == 0 ? qf_handles_restore(c->handles, restored, c) : rc;
}

static struct qf_handle_info info_of(const struct ctx *c, const char *path)
{
    static uint64_t unique = 1000;
    uint64_t node = path[0] != '\0' ? sfx_entry(&c->s, path).st.st_ino : QF_NODE_ROOT;
    return (struct qf_handle_info){.node = node, .unique = ++unique};
}

static uint64_t open_file(struct ctx *c, const char *path)
{
    struct qf_handle_info info = info_of(c, path);
    qf_file *file;
    uint64_t fh;
    assert_int_equal(qf_file_open(c->s.tree, info.node, &file), 0);
    info.generation = qf_file_generation(file);
    info.is_shard = strcmp(path, SHARD) == 0;
    assert_int_equal(qf_handles_add_file(c->handles, &info, file, &fh), 0);
    return fh;
}

static uint64_t open_dir(struct ctx *c, const char *path)
{
    struct qf_handle_info info = info_of(c, path);
    qf_dir *dir;
    uint64_t fh;
    assert_int_equal(qf_tree_opendir(c->s.tree, info.node, &dir), 0);
    info.generation = qf_dir_generation(dir);
    assert_int_equal(qf_handles_add_dir(c->handles, &info, dir, &fh), 0);
    return fh;
}

static char *read_fh(struct ctx *c, uint64_t fh, size_t *size)
{
    qf_file *file;
    assert_int_equal(qf_handles_file(c->handles, fh, &file), 0);
    int rc;
    char *text = sfx_read(file, size, &rc);
    qf_file_close(file);
    assert_non_null(text);
    return text;
}

static void reads_as(struct ctx *c, uint64_t fh, const char *want, size_t want_size)
{
    size_t size;
    char *text = read_fh(c, fh, &size);
    assert_int_equal(size, want_size);
    assert_memory_equal(text, want, size);
    free(text);
}

static void test_open_and_release(void **state)
{
    (void)state;
    for (int journal = 0; journal < 2; journal++) {
        struct ctx c;
        struct qf_handle_info info;
        qf_file *file, *again;
        qf_dir *dir;
        begin(&c, journal != 0);
        uint64_t fh = open_file(&c, README), other = open_file(&c, README);
        uint64_t top = open_dir(&c, "nf4/m");
        assert_true(fh != other && other != top && fh != 0);
        assert_int_equal(qf_handles_file(c.handles, fh, &file), 0);
        assert_int_equal(qf_handles_file(c.handles, fh, &again), 0);
        assert_ptr_equal(file, again);
        qf_file_close(again);
        assert_int_equal(qf_handles_dir(c.handles, top, &dir), 0);
        assert_int_equal(qf_handles_file(c.handles, top, &again), -EISDIR);
        assert_int_equal(qf_handles_dir(c.handles, fh, &dir), -ENOTDIR);
        assert_int_equal(qf_handles_file(c.handles, 4711, &again), -EBADF);
        assert_int_equal(qf_handles_dir(c.handles, 4711, &dir), -EBADF);
        /* a reader may still be at it when it is released */
        assert_true(qf_handles_release(c.handles, fh, &info));
        assert_int_equal(info.node, sfx_entry(&c.s, README).st.st_ino);
        assert_false(qf_handles_release(c.handles, fh, &info));
        size_t size;
        int rc;
        char *text = sfx_read(file, &size, &rc);
        assert_string_equal(text, "hello\n");
        free(text);
        qf_file_close(file);
        assert_int_equal(qf_handles_file(c.handles, fh, &file), -EBADF);
        assert_true(qf_handles_release(c.handles, top, &info));
        reads_as(&c, other, "hello\n", 6);
        end(&c); /* the other one is the tree's to close */
    }
}

static void test_next_daemon(void **state)
{
    (void)state;
    struct ctx c;
    struct qf_handle_info info;
    qf_dir *dir;
    size_t shard_size, status_size;
    begin(&c, true);
    uint64_t shard = open_file(&c, SHARD), readme = open_file(&c, README);
    uint64_t status = open_file(&c, STATUS), root = open_dir(&c, "");
    uint64_t model = open_dir(&c, "dq/m"), gone = open_file(&c, STATUS);
    uint64_t settings = open_file(&c, "nf4+blocksize=128/m/model.safetensors");
    char *shard_text = read_fh(&c, shard, &shard_size);
    char *status_text = read_fh(&c, status, &status_size);
    size_t settings_size;
    char *settings_text = read_fh(&c, settings, &settings_size);
    assert_true(qf_handles_release(c.handles, gone, &info));
    uint64_t last = settings;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(next_daemon(&c, "nf4:dq"), 0);
        assert_int_equal(c.restored, 6);
        reads_as(&c, shard, shard_text, shard_size);
        reads_as(&c, readme, "hello\n", 6);
        reads_as(&c, status, status_text, status_size);
        reads_as(&c, settings, settings_text, settings_size);
        assert_int_equal(qf_handles_dir(c.handles, root, &dir), 0);
        assert_int_equal(qf_handles_dir(c.handles, model, &dir), 0);
        assert_int_equal(qf_dir_count(dir), 5);
        qf_file *file;
        assert_int_equal(qf_handles_file(c.handles, root, &file), -EISDIR);
        assert_int_equal(qf_handles_file(c.handles, gone, &file), -EBADF);
        /* numbers go on: none is given out twice, also when it was released */
        uint64_t fh = open_dir(&c, "");
        assert_true(fh > last);
        last = fh;
        assert_int_equal(next_daemon(&c, "nf4:dq"), 0);
        assert_int_equal(c.restored, 7);
        assert_true(qf_handles_release(c.handles, fh, &info));
    }
    /* what was never used again is let go, too */
    assert_int_equal(next_daemon(&c, "nf4:dq"), 0);
    const uint64_t all[] = {shard, readme, status, root, model, settings};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        assert_true(qf_handles_release(c.handles, all[i], &info));
    assert_int_equal(next_daemon(&c, "nf4:dq"), 0);
    assert_int_equal(c.restored, 0);
    free(shard_text);
    free(status_text);
    free(settings_text);
    end(&c);
}

/* Contents that are others now are not given out as those that were opened. */
static void test_changed_meanwhile(void **state)
{
    (void)state;
    struct ctx c;
    qf_file *file;
    qf_dir *dir;
    begin(&c, true);
    uint64_t shard = open_file(&c, SHARD), readme = open_file(&c, README);
    uint64_t model = open_dir(&c, "nf4/m"), root = open_dir(&c, "");
    stfile_write(c.s.dir, "m/model.safetensors", model_tensors, 2);
    assert_int_equal(unlink(sfx_path(&c.s, "m/README.md")), 0);
    assert_int_equal(next_daemon(&c, "nf4:dq"), 0);
    assert_int_equal(qf_handles_file(c.handles, shard, &file), -ESTALE);
    assert_int_equal(qf_handles_dir(c.handles, model, &dir), -ESTALE);
    assert_int_not_equal(qf_handles_file(c.handles, readme, &file), 0);
    assert_int_equal(qf_handles_dir(c.handles, root, &dir), 0);
    end(&c);
}

/* Other views than before: those that are gone take what was open in them along. */
static void test_other_views(void **state)
{
    (void)state;
    struct ctx c;
    qf_file *file;
    struct qf_handle_info info;
    begin(&c, true);
    uint64_t gone = open_file(&c, "dq/m/README.md"), readme = open_file(&c, README);
    assert_int_equal(next_daemon(&c, "nf4:int8"), 0);
    assert_int_equal(qf_handles_file(c.handles, gone, &file), -ESTALE);
    reads_as(&c, readme, "hello\n", 6);
    assert_true(qf_handles_release(c.handles, gone, &info));
    end(&c);
}

/* The kernel never heard of this open: it asks again with the same number. */
static void test_unheard(void **state)
{
    (void)state;
    struct ctx c;
    struct qf_handle_info info = {.unique = 0}, dropped;
    begin(&c, true);
    uint64_t readme = open_file(&c, README), status = open_file(&c, STATUS);
    assert_true(qf_handles_release(c.handles, status, &info));
    status = open_file(&c, STATUS);
    assert_int_equal(next_daemon(&c, "nf4:dq"), 0);
    assert_true(qf_handles_drop(c.handles, info.unique + 1, &dropped));
    assert_int_equal(dropped.node, info.node);
    assert_false(qf_handles_drop(c.handles, info.unique + 1, &dropped));
    qf_file *file;
    assert_int_equal(qf_handles_file(c.handles, status, &file), -EBADF);
    reads_as(&c, readme, "hello\n", 6);
    assert_int_equal(next_daemon(&c, "nf4:dq"), 0);
    assert_int_equal(c.restored, 1);
    end(&c);
}

/* What is no journal of ours is refused, not gone on from. */
static void test_damaged(void **state)
{
    (void)state;
    static const struct {
        uint32_t kind;
        size_t size;
    } cases[] = {{QF_JOURNAL_OPEN, 3},   {QF_JOURNAL_OPEN, 400},
                 {QF_JOURNAL_TEXT, 5}, /* of no handle */
                 {QF_JOURNAL_DAEMON, 3}, {QF_JOURNAL_NODE, 0},
                 {QF_JOURNAL_NODE, 16},  {QF_JOURNAL_NODE, 64}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ctx c;
        unsigned char data[400];
        memset(data, 'a', sizeof data);
        begin(&c, true);
        open_file(&c, README);
        qf_journal_set(c.journal, cases[i].kind, 4711, data, cases[i].size);
        assert_int_equal(next_daemon(&c, "nf4:dq"), -EBADMSG);
        end(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_and_release),  cmocka_unit_test(test_next_daemon),
        cmocka_unit_test(test_changed_meanwhile), cmocka_unit_test(test_other_views),
        cmocka_unit_test(test_unheard),           cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests_name("fs_handles", tests, NULL, NULL);
}
