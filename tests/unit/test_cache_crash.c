/* SPDX-License-Identifier: Apache-2.0 */
/* Threads, several processes on one cache, and processes that die in the middle. */
#include "test_cache_values.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "cache/lmdb_store.h"
#include "support/tmpdir.h"

enum { NUMBERS = 400 };

static size_t size_of_value(uint64_t number)
{
    return 500 + number * 733 % 200000;
}

static void pause_us(long us)
{
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

/* ---- threads ---- */

struct hammer {
    qf_store *store;
    atomic_bool stop;
    _Atomic uint64_t hits;
    _Atomic uint64_t misses;
};

static void *hammer(void *arg)
{
    struct hammer *h = arg;
    uint64_t x = (uintptr_t)&x;
    while (!atomic_load(&h->stop)) {
        x = x * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uint64_t number = (x >> 33) % NUMBERS;
        if (value_found(h->store, number, size_of_value(number))) {
            atomic_fetch_add(&h->hits, 1);
        } else {
            atomic_fetch_add(&h->misses, 1);
            value_put(h->store, number, size_of_value(number));
        }
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    struct hammer h = {.store = lmdb_open(dir, TEST_LIMIT)};
    pthread_t threads[6];
    for (int i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, &h), 0);
    for (int i = 0; i < 20; i++) {
        pause_us(100000);
        (void)stats_of(h.store);
        qf_store_flush(h.store);
    }
    atomic_store(&h.stop, true);
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    qf_store_flush(h.store);
    struct qf_store_stats s = stats_of(h.store);
    assert_int_equal(s.hits, h.hits);
    assert_int_equal(s.misses, h.misses);
    assert_int_equal(s.puts + s.puts_dropped, h.misses);
    assert_int_equal(s.damaged, 0);
    assert_true(s.evictions > 0);
    assert_in_range(file_size(dir, "data.mdb"), 1, TEST_LIMIT);
    qf_store_close(h.store);
    tmpdir_remove(dir);
}

/* ---- processes ---- */

/* Puts and gets until it is killed; the kill comes at any moment of a transaction. */
static _Noreturn void work_forever(const char *dir, int ready, uint64_t seed)
{
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    if (write(ready, "r", 1) != 1)
        _exit(3);
    for (uint64_t x = seed;;) {
        x = x * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uint64_t number = (x >> 33) % NUMBERS;
        if (!value_found(store, number, size_of_value(number)))
            value_put(store, number, size_of_value(number));
    }
}

static pid_t start_worker(const char *dir, uint64_t seed)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(ready[0]);
        work_forever(dir, ready[1], seed);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return pid;
}

/* The worker must have been alive: a wrong value would have made it abort. */
static void kill_worker(pid_t pid)
{
    int status;
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGKILL);
}

static void test_kill(void **state)
{
    (void)state;
    enum { ROUNDS = 50 };
    char *dir = tmpdir_make();
    uint64_t found = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        pid_t pid = start_worker(dir, round);
        pause_us(500 + round * 7919 % 30000);
        kill_worker(pid);
        qf_store *store = lmdb_open(dir, TEST_LIMIT);
        for (uint64_t i = 0; i < NUMBERS; i++)
            found += value_found(store, i, size_of_value(i));
        assert_int_equal(stats_of(store).damaged, 0);
        value_put(store, 1000 + round, 1000);
        qf_store_flush(store);
        assert_true(value_found(store, 1000 + round, 1000));
        qf_store_close(store);
        assert_int_equal(file_size(dir, "data.mdb.damaged-1"), -1);
        assert_in_range(file_size(dir, "data.mdb"), 1, TEST_LIMIT);
    }
    print_message("%d kills, %llu values found afterwards\n", ROUNDS,
                  (unsigned long long)found);
    assert_true(found > ROUNDS);
    tmpdir_remove(dir);
}

/* Two others work on the same directory and one dies, again and again, while this
 * process goes on; none may see a wrong value or get stuck. */
/* Each process of ThreadSanitizer's takes the time of ten: fewer of them then, for they
 * wait for one lock. */
#ifdef __SANITIZE_THREAD__
enum { MORTAL_COUNT = 1 };
#else
enum { MORTAL_COUNT = 5 };
#endif

