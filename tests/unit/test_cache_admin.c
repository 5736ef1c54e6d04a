/* SPDX-License-Identifier: Apache-2.0 */
#include "test_cache_sealed.h"

#include <sys/wait.h>
#include <time.h>

#include "base/limits.h"
#include "base/log.h"
#include "cache/admin.h"
#include "support/tmpdir.h"

static int try_existing(const char *dir, qf_store **store, struct qf_err *err)
{
    const struct qf_store_lmdb_options options = {.dir = dir, .existing = true};
    return qf_store_lmdb_open(&options, store, err);
}

static qf_store *open_existing(const char *dir)
{
    qf_store *store = NULL;
    struct qf_err err = {""};
    int rc = try_existing(dir, &store, &err);
    if (rc != 0)
        fprintf(stderr, "%s\n", err.text);
    assert_int_equal(rc, 0);
    return store;
}

static const struct qf_admin_origin *origin_in(const struct qf_admin_list *list,
                                               uint64_t id)
{
    for (size_t i = 0; i < list->count; i++)
        if (list->origins[i].id == id)
            return &list->origins[i];
    return NULL;
}

static uint64_t removed_of(qf_store *store, struct qf_admin_which which, bool dry_run)
{
    struct qf_admin_removed removed;
    assert_int_equal(qf_admin_remove(store, &which, dry_run, &removed), 0);
    return removed.values + removed.files;
}

static void test_ids(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    char other[4096], name[QF_STORE_ORIGIN_SIZE_MAX + 1];
    path_in(other, sizeof other, dir, "other");
    qf_store *a = lmdb_open(dir, TEST_LIMIT);
    qf_store *b = lmdb_open(other, TEST_LIMIT);
    qf_store *mem = NULL;
    assert_int_equal(qf_store_mem_open(1000, &mem), 0);
    uint64_t id = qf_store_origin(a, "nf4", "/models", "x");
    assert_int_not_equal(id, 0);
    assert_int_equal(qf_store_origin(a, "nf4", "/models", "x"), id);
    assert_int_equal(qf_store_origin(b, "nf4", "/models", "x"), id);
    assert_int_not_equal(qf_store_origin(a, "nf4", "/model", "sx"), id);
    assert_int_not_equal(qf_store_origin(a, "int8", "/models", "x"), id);
    assert_int_equal(qf_store_origin(mem, "nf4", "/models", "x"), 0);
    memset(name, 'n', sizeof name);
    name[QF_STORE_ORIGIN_SIZE_MAX - 3] = '\0'; /* three NULs with the empty ones */
    id = qf_store_origin(a, name, "", "");
    assert_int_not_equal(id, 0);
    origin_put(a, id, 1, 100);
    qf_store_flush(a);
    struct qf_admin_list list;
    assert_int_equal(qf_admin_list(a, &list), 0);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.origins[0].view, name);
    qf_admin_list_fini(&list);
    name[QF_STORE_ORIGIN_SIZE_MAX - 3] = 'n';
    name[QF_STORE_ORIGIN_SIZE_MAX - 2] = '\0';
    assert_int_equal(qf_store_origin(a, name, "", ""), 0);
    qf_store_close(mem);
    qf_store_close(b);
    qf_store_close(a);
    tmpdir_remove(dir);
}

/* 3 values and a file of "a", 2 values of "b", one of nobody. */
static void fill(qf_store *store, uint64_t *a, uint64_t *b)
{
    *a = qf_store_origin(store, "nf4", "/models", "x/a");
    *b = qf_store_origin(store, "int8", "/models", "x/a");
    assert_int_not_equal(qf_store_origin(store, "dq", "/models", "never put"), 0);
    for (uint64_t i = 0; i < 3; i++)
        origin_put(store, *a, i, 10000);
    for (uint64_t i = 3; i < 5; i++)
        origin_put(store, *b, i, 500);
    value_put(store, 5, 7);
    assert_int_equal(origin_file(store, *a, 1, 2 * MIB), 0);
    qf_store_flush(store);
}

