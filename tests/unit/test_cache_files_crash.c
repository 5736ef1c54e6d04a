/* SPDX-License-Identifier: Apache-2.0 */
/* Flat files of several processes and threads, and of processes that die. */
#include "test_cache_sealed.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "base/log.h"
#include "support/tmpdir.h"

static void pause_us(long us)
{
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

/* ---- several processes ---- */

enum { FILE_NUMBERS = 12, VALUE_NUMBERS = 100 };

static size_t size_of_file(uint64_t number)
{
    return 1000 + number * 373 % 12 * 300000;
}

static size_t size_of_value(uint64_t number)
{
    return 500 + number * 733 % 100000;
}

static uint64_t random_next(uint64_t *x)
{
    *x = *x * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return *x >> 33;
}

/* One step of use: whatever is found must be right. */
static void use(qf_store *store, uint64_t *x)
{
    uint64_t number = random_next(x);
    if (number % 4 != 0) {
        number = number / 4 % VALUE_NUMBERS;
        if (!value_found(store, number, size_of_value(number)))
            value_put(store, number, size_of_value(number));
        return;
    }
    number = number / 4 % FILE_NUMBERS;
    size_t size = size_of_file(number);
    qf_store_draft *draft;
    if (file_found(store, number, size) ||
        qf_store_file_begin(store, file_key(number), 0, size, &draft) != 0)
        return;
    struct qf_hash128 records[4];
    for (uint64_t i = 0; i < 4; i++)
        records[i] = value_key((number * 4 + i) % VALUE_NUMBERS);
    int rc = append_all(store, draft, number, size);
    if (rc == 0 && random_next(x) % 8 != 0)
        rc = qf_store_file_commit(store, draft, records, 4);
    else
        qf_store_file_abort(store, draft);
    if (rc != 0 && rc != -ENOSPC) {
        fprintf(stderr, "file %llu: %s\n", (unsigned long long)number, strerror(-rc));
        abort();
    }
}

static pid_t start_worker(const char *dir, uint64_t seed, unsigned steps)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(ready[0]);
        qf_store *store = lmdb_open(dir, TEST_LIMIT);
        if (write(ready[1], "r", 1) != 1)
            _exit(3);
        for (unsigned i = 0; i < steps; i++)
            use(store, &seed);
        qf_store_close(store);
        _exit(0);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return pid;
}

static void check_all(qf_store *store, unsigned *found)
{
    for (uint64_t i = 0; i < FILE_NUMBERS; i++)
        *found += file_found(store, i, size_of_file(i));
    for (uint64_t i = 0; i < VALUE_NUMBERS; i++)
        (void)value_found(store, i, size_of_value(i));
    assert_int_equal(stats_of(store).damaged, 0);
}

static void test_two_processes(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    unsigned names, found = 0;
    pid_t pids[2];
    int status;
    for (unsigned i = 0; i < 2; i++)
        pids[i] = start_worker(dir, i + 1, 400);
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    uint64_t x = 77;
    for (int i = 0; i < 400; i++)
        use(store, &x);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
    check_all(store, &found);
    qf_store_flush(store);
    assert_in_range(disk_sum(dir, &names), 1, TEST_LIMIT);
    assert_int_equal(names, found);
    assert_int_equal(stats_of(store).files, found);
    assert_true(found > 0);

    qf_store_close(store);
    tmpdir_remove(dir);
}

