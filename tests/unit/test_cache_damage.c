/* SPDX-License-Identifier: Apache-2.0 */
/* A data.mdb that is not what was written. Whatever is done to the file at rest, the
 * next open succeeds, every value found is the one that was put, and the store works.
 */
#include "test_cache_values.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cache/lmdb_check.h"
#include "support/tmpdir.h"

enum { COUNT = 400, PAGE = 4096 };

static size_t size_of_value(uint64_t number)
{
    return number % 50 == 0 ? 60000 : 100 + number;
}

struct image {
    unsigned char *bytes;
    size_t size;
};

static struct image read_data(const char *dir)
{
    char path[4096];
    path_in(path, sizeof path, dir, "data.mdb");
    struct image image = {.size = (size_t)file_size(dir, "data.mdb")};
    image.bytes = malloc(image.size);
    FILE *file = fopen(path, "rb");
    assert_non_null(image.bytes);
    assert_non_null(file);
    assert_int_equal(fread(image.bytes, 1, image.size, file), image.size);
    fclose(file);
    return image;
}

/* A cache with a free list, trees of two levels and values of one and of many pages. */
static struct image make_image(const char *dir)
{
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    for (uint64_t i = 0; i < COUNT; i++) {
        value_put(store, i, i % 3 == 0 ? 5000 : size_of_value(i));
        if (i % 64 == 0)
            qf_store_flush(store);
    }
    for (uint64_t i = 0; i < COUNT; i += 3)
        value_put(store, i, size_of_value(i));
    qf_store_close(store);
    return read_data(dir);
}

static uint64_t random_next(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    uint64_t x = *state;
    return (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd) >> 20;
}

/* Opens, looks everything up, writes (a lot: evicts), closes; the next open must then
 * be clean. Returns how many of the values were found. */
static unsigned use_store(const char *dir, bool a_lot, uint64_t *damaged)
{
    unsigned found = 0;
    uint64_t end = a_lot ? 1030 : 1003;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    for (uint64_t i = 0; i < COUNT; i++)
        found += value_found(store, i, size_of_value(i));
    *damaged += stats_of(store).damaged;
    for (uint64_t i = 1000; i < end; i++)
        value_put(store, i, 600000);
    qf_store_flush(store);
    for (uint64_t i = 0; i < COUNT; i++)
        (void)value_found(store, i, size_of_value(i));
    assert_true(value_found(store, end - 1, 600000));
    qf_store_close(store);
    store = lmdb_open(dir, TEST_LIMIT);
    assert_true(value_found(store, end - 1, 600000));
    qf_store_close(store);
    return found;
}

/* Removes lock files too now and then: they may be lost or stale. */
static void put_image(const char *dir, const struct image *image, unsigned round)
{
    char path[4096];
    if (round % 4 == 0) {
        path_in(path, sizeof path, dir, "lock.mdb");
        unlink(path);
    }
    if (round % 4 == 1)
        tmpdir_write(dir, "lock.mdb", image->bytes, 8192);
    if (round % 4 == 2)
        tmpdir_write(dir, "users.lock", image->bytes, 100);
    tmpdir_write(dir, "data.mdb", image->bytes, image->size);
}

static bool is_tree_page(const struct image *image, size_t page)
{
    unsigned char flags = image->bytes[page * PAGE + 10];
    return qf_load_u64(image->bytes + page * PAGE) == page && (flags & ~0x0bu) == 0 &&
           flags != 0 && image->bytes[page * PAGE + 11] == 0;
}

/* A bit anywhere, but every second time in a meta or tree page, where it hurts most. */
static void flip(struct image *image, uint64_t *random, bool in_tree)
{
    size_t off;
    do {
        off = random_next(random) % image->size;
    } while (in_tree && !is_tree_page(image, off / PAGE));
    image->bytes[off] ^= (unsigned char)(1u << random_next(random) % 8);
}

