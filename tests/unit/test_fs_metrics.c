/* SPDX-License-Identifier: Apache-2.0 */
/* Counting and the text; the tree's side of the control directory. */
#include "unit/test_fs_fixture.h"

#include <limits.h>
#include <pthread.h>

#include "fs/metrics.h"
#include "fs/tree_private.h"

#define LOOKUP 1u
#define FORGET 2u
#define OPEN   14u
#define READ   15u

static struct sfx s;

static int setup(void **state)
{
    (void)state;
    sfx_begin(&s);
    sfx_model(&s, "org/model");
    sfx_open(&s, "nf4:dq");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sfx_close(&s);
    sfx_end(&s);
    return 0;
}

static void one(uint32_t opcode, int64_t took_ns, int error)
{
    qf_metrics *metrics = qf_tree_metrics(s.tree);
    struct qf_metrics_request request;
    qf_metrics_begin(metrics, opcode, 1000, &request);
    qf_metrics_end(metrics, &request, error, 1000 + took_ns);
    /* a second reply, were there one, counts nothing */
    qf_metrics_end(metrics, &request, EIO, 2000);
}

static char *text(void)
{
    struct qf_buf out = {0};
    qf_metrics_text(qf_tree_metrics(s.tree), &s.tree->options, s.tree->catalog, &out);
    char *got = qf_buf_take(&out, NULL);
    assert_non_null(got);
    return got;
}

/* The value of a sample, by everything before the blank; -1: there is none. */
static double value(const char *all, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = all; (p = strstr(p, name)) != NULL; p += n)
        if ((p == all || p[-1] == '\n') && p[n] == ' ')
            return strtod(p + n, NULL);
    return -1;
}

static void expect(const char *name, double want)
{
    char *all = text();
    double got = value(all, name);
    if (got < want - 1e-12 || got > want + 1e-12)
        fail_msg("%s: %.12g, not %.12g", name, got, want);
    free(all);
}

static void test_histogram(void **state)
{
    (void)state;
#define BUCKET(le) "quantfs_request_seconds_bucket{kind=\"read\",le=\"" le "\"}"
    expect(BUCKET("+Inf"), 0);
    one(READ, 0, 0);
    one(READ, 10000, 0); /* a bound belongs to its bucket */
    one(READ, 10001, 0);
    one(READ, 300000, 0);
    one(READ, INT64_C(10000000000), 0);
    one(READ, INT64_C(10000000001), 0);
    one(READ, -5, 0); /* no clock runs backwards; a sum must not either */
    expect(BUCKET("1e-05"), 3);
    expect(BUCKET("2e-05"), 4);
    expect(BUCKET("0.0002"), 4);
    expect(BUCKET("0.0005"), 5);
    expect(BUCKET("5"), 5);
    expect(BUCKET("10"), 6);
    expect(BUCKET("+Inf"), 7);
    expect("quantfs_request_seconds_count{kind=\"read\"}", 7);
    expect("quantfs_request_seconds_sum{kind=\"read\"}", 20.000320002);
    expect("quantfs_request_seconds_count{kind=\"lookup\"}", 0);
    expect("quantfs_requests_total{kind=\"read\"}", 7);
}

static void test_requests(void **state)
{
    (void)state;
    qf_metrics *metrics = qf_tree_metrics(s.tree);
    struct qf_metrics_request request;
    one(LOOKUP, 1, ENOENT);
    one(LOOKUP, 1, ENOENT);
    one(LOOKUP, 1, 0);
    one(9999, 1, ENOSYS);
    one(OPEN, 1, 100000); /* no errno that we know */
    qf_metrics_begin(metrics, FORGET, 1, &request);
    assert_int_equal(request.kind, QF_METRICS_NONE);
    expect("quantfs_requests_total{kind=\"lookup\"}", 3);
    expect("quantfs_request_seconds_count{kind=\"lookup\"}", 3);
    expect("quantfs_request_errors_total{kind=\"lookup\",errno=\"ENOENT\"}", 2);
    expect("quantfs_request_errors_total{kind=\"lookup\",errno=\"EIO\"}", -1);
    expect("quantfs_requests_total{kind=\"other\"}", 1);
    expect("quantfs_request_errors_total{kind=\"other\",errno=\"ENOSYS\"}", 1);
    expect("quantfs_request_errors_total{kind=\"open\",errno=\"EIO\"}", 1);
    expect("quantfs_requests_total{kind=\"forget\"}", 1);
    /* under way: asked for, not answered */
    qf_metrics_begin(metrics, READ, 1, &request);
    expect("quantfs_requests_total{kind=\"read\"}", 1);
    expect("quantfs_request_seconds_count{kind=\"read\"}", 0);
}

