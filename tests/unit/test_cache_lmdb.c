/* SPDX-License-Identifier: Apache-2.0 */
#include "test_cache_values.h"

#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "cache/lmdb_check.h"
#include "cache/lmdb_dir.h"
#include "support/mounts.h"
#include "support/tmpdir.h"

static void test_put_get_persist(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    char sub[4096];
    path_in(sub, sizeof sub, dir, "a/b");
    qf_store *store = lmdb_open(sub, TEST_LIMIT);
    const size_t sizes[] = {0,     1,      7,
                            2000,  4016,   4017,
                            65536, 589824, QF_STORED_SIZE_MAX};
    const size_t count = sizeof sizes / sizeof sizes[0];
    assert_false(value_found(store, 0, 0));
    for (size_t i = 0; i < count; i++)
        value_put(store, i, sizes[i]);
    value_put(store, 100, QF_STORED_SIZE_MAX + 1);
    qf_store_flush(store);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < count; i++)
            assert_true(value_found(store, i, sizes[i]));
        assert_false(value_found(store, 100, QF_STORED_SIZE_MAX + 1));
        assert_int_equal(stats_of(store).entries, count);
        assert_int_equal(stats_of(store).damaged, 0);
        qf_store_close(store);
        store = lmdb_open(sub, TEST_LIMIT);
    }
    qf_store_close(store);
    struct stat st;
    assert_int_equal(stat(sub, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    tmpdir_remove(dir);
}

static void test_stats(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, 1); /* raised to the least */
    value_put(store, 1, 1000);
    value_put(store, 2, QF_STORED_SIZE_MAX + 1);
    qf_store_flush(store);
    assert_true(value_found(store, 1, 1000));
    assert_false(value_found(store, 3, 1000));
    struct qf_store_stats s = stats_of(store);
    assert_int_equal(s.hits, 1);
    assert_int_equal(s.misses, 1);
    assert_int_equal(s.puts, 1);
    assert_int_equal(s.puts_dropped, 1);
    assert_int_equal(s.entries, 1);
    assert_int_equal(s.bytes_limit, QF_CACHE_SIZE_MIN);
    assert_in_range(s.bytes, 4096, 100000);
    assert_string_equal(store->ops->name, "lmdb");
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void post(void *arg, bool lasting)
{
    (void)lasting;
    sem_post(arg);
}

static void test_overwrite(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    sem_t done;
    sem_init(&done, 0, 0);
    static const char *const texts[] = {"first", "second, longer", "third", "third"};
    for (int i = 0; i < 4; i++)
        qf_store_put(store, value_key(7), 0, texts[i], strlen(texts[i]), post, &done);
    qf_store_flush(store);
    for (int i = 0; i < 4; i++)
        assert_int_equal(sem_trywait(&done), 0);
    struct qf_store_value value;
    assert_true(qf_store_get(store, value_key(7), &value));
    assert_int_equal(value.size, 5);
    assert_memory_equal(value.data, "third", 5);
    qf_store_release(store, &value);
    assert_int_equal(stats_of(store).entries, 1);
    qf_store_close(store);
    sem_destroy(&done);
    tmpdir_remove(dir);
}

/* Ten times the limit in values of changing sizes: the file stays within the limit, few
 * puts are dropped, no page is lost. */
static void test_churn(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    uint64_t put = 0, number = 0;
    while (put < 10 * TEST_LIMIT) {
        size_t size = 1000 + (number * 7919) % 600000;
        value_put(store, number, size);
        put += size;
        if (++number % 16 == 0) {
            qf_store_flush(store);
            assert_true(
                value_found(store, number - 1, 1000 + ((number - 1) * 7919) % 600000));
            assert_in_range(file_size(dir, "data.mdb"), 1, TEST_LIMIT);
        }
    }
    qf_store_flush(store);
    struct qf_store_stats s = stats_of(store);
    print_message("churn: %llu puts, %llu dropped, %llu evicted, %llu entries, "
                  "%llu bytes\n",
                  (unsigned long long)s.puts, (unsigned long long)s.puts_dropped,
                  (unsigned long long)s.evictions, (unsigned long long)s.entries,
                  (unsigned long long)s.bytes);
    assert_int_equal(s.puts + s.puts_dropped, number);
    assert_true(s.puts_dropped * 50 < number);
    assert_int_equal(s.entries + s.evictions, s.puts);
    assert_true(s.bytes > TEST_LIMIT / 2);
    uint64_t found = 0;
    for (uint64_t i = 0; i < number; i++)
        found += value_found(store, i, 1000 + (i * 7919) % 600000);
    assert_int_equal(found, s.entries);
    qf_store_close(store);

    char path[4096];
    path_in(path, sizeof path, dir, "data.mdb");
    int fd = open(path, O_RDONLY);
    struct qf_lmdb_census census;
    struct qf_err err;
    assert_true(fd >= 0);
    assert_int_equal(qf_lmdb_check(fd, &census, &err), 0);
    assert_int_equal(census.entries, 2 * s.entries);
    assert_in_range(census.bytes, file_size(dir, "data.mdb"), TEST_LIMIT);
    close(fd);
    tmpdir_remove(dir);
}

/* What is evicted is always the prefix of the order of use, also over a restart. */
static void test_lru_order(void **state)
{
    (void)state;
    enum { COUNT = 24, SIZE = 400000 };
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    for (uint64_t i = 0; i < COUNT; i++)
        value_put(store, i, SIZE);
    qf_store_flush(store);
    /* Order of use: 8 … 23, then 7 … 0. */
    for (uint64_t i = 8; i-- > 0;)
        assert_true(value_found(store, i, SIZE));
    qf_store_close(store);
    store = lmdb_open(dir, TEST_LIMIT);
    for (uint64_t i = COUNT; i < 2 * COUNT; i++)
        value_put(store, i, SIZE);
    qf_store_flush(store);
    struct qf_store_stats s = stats_of(store);
    assert_in_range(s.evictions, 10, 23);
    uint64_t order[COUNT], evicted = 0;
    for (uint64_t i = 0; i < COUNT; i++)
        order[i] = i < 16 ? i + 8 : 23 - i;
    while (evicted < COUNT && !value_found(store, order[evicted], SIZE))
        evicted++;
    assert_int_equal(evicted, s.evictions);
    for (uint64_t i = evicted; i < COUNT; i++)
        assert_true(value_found(store, order[i], SIZE));
    for (uint64_t i = COUNT; i < 2 * COUNT; i++)
        assert_true(value_found(store, i, SIZE));
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* A reader that holds on pins its pages: nothing under it changes, puts that find no
 * room are dropped, and all is well after it has let go. */
static void test_held_value(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    value_put(store, 1, 500000);
    qf_store_flush(store);
    struct qf_store_value held;
    assert_true(qf_store_get(store, value_key(1), &held));
    unsigned char *want = malloc(500000);
    assert_non_null(want);
    value_fill(want, 500000, 1);
    for (uint64_t i = 100; i < 200; i++)
        value_put(store, i, 500000);
    qf_store_flush(store);
    assert_memory_equal(held.data, want, 500000);
    assert_in_range(file_size(dir, "data.mdb"), 1, TEST_LIMIT);
    assert_true(stats_of(store).puts_dropped > 0);
    assert_true(stats_of(store).entries > 5); /* not all thrown away in vain */
    qf_store_release(store, &held);
    free(want);
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    uint64_t dropped = stats_of(store).puts_dropped;
    for (uint64_t i = 200; i < 250; i++)
        value_put(store, i, 500000);
    qf_store_flush(store);
    assert_int_equal(stats_of(store).puts_dropped, dropped);
    assert_true(value_found(store, 249, 500000));
    qf_store_close(store);
    tmpdir_remove(dir);
}

struct gate {
    sem_t entered;
    sem_t leave;
};

static void wait_in_gate(void *arg, bool lasting)
{
    (void)lasting;
    struct gate *gate = arg;
    sem_post(&gate->entered);
    sem_wait(&gate->leave);
}

static void count_call(void *arg, bool lasting)
{
    (void)lasting;
    ++*(int *)arg;
}

/* With the writer held up in a done(), puts fill the queue; the next is dropped before
 * it returns, and the queue works again afterwards. */
static void test_queue_full(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    struct gate gate;
    sem_init(&gate.entered, 0, 0);
    sem_init(&gate.leave, 0, 0);
    qf_store_put(store, value_key(0), 0, "x", 1, wait_in_gate, &gate);
    sem_wait(&gate.entered);
    unsigned char *data = calloc(1, QF_STORED_SIZE_MAX);
    assert_non_null(data);
    const int fit = (int)(QF_CACHE_QUEUE_SIZE_MAX / (QF_STORED_SIZE_MAX + 128));
    int done = 0;
    for (int i = 0; i < fit; i++)
        qf_store_put(store, value_key(1), 0, data, QF_STORED_SIZE_MAX, count_call,
                     &done);
    assert_int_equal(done, 0);
    assert_int_equal(stats_of(store).puts_dropped, 0);
    qf_store_put(store, value_key(2), 0, data, QF_STORED_SIZE_MAX, count_call, &done);
    assert_int_equal(done, 1);
    assert_int_equal(stats_of(store).puts_dropped, 1);
    sem_post(&gate.leave);
    qf_store_flush(store);
    assert_int_equal(done, fit + 1);
    value_put(store, 3, 1000);
    qf_store_flush(store);
    assert_true(value_found(store, 3, 1000));
    assert_int_equal(stats_of(store).puts_dropped, 1);
    free(data);
    qf_store_close(store);
    sem_destroy(&gate.entered);
    sem_destroy(&gate.leave);
    tmpdir_remove(dir);
}

static void test_holds_max(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    static struct qf_store_value holds[QF_CACHE_HOLDS_MAX];
    struct qf_store_value more;
    value_put(store, 1, 1000);
    qf_store_flush(store);
    for (unsigned i = 0; i < QF_CACHE_HOLDS_MAX; i++)
        assert_true(qf_store_get(store, value_key(1), &holds[i]));
    assert_false(qf_store_get(store, value_key(1), &more));
    qf_store_release(store, &holds[5]);
    assert_true(qf_store_get(store, value_key(1), &holds[5]));
    for (unsigned i = 0; i < QF_CACHE_HOLDS_MAX; i++)
        qf_store_release(store, &holds[i]);
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void expect_open_error(const char *dir, int want, const char *text)
{
    const struct qf_store_lmdb_options options = {.dir = dir,
                                                  .bytes_limit = TEST_LIMIT};
    struct qf_err err = {{0}};
    qf_store *store = NULL;
    assert_int_equal(qf_store_lmdb_open(&options, &store, &err), want);
    assert_non_null(strstr(err.text, dir));
    if (strstr(err.text, text) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.text, text);
}

static void test_open_errors(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    char path[4096];
    tmpdir_write_text(dir, "file", "x");
    path_in(path, sizeof path, dir, "file");
    expect_open_error(path, -ENOTDIR, "Not a directory");
    path_in(path, sizeof path, dir, "file/below");
    expect_open_error(path, -ENOTDIR, "cannot make the directory");

    path_in(path, sizeof path, dir, "c");
    qf_store *store = lmdb_open(path, TEST_LIMIT);
    expect_open_error(path, -EBUSY, "open in this process already");
    value_put(store, 1, 10);
    qf_store_close(store);
    store = lmdb_open(path, TEST_LIMIT); /* and may be opened again after a close */
    assert_true(value_found(store, 1, 10));
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void test_limit_range(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    const struct {
        uint64_t ask, want;
    } cases[] = {
        {1, QF_CACHE_SIZE_MIN},
        {QF_CACHE_SIZE_MIN + 65535, QF_CACHE_SIZE_MIN},
        {QF_CACHE_SIZE_MIN + 65536, QF_CACHE_SIZE_MIN + 65536},
        {QF_CACHE_SIZE_MAX, QF_CACHE_SIZE_MAX},
        {UINT64_MAX, QF_CACHE_SIZE_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct qf_lmdb_dir d;
        assert_int_equal(qf_lmdb_dir_open(&d, dir, cases[i].ask, NULL), 0);
        assert_true(d.alone);
        assert_int_equal(d.bytes_limit, cases[i].want);
        qf_lmdb_dir_close(&d);
    }
    struct qf_lmdb_dir d;
    assert_int_equal(qf_lmdb_dir_open(&d, dir, 0, NULL), 0);
    assert_true(d.bytes_limit >= QF_CACHE_SIZE_MIN);
    qf_lmdb_dir_close(&d);
    tmpdir_remove(dir);
}

static void test_read_only(void **state)
{
    (void)state;
    if (!own_mounts()) {
        print_message("skipped: mounting needs root\n");
        skip();
    }
    char *dir = tmpdir_make();
    qf_store_close(lmdb_open(dir, TEST_LIMIT));
    assert_int_equal(mount(dir, dir, NULL, MS_BIND, NULL), 0);
    assert_int_equal(mount(NULL, dir, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), 0);
    expect_open_error(dir, -EROFS, "cannot be written to: Read-only file system");
    assert_int_equal(umount(dir), 0);
    qf_store_close(lmdb_open(dir, TEST_LIMIT));
    tmpdir_remove(dir);
}

/* A limit far beyond the filesystem: puts go on, in the room there is. */
static void test_full_disk(void **state)
{
    (void)state;
    if (!own_mounts()) {
        print_message("skipped: mounting needs root\n");
        skip();
    }
    char *dir = tmpdir_make();
    assert_int_equal(mount("none", dir, "tmpfs", 0, "size=64m"), 0);
    qf_store *store = lmdb_open(dir, UINT64_C(1) << 30);
    enum { COUNT = 400, SIZE = 500000 };
    for (uint64_t i = 0; i < COUNT; i++) {
        value_put(store, i, SIZE);
        if (i % 8 == 0)
            qf_store_flush(store);
    }
    qf_store_flush(store);
    struct qf_store_stats s = stats_of(store);
    print_message("64 MiB: %llu puts, %llu dropped, %llu evicted, %llu entries\n",
                  (unsigned long long)s.puts, (unsigned long long)s.puts_dropped,
                  (unsigned long long)s.evictions, (unsigned long long)s.entries);
    assert_true(s.puts > COUNT * 3 / 4);
    assert_true(s.entries > 60);
    uint64_t found = 0;
    for (uint64_t i = 0; i < COUNT; i++)
        found += value_found(store, i, SIZE);
    assert_int_equal(found, s.entries);
    qf_store_close(store);
    store = lmdb_open(dir, UINT64_C(1) << 30);
    assert_int_equal(stats_of(store).entries, found);
    qf_store_close(store);

    /* No room at all: an error that says so, or a store that keeps nothing. */
    char path[4096];
    path_in(path, sizeof path, dir, "fill");
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    static unsigned char block[4096];
    while (write(fd, block, sizeof block) == (ssize_t)sizeof block)
        continue;
    close(fd);
    path_in(path, sizeof path, dir, "other");
    assert_int_equal(mkdir(path, 0700), 0);
    expect_open_error(path, -ENOSPC, "No space left on device");
    store = lmdb_open(dir, UINT64_C(1) << 30);
    for (uint64_t i = 0; i < COUNT; i++)
        found -= value_found(store, i, SIZE);
    assert_int_equal(found, 0);
    value_put(store, 1000, SIZE);
    qf_store_flush(store);
    s = stats_of(store);
    assert_int_equal(s.puts + s.puts_dropped, 1);
    assert_int_equal(value_found(store, 1000, SIZE), s.puts);
    qf_store_close(store);
    assert_int_equal(umount(dir), 0);
    tmpdir_remove(dir);
}

/* A cache larger than a lowered limit begins anew: LMDB cannot shrink a file. */
static void test_lowered_limit(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, 2 * TEST_LIMIT);
    for (uint64_t i = 0; i < 60; i++)
        value_put(store, i, 500000);
    qf_store_close(store);
    assert_true(file_size(dir, "data.mdb") > (long long)TEST_LIMIT);
    store = lmdb_open(dir, TEST_LIMIT);
    assert_int_equal(stats_of(store).entries, 0);
    assert_in_range(file_size(dir, "data.mdb"), 1, TEST_LIMIT);
    value_put(store, 1, 1000);
    qf_store_close(store);
    store = lmdb_open(dir, 2 * TEST_LIMIT); /* raising keeps everything */
    assert_true(value_found(store, 1, 1000));
    assert_int_equal(stats_of(store).bytes_limit, 2 * TEST_LIMIT);
    qf_store_close(store);
    tmpdir_remove(dir);
}

int main(void)
{
    qf_log_set_level(QF_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_put_get_persist), cmocka_unit_test(test_stats),
        cmocka_unit_test(test_overwrite),       cmocka_unit_test(test_churn),
        cmocka_unit_test(test_lru_order),       cmocka_unit_test(test_held_value),
        cmocka_unit_test(test_queue_full),      cmocka_unit_test(test_holds_max),
        cmocka_unit_test(test_open_errors),     cmocka_unit_test(test_limit_range),
        cmocka_unit_test(test_read_only),       cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_lowered_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