static void test_random_flips(void **state)
{
    (void)state;
    enum { ROUNDS = 300 };
    char *dir = tmpdir_make();
    struct image good = make_image(dir);
    struct image bad = {malloc(good.size), good.size};
    uint64_t random = 12345, damaged = 0;
    unsigned anew = 0, all = 0;
    assert_non_null(bad.bytes);
    for (unsigned round = 0; round < ROUNDS; round++) {
        memcpy(bad.bytes, good.bytes, good.size);
        for (unsigned i = 0; i <= round % 3; i++)
            flip(&bad, &random, round % 2 == 0);
        put_image(dir, &bad, round);
        unsigned found = use_store(dir, round % 5 == 0, &damaged);
        anew += found == 0;
        all += found == COUNT;
    }
    print_message("%d rounds: %u set aside, %u without effect, %llu damaged values\n",
                  ROUNDS, anew, all, (unsigned long long)damaged);
    assert_true(anew > 5);
    assert_true(damaged > 20);
    free(good.bytes);
    free(bad.bytes);
    tmpdir_remove(dir);
}

#ifndef __SANITIZE_THREAD__
enum { ALL = 10, SOME, NONE };

/* Opens and looks everything up, and says how much was found; in a process that ends
 * without closing, for that would wait for the disk. */