/* Bytes and open files, counted by fs/file.c and the engine. */
static void test_files(void **state)
{
    (void)state;
    size_t shard_size, size;
    /* dq: what is made of a whole tensor is never made ahead */
    free(sfx_contents(&s, "dq/org/model/model.safetensors", &shard_size));
    char *all = text();
#define FROM(what) value(all, "quantfs_bytes_served_total{from=\"" what "\"}")
    assert_true(FROM("memory") + FROM("cache") + FROM("encoded") + FROM("source") ==
                (double)shard_size);
    assert_true(FROM("encoded") > 0);
    double memory = FROM("memory"), source = FROM("source");
    free(all);
    free(sfx_contents(&s, "nf4/org/model/README.md", &size));
    assert_int_equal(size, 6);
    expect("quantfs_bytes_served_total{from=\"source\"}", source + 6);
    free(sfx_contents(&s, "nf4/org/model/config.json", &size));
    expect("quantfs_bytes_served_total{from=\"memory\"}", memory + (double)size);
    expect("quantfs_open_files", 0);
    qf_file *file;
    assert_int_equal(qf_file_open(s.tree,
                                  sfx_entry(&s, "nf4/org/model/README.md").st.st_ino,
                                  &file),
                     0);
    expect("quantfs_open_files", 1);
    qf_file_close(file);
    expect("quantfs_open_files", 0);
    expect("quantfs_storing_bytes", 0);
    expect("quantfs_readers_waiting", 0);
    expect("quantfs_memory_limit_bytes", (double)QF_ENGINE_MEMORY_DEFAULT);
}

static void test_escaping(void **state)
{
    (void)state;
    static const struct {
        const char *dir, *want;
    } cases[] = {
        {"a\"b\\c", "/a\\\"b\\\\c\",cache=\""},
        {"line\nend", "/line?end\",cache=\""},
        {"\xff", "/?\",cache=\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct qf_err err;
        assert_int_equal(mkdir(sfx_path(&s, cases[i].dir), 0755), 0);
        struct qf_tree_options options = s.tree->options;
        qf_root *root;
        assert_int_equal(qf_root_open(sfx_path(&s, cases[i].dir), &root, &err), 0);
        options.root = root;
        struct qf_buf out = {0};
        qf_metrics_text(qf_tree_metrics(s.tree), &options, s.tree->catalog, &out);
        char *got = qf_buf_take(&out, NULL);
        assert_non_null(got);
        if (strstr(got, cases[i].want) == NULL)
            fail_msg("%s: not in %.300s", cases[i].want, got);
        free(got);
        qf_root_close(root);
    }
}

static void test_control_directory(void **state)
{
    (void)state;
    struct qf_entry entry = sfx_entry(&s, ".quantfs/metrics");
    assert_int_equal(entry.st.st_mode, S_IFREG | 0444);
    assert_int_equal(entry.st.st_size, 0);
    assert_int_equal(sfx_lookup(&s, ".quantfs/metric", &entry), -ENOENT);
    assert_int_equal(sfx_lookup(&s, ".quantfs/status", &entry), 0);
    qf_dir *dir;
    uint64_t id;
    unsigned type;
    assert_int_equal(qf_tree_opendir(s.tree, sfx_entry(&s, ".quantfs").st.st_ino, &dir),
                     0);
    assert_int_equal(qf_dir_count(dir), 4);
    assert_string_equal(qf_dir_entry(dir, 2, &id, &type), "status");
    assert_string_equal(qf_dir_entry(dir, 3, &id, &type), "metrics");
    assert_int_equal(type, DT_REG);
    qf_dir_close(dir);
    /* an id from before a restart */
    qf_file *file;
    assert_int_equal(qf_file_open(s.tree, qf_node_id(QF_CONTROL_DIR, "metrics"), &file),
                     0);
    assert_true(qf_file_is_dynamic(file));
    struct qf_file_read read;
    assert_int_equal(qf_file_read(file, 0, 6, &read), 0);
    assert_memory_equal(read.pieces[0].iov_base, "# HELP", 6);
    qf_file_read_done(&read);
    qf_file_close(file);
    size_t size;
    char *status = sfx_contents(&s, ".quantfs/status", &size);
    assert_memory_equal(status, "version=", 8);
    free(status);
}

#define THREADS 4
#define ROUNDS  2000

static void *count_many(void *arg)
{
    (void)arg;
    for (int i = 0; i < ROUNDS; i++)
        one(READ, i, 0);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count_many, NULL), 0);
    free(text());
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    expect("quantfs_requests_total{kind=\"read\"}", THREADS * ROUNDS);
    expect("quantfs_request_seconds_count{kind=\"read\"}", THREADS * ROUNDS);
    expect("quantfs_request_seconds_sum{kind=\"read\"}",
           THREADS * (ROUNDS * (ROUNDS - 1) / 2) * 1e-9);
}

int main(void)
{
#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH(test_histogram), WITH(test_requests),          WITH(test_files),
        WITH(test_escaping),  WITH(test_control_directory), WITH(test_threads),
    };
    return cmocka_run_group_tests_name("fs_metrics", tests, NULL, NULL);
}
