/* SPDX-License-Identifier: Apache-2.0 */
/* What one process writes down, another one finds, whenever the first has ended. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "fs/journal.h"

/* The header's words, as they lie in the file. */
enum { MAGIC, CURRENT, ENDED, AREA_OFF, AREA_SIZE, AREA_USED };
#define AREA_AT ((off_t)4096) /* the first one */
#define KIND    QF_JOURNAL_NODE

static qf_journal *new_journal(void)
{
    qf_journal *journal;
    qf_log_set_level(QF_LOG_ERROR);
    assert_int_equal(qf_journal_new(&journal), 0);
    return journal;
}

/* As the next process does. */
static int open_again(const qf_journal *journal, qf_journal **out)
{
    int fd = dup(qf_journal_fd(journal));
    assert_true(fd >= 0);
    return qf_journal_open(fd, out);
}

static qf_journal *reopened(const qf_journal *journal)
{
    qf_journal *again;
    assert_int_equal(open_again(journal, &again), 0);
    return again;
}

static void set_text(qf_journal *journal, uint32_t kind, uint64_t key, const char *text)
{
    qf_journal_set(journal, kind, key, text, strlen(text) + 1);
}

struct wanted {
    uint64_t key;
    const char *text; /* NULL: any */
    size_t count;
};

static int take(void *arg, uint64_t key, const void *data, size_t size)
{
    struct wanted *wanted = arg;
    assert_int_equal((uintptr_t)data % 8, 0);
    if (wanted->text != NULL && key == wanted->key) {
        assert_int_equal(size, strlen(wanted->text) + 1);
        assert_string_equal(data, wanted->text);
    }
    wanted->count += wanted->text == NULL || key == wanted->key;
    return 0;
}

static size_t count(qf_journal *journal, uint32_t kind)
{
    struct wanted all = {0, NULL, 0};
    assert_int_equal(qf_journal_each(journal, kind, take, &all), 0);
    return all.count;
}

static bool has(qf_journal *journal, uint32_t kind, uint64_t key, const char *text)
{
    struct wanted one = {key, text, 0};
    assert_int_equal(qf_journal_each(journal, kind, take, &one), 0);
    assert_true(one.count <= 1);
    return one.count == 1;
}

static int stop(void *arg, uint64_t key, const void *data, size_t size)
{
    (void)key, (void)data, (void)size;
    ++*(int *)arg;
    return 42;
}

static void test_round_trip(void **state)
{
    (void)state;
    qf_journal *journal = new_journal();
    assert_int_equal(count(journal, KIND), 0);
    set_text(journal, KIND, 1, "one");
    set_text(journal, KIND, 2, "two");
    set_text(journal, KIND, UINT64_MAX, "");
    set_text(journal, QF_JOURNAL_OPEN, 1, "another kind");
    qf_journal_set(journal, QF_JOURNAL_TEXT, 7, NULL, 0);
    set_text(journal, KIND, 1, "uno");
    qf_journal_delete(journal, KIND, 2);
    qf_journal_delete(journal, KIND, 3); /* was never there */
    qf_journal_delete(journal, QF_JOURNAL_OPEN, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(count(journal, KIND), 2);
        assert_true(has(journal, KIND, 1, "uno"));
        assert_true(has(journal, KIND, UINT64_MAX, ""));
        assert_true(has(journal, QF_JOURNAL_OPEN, 1, "another kind"));
        assert_int_equal(count(journal, QF_JOURNAL_TEXT), 1);
        assert_int_equal(count(journal, QF_JOURNAL_INIT_REPLY), 0);
        int calls = 0;
        assert_int_equal(qf_journal_each(journal, KIND, stop, &calls), 42);
        assert_int_equal(calls, 1);
        qf_journal *next = reopened(journal);
        qf_journal_close(journal);
        journal = next;
    }
    /* and the next one goes on */
    set_text(journal, KIND, 2, "two again");
    qf_journal *last = reopened(journal);
    assert_true(has(last, KIND, 2, "two again"));
    qf_journal_close(last);
    qf_journal_close(journal);
    qf_journal_close(NULL);
}

