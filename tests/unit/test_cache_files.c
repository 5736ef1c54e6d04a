/* SPDX-License-Identifier: Apache-2.0 */
/* Flat files next to values: their life, the limit, and what may happen to them on
 * disk. */
#include "test_cache_sealed.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/log.h"
#include "support/mounts.h"
#include "support/tmpdir.h"

/* ---- one process ---- */

static void test_life(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    char path[4096];
    struct stat st;
    int fd;
    qf_store_draft *draft, *second;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    assert_int_equal(qf_store_file_open(store, file_key(1), 100000, &fd), -ENOENT);
    assert_int_equal(qf_store_file_begin(store, file_key(1), 0, 100000, &draft), 0);
    assert_int_equal(qf_store_file_begin(store, file_key(1), 0, 100000, &second),
                     -EEXIST);
    assert_true(sealed_exists(dir, 1, ".part"));
    assert_int_equal(qf_store_file_open(store, file_key(1), 100000, &fd), -ENOENT);
    assert_int_equal(stats_of(store).files, 0);
    assert_int_equal(stats_of(store).file_bytes, 100000);
    assert_int_equal(append_all(store, draft, 1, 100000), 0);
    assert_int_equal(qf_store_file_commit(store, draft, NULL, 0), 0);
    assert_false(sealed_exists(dir, 1, ".part"));
    assert_int_equal(qf_store_file_begin(store, file_key(1), 0, 100000, &second),
                     -EEXIST);
    for (int round = 0; round < 3; round++) {
        assert_true(file_found(store, 1, 100000));
        struct qf_store_stats s = stats_of(store);
        assert_int_equal(s.files, 1);
        assert_int_equal(s.file_bytes, 100000);
        assert_in_range(s.bytes, 100000 + 4096, 200000);
        assert_int_equal(s.damaged, 0);
        assert_int_equal(s.entries, 0);
        qf_store_close(store);
        store = lmdb_open(dir, TEST_LIMIT);
    }
    sealed_path(path, sizeof path, dir, 1, "");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0400);
    assert_int_equal(qf_store_file_open(store, file_key(1), 100000, &fd), 0);
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    close(fd);
    assert_int_equal(make_file(store, 2, 0), 0);
    assert_true(file_found(store, 2, 0));
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void test_abort(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    unsigned names;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    qf_store_draft *draft;
    for (int round = 0; round < 3; round++) {
        assert_int_equal(qf_store_file_begin(store, file_key(1), 0, 3 * MIB, &draft),
                         0);
        if (round > 0)
            assert_int_equal(append_all(store, draft, 1, 1000), 0);
        qf_store_file_abort(store, draft);
        disk_sum(dir, &names);
        assert_int_equal(names, 0);
        assert_int_equal(stats_of(store).file_bytes, 0);
        assert_false(file_found(store, 1, 3 * MIB));
    }
    assert_int_equal(make_file(store, 1, 1000), 0);
    assert_true(file_found(store, 1, 1000));
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* The records that a file replaces go; others, and those that never were, do not
 * matter. */
static void test_records_dropped(void **state)
{
    (void)state;
    enum { COUNT = 200 };
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    struct qf_hash128 records[COUNT + 1];
    for (uint64_t i = 0; i < COUNT; i++) {
        value_put(store, i, 3000 + i);
        records[i] = value_key(i);
    }
    records[COUNT] = value_key(999);
    value_put(store, 5000, 100);
    qf_store_draft *draft;
    assert_int_equal(qf_store_file_begin(store, file_key(1), 0, 5000, &draft), 0);
    assert_int_equal(append_all(store, draft, 1, 5000), 0);
    assert_int_equal(stats_of(store).entries, COUNT + 1);
    uint64_t before = stats_of(store).bytes;
    assert_int_equal(qf_store_file_commit(store, draft, records, COUNT + 1), 0);
    struct qf_store_stats s = stats_of(store);
    assert_int_equal(s.entries, 1);
    assert_int_equal(s.evictions, 0);
    assert_true(s.bytes < before - COUNT * 3000);
    for (uint64_t i = 0; i < COUNT; i++)
        assert_false(value_found(store, i, 3000 + i));
    assert_true(value_found(store, 5000, 100));
    assert_true(file_found(store, 1, 5000));
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void test_too_large(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    qf_store_draft *draft, *other;
    const uint64_t largest = TEST_LIMIT / 2;
    assert_int_equal(qf_store_file_begin(store, file_key(1), 0, largest + 1, &draft),
                     -ENOSPC);
    assert_int_equal(qf_store_file_begin(store, file_key(1), 0, UINT64_MAX, &draft),
                     -ENOSPC);
    assert_int_equal(make_file(store, 1, 1000), 0);
    assert_int_equal(qf_store_file_begin(store, file_key(2), 0, largest, &draft), 0);
    /* Drafts are not evicted, and for nothing no other file is. */
    assert_int_equal(qf_store_file_begin(store, file_key(3), 0, largest, &other),
                     -ENOSPC);
    assert_int_equal(stats_of(store).evictions, 0);
    assert_true(file_found(store, 1, 1000));
    qf_store_file_abort(store, draft);
    assert_int_equal(make_file(store, 3, largest), 0);
    assert_true(file_found(store, 3, largest));
    qf_store_close(store);

    /* Values that fill the file leave no room for files, which it never gives back. */
    store = lmdb_open(dir, TEST_LIMIT);
    unsigned names;
    for (uint64_t i = 0; i < 60; i++)
        value_put(store, i, 500000);
    qf_store_flush(store);
    assert_in_range(disk_sum(dir, &names), 1, TEST_LIMIT);
    assert_false(file_found(store, 3, largest)); /* older than the values */
    assert_int_equal(make_file(store, 3, largest), -ENOSPC);
    qf_store_close(store);
    tmpdir_remove(dir);
}

static size_t size_at_step(uint64_t step)
{
    return 1000 + (step * 7919u) % 37u * 60000u;
}

/* Values and files of many sizes, several times the limit: after every step what lies
 * on disk is within it, and what is found is right. The newest files are used all the
 * time and so outlive the values around them. */
static void test_limit(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    unsigned names, made = 0, refused = 0, found = 0;
    uint64_t put = 0, most = 0;
    for (uint64_t step = 0; step < 120; step++) {
        if (step % 3 == 0) {
            int rc = make_file(store, step, size_at_step(step));
            assert_true(rc == 0 || rc == -ENOSPC);
            made += rc == 0;
            refused += rc != 0;
        } else {
            for (uint64_t i = 0; i < 4; i++) {
                size_t size = 1000 + ((step * 4 + i) * 104729u) % 400000u;
                value_put(store, step * 4 + i, size);
                put += size;
            }
            qf_store_flush(store);
        }
        for (uint64_t i = step > 12 ? step - 12 : 0; i < step; i++) {
            if (i % 3 == 0)
                (void)file_found(store, i, size_at_step(i));
        }
        uint64_t sum = disk_sum(dir, &names);
        most = sum > most ? sum : most;
        assert_in_range(sum, 1, TEST_LIMIT);
        struct qf_store_stats s = stats_of(store);
        assert_int_equal(s.files, names);
        assert_in_range(s.bytes, s.file_bytes, TEST_LIMIT);
    }
    struct qf_store_stats s = stats_of(store);
    for (uint64_t step = 0; step < 120; step += 3)
        found += file_found(store, step, size_at_step(step));
    print_message("%u files made, %u refused, %u there; %llu MiB of values, %llu "
                  "dropped; %llu bytes at most\n",
                  made, refused, found, (unsigned long long)put / MIB,
                  (unsigned long long)s.puts_dropped, (unsigned long long)most);
    assert_int_equal(found, s.files);
    assert_true(made > 30);
    assert_true(found > 0);
    assert_true(put > 2 * TEST_LIMIT);
    assert_true(s.puts_dropped * 20 < s.puts);
    assert_int_equal(s.damaged, 0);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* Files go by their last use when files need room, and files and values when values
 * do. */
static void test_eviction_order(void **state)
{
    (void)state;
    enum { SIZE = 2 * MIB };
    char *dir = tmpdir_make();
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    int fd;
    for (uint64_t i = 0; i < 6; i++)
        assert_int_equal(make_file(store, i, SIZE), 0);
    assert_true(file_found(store, 0, SIZE));
    assert_int_equal(qf_store_file_open(store, file_key(1), SIZE, &fd), 0);
    assert_true(file_found(store, 2, SIZE));
    assert_true(file_found(store, 0, SIZE));
    qf_store_flush(store);
    /* Order of use: 3 4 5 1 2 0. */
    assert_int_equal(make_file(store, 10, 7 * MIB), 0);
    assert_int_equal(stats_of(store).evictions, 3);
    assert_false(sealed_exists(dir, 3, "") || sealed_exists(dir, 4, "") ||
                 sealed_exists(dir, 5, ""));
    assert_false(file_found(store, 3, SIZE));
    assert_true(file_found(store, 0, SIZE));
    qf_store_flush(store);

    /* Order: 1 2 10 0, then what is put; each MiB of values needs some of it. */
    bool gone[3] = {false};
    for (uint64_t i = 0; i < 12; i++) {
        value_put(store, i, MIB / 2);
        qf_store_flush(store);
        assert_true(value_found(store, i, MIB / 2));
        const uint64_t order[] = {1, 2, 10};
        for (int j = 0; j < 3; j++) {
            gone[j] = !sealed_exists(dir, order[j], "");
            assert_true(j == 0 || !gone[j] || gone[j - 1]);
        }
    }
    assert_true(gone[0]);
    assert_true(gone[1]);
    assert_true(sealed_exists(dir, 0, ""));
    for (uint64_t i = 0; i < 12; i++)
        assert_true(value_found(store, i, MIB / 2));
    assert_true(fd_has(fd, 1, SIZE)); /* evicted, and open still */
    close(fd);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* ---- what happens to files ---- */

static void flip_bit(const char *path, off_t off)
{
    struct stat st;
    unsigned char byte;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(chmod(path, 0600), 0);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, off), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, off), 1);
    const struct timespec times[2] = {st.st_atim, st.st_mtim};
    assert_int_equal(futimens(fd, times), 0);
    close(fd);
    assert_int_equal(chmod(path, 0400), 0);
}

static void test_damage(void **state)
{
    (void)state;
    enum { SIZE = 3000000 };
    char *dir = tmpdir_make();
    char path[4096];
    unsigned names;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    for (unsigned round = 0; round < 4; round++) {
        assert_int_equal(make_file(store, 1, SIZE), 0);
        if (round == 0)
            assert_int_equal(make_file(store, 2, 500), 0);
        sealed_path(path, sizeof path, dir, 1, "");
        if (round == 0)
            flip_bit(path, 2500000);
        else if (round == 1)
            assert_int_equal(truncate(path, SIZE - 1), 0);
        else if (round == 2)
            assert_true(unlink(path) == 0 && mkfifo(path, 0600) == 0);
        else
            assert_int_equal(unlink(path), 0);
        assert_false(file_found(store, 1, SIZE));
        struct qf_store_stats s = stats_of(store);
        assert_int_equal(s.damaged, round < 3 ? round + 1 : 3);
        assert_int_equal(s.files, 1);
        assert_int_equal(s.file_bytes, 500);
        disk_sum(dir, &names);
        assert_int_equal(names, 1);
        assert_false(file_found(store, 1, SIZE));
        assert_int_equal(stats_of(store).damaged, s.damaged);
        assert_true(file_found(store, 2, 500));
        assert_int_equal(make_file(store, 2, 500), -EEXIST);
    }
    /* Asked for with another size: never handed out. */
    assert_false(file_found(store, 2, 501));
    assert_int_equal(stats_of(store).files, 0);
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void copy_file(const char *from, const char *to)
{
    static unsigned char bytes[4 * MIB];
    int in = open(from, O_RDONLY);
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL, 0400);
    ssize_t n = read(in, bytes, sizeof bytes);
    assert_true(n >= 0);
    assert_int_equal(write(out, bytes, (size_t)n), n);
    close(in);
    close(out);
}

/* A copy of a whole cache is verified once and then trusted as the file it is. */
static void test_other_identity(void **state)
{
    (void)state;
    enum { SIZE = 3000000 };
    char *dir = tmpdir_make();
    char path[4096], copy[4096];
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    assert_int_equal(make_file(store, 1, SIZE), 0);
    for (int round = 0; round < 2; round++) {
        sealed_path(path, sizeof path, dir, 1, "");
        sealed_path(copy, sizeof copy, dir, 1, ".copy");
        copy_file(path, copy);
        assert_int_equal(rename(copy, path), 0);
        if (round == 1) { /* restored while nobody looked */
            qf_store_close(store);
            store = lmdb_open(dir, TEST_LIMIT);
        }
        assert_true(file_found(store, 1, SIZE));
        assert_true(file_found(store, 1, SIZE));
        assert_int_equal(stats_of(store).damaged, 0);
    }
    /* A bit of the copy: its identity is known now, and the change changes it. */
    flip_bit(path, 1);
    assert_false(file_found(store, 1, SIZE));
    assert_int_equal(stats_of(store).damaged, 1);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* What lies in sealed/ and has no record goes at the next start, and only that. */
static void test_orphans(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    char path[4096];
    unsigned names;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    assert_int_equal(make_file(store, 1, 1000), 0);
    assert_int_equal(make_file(store, 2, 2000), 0);
    assert_int_equal(make_file(store, 3, 3000), 0);
    qf_store_close(store);
    tmpdir_write_text(dir, "sealed/0123456789abcdef0123456789abcdef", "x");
    tmpdir_write_text(dir, "sealed/0123456789abcdef0123456789abcdef.part", "x");
    tmpdir_write_text(dir, "sealed/notes.txt", "x");
    sealed_path(path, sizeof path, dir, 2, "");
    assert_int_equal(unlink(path), 0);
    sealed_path(path, sizeof path, dir, 3, "");
    assert_int_equal(truncate(path, 10), 0);
    store = lmdb_open(dir, TEST_LIMIT);
    disk_sum(dir, &names);
    assert_int_equal(names, 2);
    assert_int_equal(file_size(dir, "sealed/notes.txt"), 1);
    assert_int_equal(stats_of(store).files, 1);
    assert_int_equal(stats_of(store).file_bytes, 1000);
    assert_true(file_found(store, 1, 1000));

    /* A part left over is taken up by the next writer; its bytes are not. */
    sealed_path(path, sizeof path, dir, 2, ".part");
    tmpdir_write_text(dir, path + strlen(dir) + 1, "left over, and longer than it");
    assert_int_equal(make_file(store, 2, 5), 0);
    assert_true(file_found(store, 2, 5));
    qf_store_close(store);

    /* With data.mdb the records go, and so do the files. */
    path_in(path, sizeof path, dir, "data.mdb");
    assert_int_equal(truncate(path, 5), 0);
    store = lmdb_open(dir, TEST_LIMIT);
    disk_sum(dir, &names);
    assert_int_equal(names, 1);
    assert_false(file_found(store, 1, 1000));
    assert_int_equal(make_file(store, 1, 1000), 0);
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void test_lowered_limit(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    unsigned names;
    qf_store *store = lmdb_open(dir, 4 * TEST_LIMIT);
    for (uint64_t i = 0; i < 10; i++)
        assert_int_equal(make_file(store, i, 4 * MIB), 0);
    qf_store_close(store);
    store = lmdb_open(dir, TEST_LIMIT);
    assert_in_range(disk_sum(dir, &names), 8 * MIB, TEST_LIMIT);
    assert_int_equal(names, 3);
    for (uint64_t i = 0; i < 10; i++)
        assert_int_equal(file_found(store, i, 4 * MIB), i >= 7);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* A record that is not as it was written is not believed, nor is its file. */
static void test_damaged_record(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    char path[4096];
    unsigned char head[64];
    unsigned names, changed = 0;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    assert_int_equal(make_file(store, 1, 1000), 0);
    qf_store_close(store);
    path_in(path, sizeof path, dir, "data.mdb");
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    for (off_t off = 0; pread(fd, head, sizeof head, off) == sizeof head; off += 2) {
        if (memcmp(head, "qfsfile1", 8) != 0)
            continue;
        head[16] ^= 1; /* the size, which counts against the limit */
        assert_int_equal(pwrite(fd, head, sizeof head, off), sizeof head);
        changed++;
    }
    close(fd);
    assert_true(changed > 0);
    store = lmdb_open(dir, TEST_LIMIT);
    disk_sum(dir, &names);
    assert_int_equal(names, 0);
    assert_int_equal(stats_of(store).files, 0);
    assert_int_equal(stats_of(store).bytes_limit, TEST_LIMIT);
    assert_int_equal(stats_of(store).file_bytes, 0);
    assert_false(file_found(store, 1, 1000));
    assert_int_equal(make_file(store, 1, 1000), 0);
    assert_true(file_found(store, 1, 1000));
    assert_int_equal(file_size(dir, "data.mdb.damaged-1"), -1);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* ---- room on disk ---- */

/* A write that fails half-way: the draft goes, nothing else changes. */
static void test_no_room_in_append(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    struct rlimit old, low;
    unsigned names;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    qf_store_draft *draft;
    assert_int_equal(make_file(store, 1, 1000), 0);
    signal(SIGXFSZ, SIG_IGN);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(qf_store_file_begin(store, file_key(2), 0, 2 * MIB, &draft),
                         0);
        assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
        low = (struct rlimit){.rlim_cur = MIB, .rlim_max = old.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
        int rc = append_all(store, draft, 2, 2 * MIB);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        assert_int_equal(rc, -ENOSPC);
        assert_int_equal(qf_store_file_append(store, draft, "x", 1), -ENOSPC);
        if (round == 0)
            qf_store_file_abort(store, draft);
        else
            assert_int_equal(qf_store_file_commit(store, draft, NULL, 0), -ENOSPC);
        disk_sum(dir, &names);
        assert_int_equal(names, 1);
        assert_int_equal(stats_of(store).file_bytes, 1000);
        assert_true(file_found(store, 1, 1000));
    }
    low = (struct rlimit){.rlim_cur = MIB, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    int rc = qf_store_file_begin(store, file_key(2), 0, 2 * MIB, &draft);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, -ENOSPC);
    assert_int_equal(stats_of(store).file_bytes, 1000);
    assert_int_equal(make_file(store, 2, 2 * MIB), 0);
    assert_true(file_found(store, 2, 2 * MIB));
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void test_full_disk(void **state)
{
    (void)state;
    if (!own_mounts()) {
        print_message("skipped: mounting needs root\n");
        skip();
    }
    char *dir = tmpdir_make();
    assert_int_equal(mount("none", dir, "tmpfs", 0, "size=24m"), 0);
    qf_store *store = lmdb_open(dir, UINT64_C(1) << 30);
    unsigned names, made = 0;
    for (uint64_t i = 0; i < 20; i++) {
        int rc = make_file(store, i, 2 * MIB);
        assert_true(rc == 0 || rc == -ENOSPC);
        made += rc == 0;
    }
    disk_sum(dir, &names);
    assert_int_equal(names, made);
    assert_in_range(made, 8, 12);
    assert_int_equal(stats_of(store).file_bytes, made * 2 * MIB);
    /* Values find room by evicting files. */
    for (uint64_t i = 0; i < 20; i++) {
        value_put(store, i, MIB / 2);
        qf_store_flush(store);
    }
    assert_true(stats_of(store).puts > 0);
    assert_true(stats_of(store).files < made);
    uint64_t found = 0;
    for (uint64_t i = 0; i < 20; i++)
        found += file_found(store, i, 2 * MIB);
    assert_int_equal(found, stats_of(store).files);
    assert_int_equal(stats_of(store).damaged, 0);
    qf_store_close(store);
    assert_int_equal(umount(dir), 0);
    tmpdir_remove(dir);
}

/* ---- stores without files ---- */

static void test_memory_store(void **state)
{
    (void)state;
    qf_store *store;
    qf_store_draft *draft;
    int fd;
    assert_int_equal(qf_store_mem_open(TEST_LIMIT, &store), 0);
    assert_int_equal(qf_store_file_begin(store, file_key(1), 0, 10, &draft), -ENOTSUP);
    assert_int_equal(qf_store_file_open(store, file_key(1), 10, &fd), -ENOENT);
    assert_int_equal(stats_of(store).files, 0);
    qf_store_close(store);
}

/* sealed/ that cannot be one: values go on. */
static void test_no_directory(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_store_draft *draft;
    int fd;
    tmpdir_write_text(dir, "sealed", "x");
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    assert_int_equal(qf_store_file_begin(store, file_key(1), 0, 10, &draft), -ENOTSUP);
    assert_int_equal(qf_store_file_open(store, file_key(1), 10, &fd), -ENOENT);
    value_put(store, 1, 1000);
    qf_store_flush(store);
    assert_true(value_found(store, 1, 1000));
    qf_store_close(store);
    tmpdir_remove(dir);
}

int main(void)
{
    qf_log_set_level(QF_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_records_dropped),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_eviction_order),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_other_identity),
        cmocka_unit_test(test_orphans),
        cmocka_unit_test(test_damaged_record),
        cmocka_unit_test(test_lowered_limit),
        cmocka_unit_test(test_no_room_in_append),
        cmocka_unit_test(test_memory_store),
        cmocka_unit_test(test_no_directory),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
