/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation fails once: each call then says -ENOMEM or does without, and frees
 * what it had. This program's malloc stands in front of glibc's, which a sanitizer does
 * not allow: skipped there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/json.h"
#include "ckpt/config.h"
#include "ckpt/index.h"
#include "ckpt/model.h"
#include "ckpt/shard.h"
#include "support/stfile.h"
#include "support/tmpdir.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define SANITIZED 1
#endif

#ifdef SANITIZED
int main(void)
{
    return 77;
}
#else

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *p, size_t size);
void __libc_free(void *p);

static long fail_at = -1; /* this allocation from now fails; -1: none */
static long live;         /* blocks allocated and not freed */

static bool fails(void)
{
    return fail_at >= 0 && fail_at-- == 0;
}

void *malloc(size_t size)
{
    void *p = fails() ? NULL : __libc_malloc(size);
    live += p != NULL;
    if (p == NULL)
        errno = ENOMEM;
    return p;
}

void *calloc(size_t count, size_t size)
{
    void *p = fails() ? NULL : __libc_calloc(count, size);
    live += p != NULL;
    if (p == NULL)
        errno = ENOMEM;
    return p;
}

void *realloc(void *old, size_t size)
{
    void *p = fails() ? NULL : __libc_realloc(old, size);
    live += p != NULL && old == NULL;
    if (p == NULL)
        errno = ENOMEM;
    return p;
}

void free(void *p)
{
    live -= p != NULL;
    __libc_free(p);
}

/* Runs `act` with the first, second, … allocation failing, until none fails. */
static void each_failure(int (*act)(void *), void *arg)
{
    int failures = 0;
    bool done = false;
    assert_int_equal(act(arg), 0); /* libraries may keep what they allocate first */
    for (long at = 0; !done; at++) {
        long before = live;
        fail_at = at;
        int rc = act(arg);
        done = fail_at >= 0;
        fail_at = -1;
        assert_int_equal(live, before);
        assert_true(rc == 0 || (rc == -ENOMEM && !done));
        failures += rc != 0;
    }
    assert_true(failures > 2);
}

static int parse_json(void *arg)
{
    struct qf_err err = {.text = ""};
    errno = 0;
    qf_json *doc = qf_json_parse(arg, strlen(arg), &err);
    int rc = doc == NULL ? -errno : 0;
    qf_json_free(doc);
    return rc;
}

static void test_json(void **state)
{
    (void)state;
    char text[] = "{\"a\": [1, NaN, \"x\", {\"b\": null}], \"c\": 10000000000000000000"
                  "00000000000000000000000000000000000000000000000000}";
    each_failure(parse_json, text);
}

static int parse_shard(void *arg)
{
    struct qf_shard *shard = NULL;
    struct qf_err err = {.text = ""};
    size_t size;
    long at = fail_at;
    fail_at = -1;
    unsigned char *file = stfile_raw(arg, 6, &size);
    fail_at = at;
    int rc = qf_shard_parse(file, 8 + strlen(arg), size, &shard, &err);
    qf_shard_free(shard);
    free(file);
    return rc;
}

static void test_shard(void **state)
{
    (void)state;
    char header[] = "{\"__metadata__\":{\"a\":\"b\",\"c\":\"d\"},"
                    "\"x\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[0,4]},"
                    "\"y\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,6],"
                    "\"z\":\"w\"}}";
    each_failure(parse_shard, header);
}

static int parse_index(void *arg)
{
    struct qf_index index;
    int rc = qf_index_parse(arg, strlen(arg), &index, NULL);
    if (rc == 0)
        qf_index_fini(&index);
    return rc;
}

static void test_index(void **state)
{
    (void)state;
    char text[] = "{\"weight_map\":{\"a\":\"x\",\"b\":\"y\",\"c\":\"x\"}}";
    each_failure(parse_index, text);
}

static int splice(void *arg)
{
    static const struct qf_splice splices[] = {
        {.name = "q",
         .value = "{\"a\": \"a value that does not fit the first block\"}"},
        {.name = "a"}};
    struct qf_buf out = {0};
    int rc = qf_config_splice(arg, strlen(arg), splices, 2, &out, NULL);
    qf_buf_fini(&out);
    return rc;
}

static void test_config(void **state)
{
    (void)state;
    char text[] = "{\"a\": 1, \"b\": 2}";
    each_failure(splice, text);
}

static int load_model(void *arg)
{
    qf_root *root = NULL;
    struct qf_model *model = NULL;
    struct qf_err err = {.text = ""};
    int rc = qf_root_open(arg, &root, &err);
    if (rc == 0)
        rc = qf_model_load(root, "m", &model, &err);
    if (rc == 0) {
        assert_string_equal(model->reason, "");
        assert_int_equal(model->set_count, 2);
        rc = qf_model_check(root, "m", model);
    }
    qf_model_free(model);
    qf_root_close(root);
    return rc;
}

static void test_model(void **state)
{
    (void)state;
    const struct stfile_tensor a = {"a.weight", QF_BF16, 2, {4, 8}, NULL};
    const struct stfile_tensor b = {"b.weight", QF_BF16, 2, {4, 8}, NULL};
    char *base = tmpdir_make();
    char path[4096];
    tmpdir_write_text(base, "m/config.json", "{\"model_type\": \"x\"}");
    tmpdir_write_text(
        base, "m/model.safetensors.index.json",
        "{\"weight_map\": {\"a.weight\": \"1.safetensors\", \"b.weight\": "
        "\"2.safetensors\"}}");
    stfile_write(base, "m/1.safetensors", &a, 1);
    stfile_write(base, "blob", &b, 1);
    strcat(strcpy(path, base), "/m/2.safetensors");
    assert_int_equal(symlink("../blob", path), 0);
    stfile_write(base, "m/model.fp16.safetensors", &a, 1);
    each_failure(load_model, base);
    tmpdir_remove(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_json),
                                       cmocka_unit_test(test_shard),
                                       cmocka_unit_test(test_index),
                                       cmocka_unit_test(test_config),
                                       cmocka_unit_test(test_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