static void test_two_processes(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    /* Forked before this process has threads. */
    pid_t steady = start_worker(dir, 4711);
    pid_t mortal[MORTAL_COUNT];
    for (unsigned i = 0; i < MORTAL_COUNT; i++)
        mortal[i] = start_worker(dir, i);
    qf_store *store = lmdb_open(dir, 4 * TEST_LIMIT);
    assert_int_equal(stats_of(store).bytes_limit, TEST_LIMIT); /* the first one's */
    uint64_t found = 0;
    for (unsigned round = 0; round < MORTAL_COUNT; round++) {
        for (uint64_t i = 0; i < NUMBERS; i++) {
            if (value_found(store, i, size_of_value(i)))
                found++;
            else if (i % 8 == round)
                value_put(store, i, size_of_value(i));
        }
        kill_worker(mortal[round]);
        qf_store_flush(store);
    }
    value_put(store, 5000, 1234);
    qf_store_flush(store);
    kill_worker(steady);
    struct qf_store_stats s = stats_of(store);
    print_message("%llu values found next to %d processes, %llu puts, %llu dropped\n",
                  (unsigned long long)found, MORTAL_COUNT + 1,
                  (unsigned long long)s.puts, (unsigned long long)s.puts_dropped);
    assert_true(found > 0);
    assert_true(s.puts > 0);
    assert_int_equal(s.damaged, 0);
    assert_in_range(file_size(dir, "data.mdb"), 1, TEST_LIMIT);
    qf_store_close(store);
    store = lmdb_open(dir, TEST_LIMIT);
    (void)value_found(store, 5000, 1234);
    assert_int_equal(file_size(dir, "data.mdb.damaged-1"), -1);
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* data.mdb removed under another process: two files behind one lock would destroy both,
 * so the newcomer is refused with the reason. */
static void test_replaced_in_use(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    char path[4096];
    pid_t pid = start_worker(dir, 1);
    path_in(path, sizeof path, dir, "data.mdb");
    assert_int_equal(unlink(path), 0);
    const struct qf_store_lmdb_options options = {.dir = dir,
                                                  .bytes_limit = TEST_LIMIT};
    qf_store *store = NULL;
    struct qf_err err = {{0}};
    assert_int_equal(qf_store_lmdb_open(&options, &store, &err), -EBUSY);
    assert_non_null(strstr(err.text, "was replaced while other processes"));
    kill_worker(pid);
    store = lmdb_open(dir, TEST_LIMIT);
    value_put(store, 1, 100);
    qf_store_flush(store);
    assert_true(value_found(store, 1, 100));
    qf_store_close(store);
    tmpdir_remove(dir);
}

/* ---- a lock that nobody has, and one who sleeps for it ---- */

struct sleeper {
    uint32_t *word;
    atomic_bool woken;
};

static void *sleep_on(void *arg)
{
    struct sleeper *s = arg;
    const struct timespec limit = {.tv_sec = 60};
    long rc = syscall(SYS_futex, s->word, FUTEX_WAIT, *s->word, &limit, NULL, 0);
    atomic_store(&s->woken, rc == 0);
    return NULL;
}

/* Whichever word of lock.mdb it is, and though it is mapped elsewhere. */
static void test_kick(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    char path[4096];
    qf_store *store = lmdb_open(dir, TEST_LIMIT);
    path_in(path, sizeof path, dir, "lock.mdb");
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(page, MAP_FAILED);
    for (size_t off = 0; off < 256; off += 64) {
        struct sleeper sleeper = {.word = (uint32_t *)(void *)(page + off)};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, sleep_on, &sleeper), 0);
        struct timespec at;
        int rc = ETIMEDOUT;
        while (rc == ETIMEDOUT) { /* it may not sleep yet */
            qf_lmdb_kick((qf_lmdb_store *)store);
            clock_gettime(CLOCK_REALTIME, &at);
            at.tv_nsec += 20000000;
            at.tv_sec += at.tv_nsec / 1000000000;
            at.tv_nsec %= 1000000000;
            rc = pthread_timedjoin_np(thread, NULL, &at);
        }
        assert_int_equal(rc, 0);
        assert_true(atomic_load(&sleeper.woken));
    }
    qf_store_close(store);
    munmap(page, 4096);
    close(fd);
    tmpdir_remove(dir);
}

int main(void)
{
    qf_log_set_level(QF_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kill),    cmocka_unit_test(test_two_processes),
        cmocka_unit_test(test_kick),    cmocka_unit_test(test_replaced_in_use),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
