/* SPDX-License-Identifier: Apache-2.0 */
/* What an administrator asks of eviction: pins, and room on the filesystem. */
#include "test_cache_sealed.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

#include "base/limits.h"
#include "base/log.h"
#include "cache/admin.h"
#include "support/mounts.h"
#include "support/tmpdir.h"

enum { SIZE = 100000 };

/* Puts `count` values, waiting now and then; returns how many of them are there. */
static unsigned churn(qf_store *store, uint64_t origin, uint64_t from, unsigned count)
{
    unsigned there = 0;
    for (unsigned i = 0; i < count; i++) {
        origin_put(store, origin, from + i, SIZE);
        if (i % 8 == 7)
            qf_store_flush(store);
    }
    qf_store_flush(store);
    for (unsigned i = 0; i < count; i++)
        there += value_found(store, from + i, SIZE);
    return there;
}

/* A limit that changes while the store is in use: files are fitted to it at once,
 * values as new ones come; more than at the start only the next start gives. */
static void test_other_limits(void **state)
{
    (void)state;
    enum { FILES = 6, FILE_SIZE = 2 << 20, LIMIT = 64 << 20 };
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, LIMIT);
    for (uint64_t i = 0; i < FILES; i++)
        assert_int_equal(origin_file(store, 0, i, FILE_SIZE), 0);
    assert_int_equal(stats_of(store).files, FILES);
    qf_store_set_limits(store, QF_CACHE_SIZE_MIN, 0);
    struct qf_store_stats s = stats_of(store);
    assert_int_equal(s.bytes_limit, QF_CACHE_SIZE_MIN);
    assert_in_range(s.files, 1, FILES);
    assert_true(s.bytes <= QF_CACHE_SIZE_MIN);
    assert_true(churn(store, 0, 0, 100) > 0);
    churn(store, 0, 100, 200);
    assert_true(stats_of(store).bytes <= QF_CACHE_SIZE_MIN);
    qf_store_set_limits(store, 1, 0);
    assert_int_equal(stats_of(store).bytes_limit, QF_CACHE_SIZE_MIN);
    qf_log_set_level(QF_LOG_ERROR); /* it warns */
    qf_store_set_limits(store, 2 * (uint64_t)LIMIT, 0);
    qf_log_set_level(QF_LOG_INFO);
    assert_int_equal(stats_of(store).bytes_limit, LIMIT);
    qf_store_set_limits(store, 0, 0);
    assert_int_equal(churn(store, 0, 1000, 300), 300);
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void test_pinned_stays(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    uint64_t keep = qf_store_origin(store, "nf4", "/m", "keep");
    uint64_t other = qf_store_origin(store, "nf4", "/m", "other");
    assert_int_equal(churn(store, keep, 0, 40), 40);
    assert_int_equal(qf_admin_pin(store, keep, true), 0);
    for (unsigned round = 0; round < 4; round++) {
        assert_true(churn(store, other, 1000 * (round + 1), 200) >= 30);
        assert_int_equal(churn(store, keep, 0, 0), 0);
        if (round == 1) { /* the pin is in the cache, not in the process */
            qf_store_close(store);
            store = lmdb_open(dir, TEST_LIMIT);
            other = qf_store_origin(store, "nf4", "/m", "other");
        }
    }
    for (uint64_t i = 0; i < 40; i++)
        assert_true(value_found(store, i, SIZE));
    assert_true(stats_of(store).evictions > 0);
    assert_int_equal(stats_of(store).puts_dropped, 0);
    assert_int_equal(qf_admin_pin(store, keep, false), 0);
    churn(store, other, 9000, 400);
    unsigned left = 0;
    for (uint64_t i = 0; i < 40; i++)
        left += value_found(store, i, SIZE);
    assert_int_equal(left, 0);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* Everything is pinned: new values are dropped, and the cache can still be changed. */
static void test_all_pinned(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    uint64_t keep = qf_store_origin(store, "nf4", "/m", "keep");
    uint64_t other = qf_store_origin(store, "nf4", "/m", "other");
    origin_put(store, keep, 0, SIZE);
    qf_store_flush(store);
    assert_int_equal(qf_admin_pin(store, keep, true), 0);
    unsigned there = churn(store, keep, 0, 400);
    assert_in_range(there, 60, 200);
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(churn(store, other, 5000, 100), 0);
        assert_int_equal(churn(store, keep, 0, 0), 0);
        assert_int_equal(stats_of(store).entries, there);
    }
    assert_in_range(file_size(dir, "data.mdb"), 1, TEST_LIMIT);
    assert_int_equal(origin_file(store, other, 1, 4 * MIB), -ENOSPC);
    for (unsigned round = 0; round < 10; round++)
        assert_int_equal(qf_admin_pin(store, keep, round % 2 == 0), 0);
    assert_true(churn(store, other, 5000, 100) > 50);
    struct qf_admin_removed removed;
    const struct qf_admin_which all = {.all = true};
    assert_int_equal(qf_admin_remove(store, &all, false, &removed), 0);
    assert_int_equal(stats_of(store).entries, 0);
    assert_int_equal(stats_of(store).damaged, 0);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* New files push out what is not pinned; a lower limit takes pinned ones last. */
static void test_pinned_files(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, 2 * TEST_LIMIT);
    uint64_t keep = qf_store_origin(store, "nf4", "/m", "keep");
    uint64_t other = qf_store_origin(store, "nf4", "/m", "other");
    for (uint64_t i = 0; i < 2; i++)
        assert_int_equal(origin_file(store, keep, i, 7 * MIB), 0);
    assert_int_equal(qf_admin_pin(store, keep, true), 0);
    for (uint64_t i = 2; i < 8; i++)
        assert_int_equal(origin_file(store, other, i, 7 * MIB), 0);
    assert_int_equal(origin_file(store, other, 9, 15 * MIB), -ENOSPC);
    for (uint64_t i = 0; i < 2; i++)
        assert_true(file_found(store, i, 7 * MIB));
    assert_false(file_found(store, 3, 7 * MIB));
    assert_true(file_found(store, 7, 7 * MIB));
    qf_store_close(store);
    store = lmdb_open(dir, TEST_LIMIT);
    unsigned names;
    assert_true(disk_sum(dir, &names) <= TEST_LIMIT);
    assert_int_equal(names, 2);
    assert_false(file_found(store, 7, 7 * MIB));
    qf_store_close(store);
    store = lmdb_open(dir, TEST_LIMIT);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* ---- room on the filesystem ---- */

enum { DISK = 64, FREE = 30, SLOP = 2 }; /* MiB */

static uint64_t free_bytes(const char *dir)
{
    struct statvfs fs;
    assert_int_equal(statvfs(dir, &fs), 0);
    return (uint64_t)fs.f_bavail * fs.f_frsize;
}

static qf_store *open_min_free(const char *dir, uint64_t limit)
{
    const struct qf_store_lmdb_options options = {.dir = dir,
                                                  .bytes_limit = limit,
                                                  .min_free = (uint64_t)FREE * MIB};
    struct qf_err err;
    qf_store *store = NULL;
    assert_int_equal(qf_store_lmdb_open(&options, &store, &err), 0);
    return store;
}

static void write_other(const char *dir, size_t size)
{
    char path[4096];
    path_in(path, sizeof path, dir, "other");
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(posix_fallocate(fd, 0, (off_t)size), 0);
    close(fd);
}

static void min_free_on(const char *disk)
{
    char dir[4096], other[4096];
    path_in(dir, sizeof dir, disk, "cache");
    path_in(other, sizeof other, disk, "other");
    qf_store *store = open_min_free(dir, (uint64_t)DISK * MIB);
    uint64_t origin = qf_store_origin(store, "nf4", "/m", "a");
    unsigned there = churn(store, origin, 0, 1000);
    assert_true(there > 100);
    assert_true(free_bytes(disk) >= (uint64_t)(FREE - SLOP) * MIB);
    long long data = file_size(dir, "data.mdb");
    /* Shorter than that: what is there is used, and does not grow. */
    write_other(disk, 20 * (size_t)MIB);
    assert_true(churn(store, origin, 5000, 300) > 50);
    assert_in_range(file_size(dir, "data.mdb"), 1, data + MIB);
    assert_int_equal(origin_file(store, origin, 1, MIB), -ENOSPC);
    assert_true(value_found(store, 5299, SIZE));
    assert_int_equal(unlink(other), 0);
    qf_store_close(store);
    /* Without the option the rest is there to be used. */
    store = lmdb_open(dir, 50 * (uint64_t)MIB);
    churn(store, 0, 20000, 1000);
    assert_true(free_bytes(disk) < (uint64_t)(FREE - SLOP) * MIB);
    qf_store_close(store);
}

/* Files go when something else takes the room, but for pinned ones. */
static void min_free_of_files(const char *disk)
{
    char dir[4096];
    path_in(dir, sizeof dir, disk, "cache");
    qf_store *store = open_min_free(dir, (uint64_t)DISK * MIB);
    uint64_t keep = qf_store_origin(store, "nf4", "/m", "keep");
    assert_int_equal(origin_file(store, keep, 0, 5 * MIB), 0);
    assert_int_equal(qf_admin_pin(store, keep, true), 0);
    for (uint64_t i = 1; i < 6; i++)
        assert_int_equal(origin_file(store, 0, i, 5 * MIB), 0);
    assert_true(free_bytes(disk) >= (uint64_t)(FREE - SLOP) * MIB);
    assert_true(file_found(store, 5, 5 * MIB));
    write_other(disk, 12 * (size_t)MIB);
    churn(store, 0, 0, 8);
    assert_true(free_bytes(disk) >= (uint64_t)(FREE - SLOP) * MIB);
    assert_false(file_found(store, 1, 5 * MIB));
    assert_true(file_found(store, 5, 5 * MIB));
    qf_store_close(store);
    write_other(disk, 36 * (size_t)MIB);
    store = open_min_free(dir, (uint64_t)DISK * MIB);
    churn(store, 0, 100, 8);
    for (uint64_t i = 0; i < 6; i++)
        assert_int_equal(file_found(store, i, 5 * MIB), i == 0);
    qf_store_close(store);
}

static void on_small_disk(void (*test)(const char *disk))
{
    if (geteuid() != 0)
        skip();
    char *disk = tmpdir_make();
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        char size[32];
        snprintf(size, sizeof size, "size=%dm", DISK);
        if (!own_mounts() || mount("none", disk, "tmpfs", 0, size) != 0)
            _exit(77);
        test(disk);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    tmpdir_remove(disk);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(status, 0);
}

/* ---- making data.mdb smaller ---- */

static void expect_no_leftovers(const char *dir)
{
    assert_int_equal(file_size(dir, "data.mdb.compact"), -1);
    assert_int_equal(file_size(dir, "data.mdb.damaged-1"), -1);
}

/* Values have taken all the room before the first file comes: at the next start the
 * oldest go, data.mdb is halved, within the limit. */
static void room_for_files(const char *disk)
{
    char dir[4096];
    unsigned names;
    path_in(dir, sizeof dir, disk, "cache");
    uint64_t limit = 50 * (uint64_t)MIB;
    qf_store *store = lmdb_open(dir, limit);
    churn(store, 0, 0, 700);
    assert_true(file_size(dir, "data.mdb") > 40 * MIB);
    assert_int_equal(origin_file(store, 0, 1, 12 * MIB), -ENOSPC);
    qf_store_close(store);
    write_other(disk, (size_t)(DISK - 51) * MIB); /* a second data.mdb has no room */
    store = lmdb_open(dir, limit);
    expect_no_leftovers(dir);
    assert_int_equal(file_size(dir, "data.mdb.shrink"), -1);
    assert_in_range(file_size(dir, "data.mdb"), 8 * MIB, 25 * MIB);
    assert_int_equal(origin_file(store, 0, 1, 12 * MIB), 0);
    assert_true(file_found(store, 1, 12 * MIB));
    for (uint64_t i = 660; i < 700; i++)
        assert_true(value_found(store, i, SIZE));
    assert_false(value_found(store, 300, SIZE));
    assert_int_equal(stats_of(store).damaged, 0);
    churn(store, 0, 1000, 100);
    assert_true(file_found(store, 1, 12 * MIB));
    assert_true(disk_sum(dir, &names) <= limit);
    qf_store_close(store);
}

static void test_room_for_files(void **state)
{
    (void)state;
    on_small_disk(room_for_files);
}

static qf_store *open_compact(const char *dir)
{
    const struct qf_store_lmdb_options options = {.dir = dir,
                                                  .existing = true,
                                                  .compact = true};
    struct qf_err err;
    qf_store *store = NULL;
    assert_int_equal(qf_store_lmdb_open(&options, &store, &err), 0);
    return store;
}

static void test_compact(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    struct qf_admin_removed removed;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    uint64_t gone = qf_store_origin(store, "nf4", "/m", "gone");
    uint64_t kept = qf_store_origin(store, "int8", "/m", "kept");
    const struct qf_admin_which which = {.origins = &gone, .origin_count = 1};
    assert_int_equal(churn(store, gone, 0, 50), 50);
    assert_int_equal(churn(store, kept, 100, 30), 30);
    assert_int_equal(origin_file(store, kept, 1, MIB), 0);
    long long before = file_size(dir, "data.mdb");
    assert_int_equal(qf_admin_remove(store, &which, false, &removed), 0);
    qf_store_close(store);
    assert_true(file_size(dir, "data.mdb") >= before);
    store = open_compact(dir);
    assert_in_range(file_size(dir, "data.mdb"), 30 * SIZE, 35 * SIZE);
    expect_no_leftovers(dir);
    for (uint64_t i = 100; i < 130; i++)
        assert_true(value_found(store, i, SIZE));
    assert_true(file_found(store, 1, MIB));
    assert_int_equal(churn(store, kept, 200, 30), 30);
    qf_store_close(store);
    store = lmdb_open(dir, TEST_LIMIT);
    assert_true(value_found(store, 110, SIZE));
    assert_int_equal(stats_of(store).damaged, 0);
    const struct qf_admin_which all = {.all = true};
    assert_int_equal(qf_admin_remove(store, &all, false, &removed), 0);
    qf_store_close(store);
    store = lmdb_open(dir, TEST_LIMIT); /* too small to care */
    qf_store_close(store);
    store = open_compact(dir);
    assert_in_range(file_size(dir, "data.mdb"), 1, MIB);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* Killed at any moment of it: the cache is the old one or the new one. */
static void test_compact_killed(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    unsigned halves = 0;
    for (unsigned round = 0; round < 25; round++) {
        qf_store *store = lmdb_open(dir, 2 * TEST_LIMIT);
        expect_no_leftovers(dir);
        assert_int_equal(churn(store, 0, 0, 20), 20);
        churn(store, 0, 1000, 200);
        uint64_t origin = qf_store_origin(store, "nf4", "/m", "a");
        assert_int_equal(churn(store, origin, 5000, 20), 20);
        struct qf_admin_removed removed;
        const struct qf_admin_which which = {.origins = &(uint64_t){0},
                                             .origin_count = 1};
        assert_int_equal(qf_admin_remove(store, &which, false, &removed), 0);
        qf_store_close(store);
        pid_t pid = fork();
        if (pid == 0) {
            qf_store_close(open_compact(dir));
            _exit(0);
        }
        usleep(round * 700);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        halves += file_size(dir, "data.mdb.compact") >= 0;
        store = lmdb_open(dir, 2 * TEST_LIMIT);
        for (uint64_t i = 5000; i < 5020; i++)
            assert_true(value_found(store, i, SIZE));
        assert_int_equal(stats_of(store).damaged, 0);
        qf_store_close(store);
    }
    print_message("killed while it copied: %u of 25\n", halves);
    tmpdir_remove(dir);
}

static void test_min_free(void **state)
{
    (void)state;
    on_small_disk(min_free_on);
}

static void test_min_free_of_files(void **state)
{
    (void)state;
    on_small_disk(min_free_of_files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pinned_stays),   cmocka_unit_test(test_other_limits),
        cmocka_unit_test(test_all_pinned),     cmocka_unit_test(test_pinned_files),
        cmocka_unit_test(test_min_free),       cmocka_unit_test(test_min_free_of_files),
        cmocka_unit_test(test_room_for_files), cmocka_unit_test(test_compact),
        cmocka_unit_test(test_compact_killed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