/* A few keys that change all the time take the room of a few keys. */
static void test_rewriting(void **state)
{
    (void)state;
    qf_journal *journal = new_journal();
    char text[200];
    set_text(journal, QF_JOURNAL_OPEN, 5, "stays");
    for (int i = 0; i < 100000; i++) {
        snprintf(text, sizeof text, "%0*d", 1 + i % 150, i);
        set_text(journal, KIND, (uint64_t)i % 40, text);
        if (i % 3 == 0)
            qf_journal_delete(journal, KIND, (uint64_t)i % 40);
    }
    struct stat st;
    assert_int_equal(fstat(qf_journal_fd(journal), &st), 0);
    assert_true(st.st_size > 1 << 20);
    assert_true(st.st_blocks * 512 < 512 << 10);
    qf_journal *next = reopened(journal);
    qf_journal_close(journal);
    assert_true(has(next, QF_JOURNAL_OPEN, 5, "stays"));
    size_t there = 0;
    for (int i = 100000 - 40; i < 100000; i++) {
        snprintf(text, sizeof text, "%0*d", 1 + i % 150, i);
        bool deleted = i % 3 == 0;
        assert_int_equal(has(next, KIND, (uint64_t)i % 40, text), !deleted);
        there += !deleted;
    }
    assert_int_equal(count(next, KIND), there);
    qf_journal_close(next);
}

/* More than an area holds, and single records that are larger than one. */
static void test_growing(void **state)
{
    (void)state;
    enum { KEYS = 5000, LARGE = 300000 };
    qf_journal *journal = new_journal();
    char text[100], *large = malloc(LARGE);
    assert_non_null(large);
    for (uint64_t key = 0; key < KEYS; key++) {
        snprintf(text, sizeof text, "path/of/%0*d", (int)(key % 64), (int)key);
        set_text(journal, KIND, key, text);
    }
    memset(large, 'x', LARGE);
    large[LARGE - 1] = '\0';
    set_text(journal, QF_JOURNAL_TEXT, 1, large);
    qf_journal *next = reopened(journal);
    qf_journal_close(journal);
    assert_int_equal(count(next, KIND), KEYS);
    for (uint64_t key = 0; key < KEYS; key += 501) {
        snprintf(text, sizeof text, "path/of/%0*d", (int)(key % 64), (int)key);
        assert_true(has(next, KIND, key, text));
    }
    assert_true(has(next, QF_JOURNAL_TEXT, 1, large));
    free(large);
    qf_journal_close(next);
}

/* ---- what cannot be gone on from ---- */

static void refused(const qf_journal *journal)
{
    qf_journal *next = NULL;
    assert_int_equal(open_again(journal, &next), -EBADMSG);
    assert_null(next);
}

static uint64_t word(const qf_journal *journal, int which)
{
    uint64_t value;
    assert_int_equal(pread(qf_journal_fd(journal), &value, 8, 8 * which), 8);
    return value;
}

static void set_word(const qf_journal *journal, int which, uint64_t value)
{
    assert_int_equal(pwrite(qf_journal_fd(journal), &value, 8, 8 * which), 8);
}

static void test_damaged_header(void **state)
{
    (void)state;
    static const struct {
        int word;
        uint64_t value;
    } cases[] = {
        {MAGIC, 0},
        {MAGIC, UINT64_C(0x31306a7366746e71)}, /* another version */
        {CURRENT, 1},                          /* of which there is nothing */
        {ENDED, 1},
        {AREA_OFF, 0},
        {AREA_OFF, 4097},
        {AREA_OFF, UINT64_MAX - 4095},
        {AREA_SIZE, 0},
        {AREA_SIZE, UINT64_MAX},
        {AREA_SIZE, 1 << 20}, /* behind the file's end */
        {AREA_USED, (64 << 10) + 1},
        {AREA_USED, UINT64_MAX},
    };
    qf_journal *journal = new_journal();
    set_text(journal, KIND, 1, "one");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t good = word(journal, cases[i].word);
        set_word(journal, cases[i].word, cases[i].value);
        refused(journal);
        set_word(journal, cases[i].word, good);
    }
    qf_journal *next = reopened(journal);
    assert_true(has(next, KIND, 1, "one"));
    qf_journal_close(next);
    assert_int_equal(ftruncate(qf_journal_fd(journal), AREA_AT), 0);
    refused(journal);
    assert_int_equal(qf_journal_open(open("/dev/null", O_RDWR | O_CLOEXEC), &next),
                     -EBADMSG);
    qf_journal_close(journal);
}

/* Records that reach over the end, or begin where none can. */
static void test_damaged_records(void **state)
{
    (void)state;
    qf_journal *journal = new_journal(), *next;
    set_text(journal, KIND, 1, "one");
    set_text(journal, KIND, 2, "two");
    const uint64_t used = word(journal, AREA_USED);
    uint32_t good, sizes[] = {UINT32_MAX - 1, 1000, 100, 41};
    int calls = 0;
    assert_int_equal(pread(qf_journal_fd(journal), &good, 4, AREA_AT), 4);
    assert_int_equal(good, 4);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pwrite(qf_journal_fd(journal), &sizes[i], 4, AREA_AT), 4);
        next = reopened(journal);
        assert_int_equal(qf_journal_each(next, KIND, stop, &calls), -EBADMSG);
        qf_journal_close(next);
    }
    assert_int_equal(pwrite(qf_journal_fd(journal), &good, 4, AREA_AT), 4);
    for (uint64_t less = 1; less < 24; less++) {
        set_word(journal, AREA_USED, used - less);
        next = reopened(journal);
        assert_int_equal(qf_journal_each(next, KIND, stop, &calls), -EBADMSG);
        qf_journal_close(next);
    }
    set_word(journal, AREA_USED, used);
    assert_int_equal(calls, 0);
    assert_int_equal(count(journal, KIND), 2);
    qf_journal_close(journal);
}