static void check_list(qf_store *store, uint64_t a, uint64_t b, uint64_t hits)
{
    struct qf_admin_list list;
    uint64_t now = (uint64_t)time(NULL);
    assert_int_equal(qf_admin_list(store, &list), 0);
    assert_int_equal(list.count, 3);
    assert_int_equal(list.origins[0].id, 0); /* in the order of the names */
    assert_int_equal(list.origins[1].id, b);
    assert_int_equal(list.origins[2].id, a);
    const struct qf_admin_origin *o = origin_in(&list, a);
    assert_string_equal(o->view, "nf4");
    assert_string_equal(o->store, "/models");
    assert_string_equal(o->model, "x/a");
    assert_int_equal(o->values, 3);
    assert_int_equal(o->bytes, 30000);
    assert_int_equal(o->files, 1);
    assert_int_equal(o->file_bytes, 2 * MIB);
    assert_int_equal(o->hits, hits);
    assert_in_range(o->last_s, now - 600, now + 1);
    assert_false(o->pinned);
    assert_int_equal(origin_in(&list, b)->bytes, 1000);
    assert_int_equal(origin_in(&list, 0)->values, 1);
    assert_string_equal(origin_in(&list, 0)->model, "");
    qf_admin_list_fini(&list);
}

/* Names of views are anybody's: memory for them is bounded, those known stay known. */
static void test_too_many_origins(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    uint64_t first = qf_store_origin(store, "nf4", "/models", "0");
    uint64_t last = first;
    char model[32];
    for (unsigned i = 1; last != 0 && i < 100000; i++) {
        snprintf(model, sizeof model, "%u", i);
        last = qf_store_origin(store, "nf4", "/models", model);
    }
    assert_int_equal(last, 0);
    assert_int_equal(qf_store_origin(store, "nf4", "/models", "0"), first);
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void test_list(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    uint64_t a, b;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    fill(store, &a, &b);
    check_list(store, a, b, 0);
    for (int i = 0; i < 3; i++)
        assert_true(value_found(store, 0, 10000));
    assert_true(value_found(store, 1, 10000));
    assert_true(file_found(store, 1, 2 * MIB));
    origin_put(store, b, 2, 10000); /* is there: keeps its origin */
    qf_store_close(store);
    store = open_existing(dir);
    assert_int_equal(stats_of(store).bytes_limit, TEST_LIMIT);
    check_list(store, a, b, 5);
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void test_remove(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    uint64_t a, b, now = (uint64_t)time(NULL);
    struct qf_admin_list list;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    fill(store, &a, &b);
    struct qf_admin_which of_a = {.origins = &a, .origin_count = 1};
    assert_int_equal(removed_of(store, of_a, true), 4);
    of_a.before_s = now - 1000;
    assert_int_equal(removed_of(store, of_a, false), 0);
    check_list(store, a, b, 0);
    of_a.before_s = now + 1000;
    assert_int_equal(removed_of(store, of_a, false), 4);
    assert_false(sealed_exists(dir, 1, ""));
    for (uint64_t i = 0; i < 5; i++)
        assert_int_equal(value_found(store, i, i < 3 ? 10000 : 500), i >= 3);
    assert_int_equal(qf_admin_list(store, &list), 0);
    assert_int_equal(list.count, 2);
    assert_null(origin_in(&list, a));
    qf_admin_list_fini(&list);
    assert_int_equal(qf_admin_pin(store, a, true), -ENOENT); /* forgotten */
    origin_put(store, a, 0, 10000);                          /* and named again */
    qf_store_flush(store);
    assert_int_equal(qf_admin_pin(store, a, true), 0);
    assert_int_equal(removed_of(store, (struct qf_admin_which){.all = true}, false), 4);
    assert_int_equal(qf_admin_list(store, &list), 0);
    assert_int_equal(list.count, 0);
    qf_admin_list_fini(&list);
    assert_int_equal(stats_of(store).entries, 0);
    assert_int_equal(stats_of(store).file_bytes, 0);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* A pinned origin stays listed when it is empty, with its name. */
static void test_pin_is_kept(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    uint64_t a, b;
    struct qf_admin_list list;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    fill(store, &a, &b);
    assert_int_equal(qf_admin_pin(store, a, true), 0);
    const struct qf_admin_which of_a = {.origins = &a, .origin_count = 1};
    assert_int_equal(removed_of(store, of_a, false), 4);
    qf_store_close(store);
    store = open_existing(dir);
    assert_int_equal(qf_admin_list(store, &list), 0);
    assert_non_null(origin_in(&list, a));
    assert_true(origin_in(&list, a)->pinned);
    assert_int_equal(origin_in(&list, a)->values, 0);
    assert_false(origin_in(&list, b)->pinned);
    qf_admin_list_fini(&list);
    assert_int_equal(qf_admin_pin(store, a, false), 0);
    assert_int_equal(qf_admin_list(store, &list), 0);
    assert_null(origin_in(&list, a));
    qf_admin_list_fini(&list);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* ---- verify ---- */

enum { VALUES = 150, FLIPS = 120, FILES = 6, HEAD = 64, SERIAL = 48 };

static size_t size_of(uint64_t i)
{
    return 100 + (i * 7919) % 20000;
}

/* Changes a byte of each of the first FLIPS values, in its head or in its data. */
static unsigned flip_values(const char *dir)
{
    char path[4096];
    unsigned flipped = 0;
    path_in(path, sizeof path, dir, "data.mdb");
    int fd = open(path, O_RDWR);
    struct stat st;
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    unsigned char *bytes = malloc((size_t)st.st_size);
    assert_non_null(bytes);
    assert_int_equal(pread(fd, bytes, (size_t)st.st_size, 0), st.st_size);
    for (off_t off = 16; off + HEAD <= st.st_size; off += 4096) {
        struct qf_hash128 key;
        if (memcmp(bytes + off, "qfrecord", 8) != 0)
            continue;
        memcpy(&key, bytes + off + 16, sizeof key);
        for (uint64_t i = 0; i < FLIPS; i++) {
            if (!qf_hash128_eq(key, value_key(i)))
                continue;
            off_t at = (off_t)((i * 104729) % (HEAD + size_of(i)));
            if (at >= SERIAL && at < SERIAL + 8)
                at = 0; /* any serial is right */
            unsigned char byte = bytes[off + at] ^ (unsigned char)(1 << i % 8);
            assert_int_equal(pwrite(fd, &byte, 1, off + at), 1);
            flipped++;
        }
    }
    free(bytes);
    close(fd);
    return flipped;
}

static void flip_file(const char *dir, uint64_t number, off_t at)
{
    char path[4096];
    unsigned char byte;
    sealed_path(path, sizeof path, dir, number, "");
    assert_int_equal(chmod(path, 0600), 0);
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

struct told {
    uint64_t origin;
    bool values[VALUES];
    bool files[FILES];
    unsigned calls;
    uint64_t bytes;
};

static void note_damaged(void *arg, const struct qf_admin_damage *damage)
{
    struct told *told = arg;
    assert_int_equal(damage->origin, told->origin);
    for (uint64_t i = 0; i < VALUES; i++)
        if (qf_hash128_eq(damage->key, damage->is_file ? file_key(i) : value_key(i)))
            (damage->is_file ? told->files : told->values)[i] = true;
}

static void note_progress(void *arg, const struct qf_admin_verified *so_far)
{
    struct told *told = arg;
    assert_true(so_far->bytes >= told->bytes);
    told->bytes = so_far->bytes;
    told->calls++;
}

static void test_verify(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    struct told told = {0};
    struct qf_admin_verified seen;
    const struct qf_admin_watch watch = {note_progress, note_damaged, &told};
    qf_store *store = lmdb_open(dir, 2 * TEST_LIMIT);
    told.origin = qf_store_origin(store, "nf4", "/models", "a");
    for (uint64_t i = 0; i < VALUES; i++)
        origin_put(store, told.origin, i, size_of(i));
    for (uint64_t i = 0; i < FILES; i++)
        assert_int_equal(origin_file(store, told.origin, i, MIB + i), 0);
    assert_int_equal(qf_admin_verify(store, &watch, &seen), 0);
    assert_int_equal(seen.values, VALUES);
    assert_int_equal(seen.files, FILES);
    assert_int_equal(seen.damaged_values + seen.damaged_files, 0);
    assert_true(told.calls > 0);
    qf_store_close(store);
    assert_int_equal(flip_values(dir), FLIPS);
    flip_file(dir, 2, 0);
    flip_file(dir, 3, MIB + 2);
    char path[4096];
    sealed_path(path, sizeof path, dir, 4, "");
    store = open_existing(dir);
    assert_int_equal(unlink(path), 0);
    qf_log_set_level(QF_LOG_ERROR);
    told.bytes = 0;
    assert_int_equal(qf_admin_verify(store, &watch, &seen), 0);
    qf_log_set_level(QF_LOG_INFO);
    assert_int_equal(seen.damaged_values, FLIPS);
    assert_int_equal(seen.damaged_files, 3);
    for (uint64_t i = 0; i < VALUES; i++)
        assert_int_equal(told.values[i], i < FLIPS);
    for (uint64_t i = 0; i < FILES; i++)
        assert_int_equal(told.files[i], i >= 2 && i <= 4);
    told.bytes = 0;
    assert_int_equal(qf_admin_verify(store, &watch, &seen), 0);
    assert_int_equal(seen.values, VALUES - FLIPS);
    assert_int_equal(seen.files, FILES - 3);
    assert_int_equal(seen.damaged_values + seen.damaged_files, 0);
    for (uint64_t i = 0; i < VALUES; i++)
        assert_int_equal(value_found(store, i, size_of(i)), i >= FLIPS);
    assert_true(file_found(store, 5, MIB + 5));
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* ---- several processes ---- */

/* Puts and reads until it is told to end. */
static int be_daemon(const char *dir, int ready, int stop)
{
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    uint64_t origin = qf_store_origin(store, "nf4", "/models", "busy");
    char byte = 'r';
    int flags = fcntl(stop, F_GETFL);
    bool fine = fcntl(stop, F_SETFL, flags | O_NONBLOCK) == 0;
    for (uint64_t i = 0; fine && read(stop, &byte, 1) < 0; i++) {
        origin_put(store, origin, i % 40, 10000);
        (void)value_found(store, (i + 7) % 40, 10000);
        qf_store_flush(store);
        fine = i != 60 || write(ready, "r", 1) == 1;
    }
    struct qf_store_stats stats = stats_of(store);
    fine = fine && stats.damaged == 0 && stats.puts_dropped == 0;
    qf_store_close(store);
    return fine ? 0 : 1;
}

static void test_beside_a_daemon(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    int ready[2], stop[2], status;
    char byte;
    assert_true(pipe(ready) == 0 && pipe(stop) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(ready[0]);
        close(stop[1]); /* whatever ends the test ends the pipe, and so this process */
        _exit(be_daemon(dir, ready[1], stop[0]));
    }
    close(ready[1]);
    close(stop[0]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    qf_store *store = open_existing(dir);
    const struct qf_admin_watch watch = {0};
    for (unsigned round = 0; round < 20; round++) {
        struct qf_admin_list list;
        struct qf_admin_verified seen;
        assert_int_equal(qf_admin_verify(store, &watch, &seen), 0);
        assert_int_equal(seen.damaged_values, 0);
        assert_int_equal(qf_admin_list(store, &list), 0);
        for (size_t i = 0; i < list.count; i++) {
            assert_string_equal(list.origins[i].model, "busy");
            assert_int_equal(qf_admin_pin(store, list.origins[i].id, round % 2), 0);
        }
        qf_admin_list_fini(&list);
        struct qf_admin_removed removed;
        const struct qf_admin_which all = {.all = true};
        assert_int_equal(qf_admin_remove(store, &all, false, &removed), 0);
    }
    assert_int_equal(write(stop[1], "s", 1), 1);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    qf_store_close(store);
    close(ready[0]);
    close(stop[1]);
    tmpdir_remove(dir);
}

/* ---- a cache that is not there or not whole ---- */

static void expect_refused(const char *dir, int code, const char *words)
{
    qf_store *store = NULL;
    struct qf_err err = {""};
    assert_int_equal(try_existing(dir, &store, &err), code);
    if (strstr(err.text, words) == NULL)
        fprintf(stderr, "%s\n", err.text);
    assert_non_null(strstr(err.text, words));
}

static void test_existing(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    char missing[4096], path[4096];
    path_in(missing, sizeof missing, dir, "missing");
    path_in(path, sizeof path, dir, "data.mdb");
    expect_refused(missing, -ENOENT, "No such file");
    assert_int_equal(access(missing, F_OK), -1);
    expect_refused(dir, -ENOENT, "no cache in this directory");
    assert_int_equal(file_size(dir, "users.lock"), -1);
    qf_store *store = lmdb_open(dir, 2 * TEST_LIMIT);
    for (uint64_t i = 0; i < 10; i++)
        value_put(store, i, 1000);
    for (uint64_t i = 0; i < 2; i++)
        assert_int_equal(make_file(store, i, 10 * MIB), 0);
    qf_store_close(store);
    int fd = open(path, O_RDWR);
    long long size = file_size(dir, "data.mdb");
    unsigned char *bytes = malloc((size_t)size);
    assert_non_null(bytes);
    assert_int_equal(pread(fd, bytes, (size_t)size, 0), size);
    unsigned char *version = memmem(bytes, (size_t)size, "quantfs cache 1", 16);
    assert_non_null(version);
    version[16] += 1;
    assert_int_equal(pwrite(fd, bytes, (size_t)size, 0), size);
    expect_refused(dir, -EBADMSG, "version");
    version[16] -= 1;
    assert_int_equal(pwrite(fd, bytes, (size_t)size, 0), size);
    bytes[0] ^= 1; /* the number of the first page */
    assert_int_equal(pwrite(fd, bytes, 1, 0), 1);
    expect_refused(dir, -EBADMSG, "the next mount begins the cache anew");
    bytes[0] ^= 1;
    assert_int_equal(pwrite(fd, bytes, 1, 0), 1);
    free(bytes);
    close(fd);
    store = open_existing(dir); /* nothing was set aside */
    assert_int_equal(stats_of(store).bytes_limit, 2 * TEST_LIMIT);
    for (uint64_t i = 0; i < 10; i++)
        assert_true(value_found(store, i, 1000));
    qf_store_close(store);
    path_in(path, sizeof path, dir, "users.lock");
    assert_int_equal(truncate(path, 0), 0); /* copied without it */
    store = open_existing(dir);
    assert_true(value_found(store, 1, 1000));
    for (uint64_t i = 0; i < 2; i++) /* nothing is evicted */
        assert_true(file_found(store, i, 10 * MIB));
    qf_store_close(store);
    tmpdir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_too_many_origins),
        cmocka_unit_test(test_remove),
        cmocka_unit_test(test_pin_is_kept),
        cmocka_unit_test(test_verify),
        cmocka_unit_test(test_beside_a_daemon),
        cmocka_unit_test(test_existing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