static int look(const char *dir)
{
    pid_t pid = fork();
    int status;
    assert_true(pid >= 0);
    if (pid == 0) {
        unsigned found = 0;
        qf_store *store = lmdb_open(dir, TEST_LIMIT);
        for (uint64_t i = 0; i < COUNT; i++)
            found += value_found(store, i, size_of_value(i));
        _exit(found == COUNT ? ALL : found > 0 ? SOME : NONE);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_in_range(WEXITSTATUS(status), ALL, NONE);
    return WEXITSTATUS(status);
}

/* One bit or one byte, anywhere in the file, many times: no value found is a wrong one
 * and no open fails. */
static void test_single_flips(void **state)
{
    (void)state;
    enum { ROUNDS = 1200 };
    char *dir = tmpdir_make();
    struct image image = make_image(dir);
    uint64_t random = 777;
    unsigned seen[3] = {0};
    for (unsigned round = 0; round < ROUNDS; round++) {
        size_t off = random_next(&random) % image.size;
        uint64_t other = 1 + random_next(&random) % 255;
        unsigned char was = image.bytes[off];
        image.bytes[off] ^= (unsigned char)(round % 2 == 0 ? 1u << other % 8 : other);
        put_image(dir, &image, round);
        seen[look(dir) - ALL]++;
        image.bytes[off] = was;
    }
    print_message("%d flips: %u without effect, %u cost some values, %u set aside\n",
                  ROUNDS, seen[0], seen[1], seen[2]);
    assert_true(seen[1] > 50);
    put_image(dir, &image, 0);
    assert_int_equal(look(dir), ALL);
    free(image.bytes);
    tmpdir_remove(dir);
}
#endif

/* What a power cut leaves: pages of zeros or of an older time, a shorter file. */
static void test_lost_pages(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    struct image good = make_image(dir);
    struct image bad = {malloc(good.size), good.size};
    uint64_t random = 99, damaged = 0;
    assert_non_null(bad.bytes);
    for (unsigned round = 0; round < 60; round++) {
        memcpy(bad.bytes, good.bytes, good.size);
        bad.size = good.size;
        size_t pages = good.size / PAGE;
        size_t page = random_next(&random) % pages;
        size_t other = random_next(&random) % pages;
        if (round % 3 == 0)
            memset(bad.bytes + page * PAGE, 0, PAGE * (1 + other % (pages - page)));
        else if (round % 3 == 1)
            memcpy(bad.bytes + page * PAGE, bad.bytes + other * PAGE, PAGE);
        else
            bad.size = random_next(&random) % good.size;
        put_image(dir, &bad, round);
        (void)use_store(dir, round % 4 == 0, &damaged);
    }
    free(good.bytes);
    free(bad.bytes);
    tmpdir_remove(dir);
}

static unsigned count_aside(const char *dir)
{
    unsigned count = 0;
    DIR *list = opendir(dir);
    assert_non_null(list);
    for (struct dirent *e; (e = readdir(list)) != NULL;)
        count += strncmp(e->d_name, "data.mdb.damaged-", 17) == 0;
    closedir(list);
    return count;
}

static void test_garbage(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    struct image garbage = {malloc(300000), 300000};
    uint64_t damaged = 0;
    assert_non_null(garbage.bytes);
    value_fill(garbage.bytes, garbage.size, 77);
    tmpdir_write(dir, "data.mdb", garbage.bytes, garbage.size);
    assert_int_equal(use_store(dir, true, &damaged), 0);
    assert_int_equal(file_size(dir, "data.mdb.damaged-1"), 300000);
    tmpdir_write(dir, "data.mdb", garbage.bytes, 5); /* not even a page */
    assert_int_equal(use_store(dir, true, &damaged), 0);
    assert_int_equal(file_size(dir, "data.mdb.damaged-2"), 5);
    assert_int_equal(count_aside(dir), 1); /* they do not pile up */
    tmpdir_write(dir, "data.mdb", garbage.bytes, 0);
    assert_int_equal(use_store(dir, true, &damaged), 0);
    assert_int_equal(count_aside(dir), 1);

    char path[4096];
    path_in(path, sizeof path, dir, "data.mdb");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(use_store(dir, true, &damaged), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(use_store(dir, true, &damaged), 0);
    free(garbage.bytes);
    tmpdir_remove(dir);
}

static unsigned char *find_bytes(const struct image *image, const char *text)
{
    unsigned char *p = memmem(image->bytes, image->size, text, strlen(text));
    assert_non_null(p);
    return p;
}

static void test_other_versions(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    uint64_t damaged = 0;
    struct image image = make_image(dir);
    unsigned char *ours = find_bytes(&image, "quantfs cache 1");
    ours[16]++; /* our format version */
    tmpdir_write(dir, "data.mdb", image.bytes, image.size);
    assert_int_equal(use_store(dir, true, &damaged), 0);
    assert_int_equal(count_aside(dir), 1);
    assert_true(file_size(dir, "data.mdb.damaged-1") > 0);
    ours[16] = (unsigned char)(ours[16] - 2); /* the one before ours */
    tmpdir_write(dir, "data.mdb", image.bytes, image.size);
    assert_int_equal(use_store(dir, true, &damaged), 0);
    ours[16]++;
    tmpdir_write(dir, "data.mdb", image.bytes, image.size);
    assert_int_equal(use_store(dir, true, &damaged), COUNT);

    image.bytes[16 + 4]++; /* LMDB's data version */
    image.bytes[PAGE + 16 + 4]++;
    tmpdir_write(dir, "data.mdb", image.bytes, image.size);
    char path[4096];
    path_in(path, sizeof path, dir, "data.mdb");
    int fd = open(path, O_RDONLY);
    struct qf_err err;
    assert_int_equal(qf_lmdb_check(fd, NULL, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "LMDB data version 2"));
    close(fd);
    assert_int_equal(use_store(dir, true, &damaged), 0);
    assert_true(file_size(dir, "data.mdb.damaged-3") > 0);
    free(image.bytes);
    tmpdir_remove(dir);
}

/* One byte of one value: that value is a miss, counted, removed, and can come back. */
static void test_one_value(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    struct image image = make_image(dir);
    unsigned char want[60000];
    value_fill(want, sizeof want, 50);
    unsigned char *p = memmem(image.bytes, image.size, want + 1000, 50000);
    assert_non_null(p);
    p[25000] ^= 1;
    tmpdir_write(dir, "data.mdb", image.bytes, image.size);
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    assert_int_equal(stats_of(store).entries, COUNT);
    assert_false(value_found(store, 50, 60000));
    assert_int_equal(stats_of(store).damaged, 1);
    assert_int_equal(stats_of(store).misses, 1);
    qf_store_flush(store);
    assert_int_equal(stats_of(store).entries, COUNT - 1);
    assert_false(value_found(store, 50, 60000));
    assert_int_equal(stats_of(store).damaged, 1);
    value_put(store, 50, 60000);
    qf_store_flush(store);
    assert_true(value_found(store, 50, 60000));
    for (uint64_t i = 0; i < COUNT; i++)
        assert_true(value_found(store, i, size_of_value(i)));
    qf_store_close(store);
    free(image.bytes);
    tmpdir_remove(dir);
}

/* A put finds a damaged value in its place before any reader does. */
static void test_put_over_damage(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    struct image image = make_image(dir);
    unsigned char want[60000];
    value_fill(want, sizeof want, 50);
    unsigned char *p = memmem(image.bytes, image.size, want + 1000, 50000);
    assert_non_null(p);
    p[1] ^= 1;
    tmpdir_write(dir, "data.mdb", image.bytes, image.size);
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    value_put(store, 50, 60000);
    qf_store_flush(store);
    assert_true(value_found(store, 50, 60000));
    assert_int_equal(stats_of(store).damaged, 0);
    qf_store_close(store);
    free(image.bytes);
    tmpdir_remove(dir);
}

/* The head of a value's first page, which LMDB follows when it frees the value: such a
 * value stays readable and is never freed. */
static void test_page_head(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    uint64_t damaged = 0;
    for (unsigned field = 0; field < 3; field++) {
        struct image image = make_image(dir);
        unsigned char want[60000];
        value_fill(want, sizeof want, 50);
        unsigned char *p = memmem(image.bytes, image.size, want, sizeof want);
        assert_non_null(p);
        p -= 80;
        assert_int_equal((p - image.bytes) % PAGE, 0);
        p[field == 0 ? 0 : field == 1 ? 10 : 12] ^= 3; /* number, flags, count */
        tmpdir_write(dir, "data.mdb", image.bytes, image.size);
        assert_int_equal(use_store(dir, true, &damaged), COUNT);
        qf_store *store = lmdb_open(dir, TEST_LIMIT);
        for (uint64_t i = 5000; i < 5100; i++)
            value_put(store, i, 600000);
        value_put(store, 50, 60001); /* cannot replace it */
        qf_store_flush(store);
        assert_true(stats_of(store).evictions > 50);
        assert_true(value_found(store, 50, 60000));
        assert_true(value_found(store, 5099, 600000));
        qf_store_close(store);
        free(image.bytes);
        char path[4096];
        path_in(path, sizeof path, dir, "data.mdb");
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(damaged, 0);
    tmpdir_remove(dir);
}

/* Tree pages that break while the cache is in use: LMDB notices some such damage by
 * assertions and error codes. The store goes down, quietly, and begins anew. */
static void test_damage_in_use(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    struct image image = make_image(dir);
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    char path[4096];
    path_in(path, sizeof path, dir, "data.mdb");
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    unsigned branches = 0;
    for (size_t page = 2; page < image.size / PAGE; page++) {
        if (!is_tree_page(&image, page) || image.bytes[page * PAGE + 10] != 1)
            continue;
        /* One entry in a branch page fails an assertion. */
        const unsigned char lower[2] = {18, 0};
        assert_int_equal(pwrite(fd, lower, 2, (off_t)(page * PAGE + 12)), 2);
        branches++;
    }
    close(fd);
    assert_true(branches > 0);
    for (uint64_t i = 0; i < COUNT; i++)
        (void)value_found(store, i, size_of_value(i));
    assert_false(value_found(store, 1, size_of_value(1)));
    value_put(store, 1, size_of_value(1));
    qf_store_flush(store);
    assert_int_equal(stats_of(store).puts, 0);
    assert_int_equal(stats_of(store).puts_dropped, 1);
    qf_store_draft *draft;
    assert_int_equal(qf_store_file_begin(store, value_key(2), 0, 10, &draft), -ENOTSUP);
    assert_int_equal(qf_store_file_open(store, value_key(2), 10, &fd), -ENOENT);
    assert_int_equal(file_size(dir, "data.mdb.suspect"), 0);
    qf_store_close(store);
    uint64_t damaged = 0;
    assert_int_equal(use_store(dir, true, &damaged), 0);
    assert_int_equal(file_size(dir, "data.mdb.suspect"), -1);
    assert_int_equal(count_aside(dir), 1);
    free(image.bytes);
    tmpdir_remove(dir);
}

/* LMDB's failed assertions are logged as errors: expected here. */
static int silence(void **state)
{
    static int saved;
    saved = dup(STDERR_FILENO);
    int fd = open("/dev/null", O_WRONLY);
    assert_true(saved >= 0 && fd >= 0);
    dup2(fd, STDERR_FILENO);
    close(fd);
    *state = &saved;
    return 0;
}

static int restore(void **state)
{
    int *saved = *state;
    dup2(*saved, STDERR_FILENO);
    close(*saved);
    return 0;
}

int main(int argc, char **argv)
{
    qf_log_set_level(QF_LOG_ERROR);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_value),
        cmocka_unit_test(test_put_over_damage),
        cmocka_unit_test(test_page_head),
        cmocka_unit_test(test_other_versions),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_lost_pages),
        cmocka_unit_test(test_random_flips),
#ifndef __SANITIZE_THREAD__
        /* A process for each flip, and ThreadSanitizer waits a second in each. */
        cmocka_unit_test(test_single_flips),
#endif
        cmocka_unit_test_setup_teardown(test_damage_in_use, silence, restore),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