static void test_ended(void **state)
{
    (void)state;
    qf_journal *journal = new_journal();
    set_text(journal, KIND, 1, "one");
    qf_journal_end(journal);
    set_text(journal, KIND, 2, "two");
    refused(journal);
    qf_journal_close(journal);
}

/* Without memory the daemon serves on, and nobody goes on from half a journal. */
static void test_no_memory(void **state)
{
    (void)state;
    struct rlimit was, limit;
    qf_journal *journal = new_journal();
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    limit = was;
    limit.rlim_cur = 128 << 10;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (uint64_t key = 0; key < 10000; key++)
        set_text(journal, KIND, key, "some text that takes room");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    set_text(journal, KIND, 1, "one");
    refused(journal);
    qf_journal_close(journal);
}

/* ---- at any moment ---- */

#define KILLED_KEYS 50u

/* Each record says which number it has, all over. */
static void write_for_ever(qf_journal *journal)
{
    uint64_t words[100];
    for (uint64_t n = 0;; n++) {
        size_t size = 1 + n % 100;
        for (size_t i = 0; i < size; i++)
            words[i] = n;
        qf_journal_set(journal, KIND, n % KILLED_KEYS, words, 8 * size);
    }
}

static int check_whole(void *arg, uint64_t key, const void *data, size_t size)
{
    const uint64_t *words = data;
    uint64_t *numbers = arg;
    assert_true(key < KILLED_KEYS);
    assert_int_equal(size, 8 * (1 + words[0] % 100));
    for (size_t i = 0; i < size / 8; i++)
        assert_int_equal(words[i], words[0]);
    assert_int_equal(words[0] % KILLED_KEYS, key);
    numbers[key] = words[0] + 1;
    return 0;
}

static void test_killed(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        uint64_t numbers[KILLED_KEYS] = {0}, last = 0;
        qf_journal *journal = new_journal();
        pid_t pid = fork();
        if (pid == 0)
            write_for_ever(journal);
        assert_true(pid > 0);
        usleep(500 + (useconds_t)round * 937);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        qf_journal *next = reopened(journal);
        assert_int_equal(qf_journal_each(next, KIND, check_whole, numbers), 0);
        for (size_t i = 0; i < KILLED_KEYS; i++)
            last = numbers[i] > last ? numbers[i] : last;
        /* all up to the last one, none of them lost */
        for (uint64_t n = last > KILLED_KEYS ? last - KILLED_KEYS : 0; n < last; n++)
            assert_int_equal(numbers[n % KILLED_KEYS], n + 1);
        qf_journal_close(next);
        qf_journal_close(journal);
    }
}

struct writer {
    qf_journal *journal;
    uint64_t first;
};

static void *write_own(void *arg)
{
    const struct writer *writer = arg;
    for (int i = 0; i < 5000; i++) {
        uint64_t key = writer->first + (uint64_t)i % 10;
        set_text(writer->journal, KIND, key, i < 4990 ? "not yet" : "last");
        qf_journal_delete(writer->journal, QF_JOURNAL_OPEN, key);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    qf_journal *journal = new_journal();
    pthread_t threads[4];
    struct writer writers[4];
    for (size_t i = 0; i < 4; i++) {
        writers[i] = (struct writer){journal, 100 * i};
        assert_int_equal(pthread_create(&threads[i], NULL, write_own, &writers[i]), 0);
    }
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    qf_journal *next = reopened(journal);
    qf_journal_close(journal);
    assert_int_equal(count(next, KIND), 40);
    for (uint64_t key = 0; key < 40; key++)
        assert_true(has(next, KIND, key / 10 * 100 + key % 10, "last"));
    qf_journal_close(next);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_rewriting),
        cmocka_unit_test(test_growing),         cmocka_unit_test(test_damaged_header),
        cmocka_unit_test(test_damaged_records), cmocka_unit_test(test_ended),
        cmocka_unit_test(test_no_memory),       cmocka_unit_test(test_killed),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests_name("fs_journal", tests, NULL, NULL);
}