/* Another process writes: -EEXIST here; it dies: its draft is taken up. */
static void test_dead_writer(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    int ready[2], status, fd;
    char byte;
    qf_store_draft *draft;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        qf_store *own = lmdb_open(dir, TEST_LIMIT);
        for (uint64_t i = 1; i <= 2; i++) {
            if (qf_store_file_begin(own, file_key(i), 0, 6 * MIB, &draft) != 0 ||
                append_all(own, draft, i, 5 * MIB) != 0)
                _exit(3);
        }
        if (write(ready[1], "r", 1) == 1)
            pause();
        _exit(4);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    assert_int_equal(make_file(store, 1, 6 * MIB), -EEXIST);
    assert_int_equal(qf_store_file_open(store, file_key(1), 6 * MIB, &fd), -ENOENT);
    assert_int_equal(make_file(store, 3, 6 * MIB), -ENOSPC); /* counted for all */
    assert_int_equal(stats_of(store).file_bytes, 12 * MIB);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(make_file(store, 1, 6 * MIB), 0);
    assert_false(sealed_exists(dir, 2, ".part"));
    assert_int_equal(make_file(store, 3, 6 * MIB), 0);
    assert_true(file_found(store, 1, 6 * MIB));
    assert_true(file_found(store, 3, 6 * MIB));
    assert_int_equal(stats_of(store).file_bytes, 12 * MIB);
    qf_store_close(store);
    tmpdir_remove(dir);
}

static void test_kill(void **state)
{
    (void)state;
    enum { ROUNDS = 60 };
    char *dir = tmpdir_make();
    unsigned found = 0, parts = 0;
    uint64_t x = 4711;
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned names, here = 0;
        int status;
        pid_t pid = start_worker(dir, round * 31, UINT32_MAX);
        pause_us((long)(500 + random_next(&x) % 40000));
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), SIGKILL);
        for (uint64_t i = 0; i < FILE_NUMBERS; i++)
            parts += sealed_exists(dir, i, ".part");
        assert_in_range(disk_sum(dir, &names), 1, TEST_LIMIT);
        qf_store *store = lmdb_open(dir, TEST_LIMIT);
        check_all(store, &here);
        disk_sum(dir, &names);
        assert_int_equal(names, here);
        assert_int_equal(stats_of(store).files, here);
        found += here;
        use(store, &x);
        qf_store_close(store);
        assert_int_equal(file_size(dir, "data.mdb.damaged-1"), -1);
    }
    print_message("%d kills, %u of them while writing a file; %u files found\n", ROUNDS,
                  parts, found);
    assert_true(found > ROUNDS);
    assert_true(parts > 0);
    tmpdir_remove(dir);
}

/* One process dies again and again while this one goes on. */
static void test_kill_beside(void **state)
{
    (void)state;
    enum { ROUNDS = 10 };
    char *dir = tmpdir_make();
    unsigned names, found = 0;
    uint64_t x = 99;
    for (unsigned round = 0; round < ROUNDS; round++) {
        int status;
        pid_t pid = start_worker(dir, round, UINT32_MAX);
        qf_store *store = lmdb_open(dir, TEST_LIMIT);
        for (int i = 0; i < 10; i++)
            use(store, &x);
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(WTERMSIG(status), SIGKILL);
        for (int i = 0; i < 30; i++)
            use(store, &x);
        check_all(store, &found);
        qf_store_flush(store);
        assert_in_range(disk_sum(dir, &names), 1, TEST_LIMIT);
        qf_store_close(store);
    }
    assert_true(found > 0);
    tmpdir_remove(dir);
}

/* ---- threads ---- */

struct hammer {
    qf_store *store;
    uint64_t seed;
};

static void *hammer(void *arg)
{
    struct hammer *h = arg;
    for (int i = 0; i < 150; i++)
        use(h->store, &h->seed);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    enum { COUNT = 5 };
    char *dir = tmpdir_make();
    unsigned names, found = 0;
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    pthread_t threads[COUNT];
    struct hammer hammers[COUNT];
    for (unsigned i = 0; i < COUNT; i++) {
        hammers[i] = (struct hammer){store, i};
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, &hammers[i]), 0);
    }
    for (unsigned i = 0; i < COUNT; i++)
        pthread_join(threads[i], NULL);
    qf_store_flush(store);
    assert_in_range(disk_sum(dir, &names), 1, TEST_LIMIT);
    check_all(store, &found);
    assert_int_equal(names, found);
    assert_true(found > 0);
    qf_store_close(store);
    tmpdir_remove(dir);
}

int main(void)
{
    qf_log_set_level(QF_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_processes), cmocka_unit_test(test_dead_writer),
        cmocka_unit_test(test_kill),          cmocka_unit_test(test_kill_beside),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
