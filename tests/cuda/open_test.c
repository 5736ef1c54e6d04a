/* SPDX-License-Identifier: Apache-2.0 */
/* Opening the backend on this machine, whatever it has: a program built with CUDA must
 * start and say what is missing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda/cuda_backend.h"

static qf_backend *fallback;

static void test_open(void **state)
{
    (void)state;
    qf_backend *cuda = NULL;
    struct qf_err err = {""};
    struct qf_cuda_options options = {0};
    int rc = qf_cuda_backend_open(&options, fallback, &cuda, &err);
    if (rc != 0) {
        assert_int_equal(rc, -ENODEV);
        assert_null(cuda);
        assert_ptr_equal(strstr(err.text, "device cuda:0: "), err.text);
        assert_true(strlen(err.text) > strlen("device cuda:0: "));
        return;
    }
    assert_string_equal(qf_backend_name(cuda), "cuda");
    struct qf_cuda_stats stats;
    qf_cuda_backend_stats(cuda, &stats);
    assert_false(stats.active); /* nothing is held before the first job */
    qf_backend_close(cuda);
}

static void test_no_such_device(void **state)
{
    (void)state;
    qf_backend *cuda = NULL;
    struct qf_err err = {""};
    struct qf_cuda_options options = {.device = 4711};
    assert_int_equal(qf_cuda_backend_open(&options, fallback, &cuda, &err), -ENODEV);
    assert_ptr_equal(strstr(err.text, "device cuda:4711: "), err.text);
    options.device = -1;
    assert_int_equal(qf_cuda_backend_open(&options, fallback, &cuda, NULL), -ENODEV);
}

static void test_injected(void **state)
{
    (void)state;
    qf_backend *cuda = NULL;
    struct qf_err err = {""};
    struct qf_cuda_options options = {0};
    assert_int_equal(setenv("QUANTFS_FAULT", "cuda:driver", 1), 0);
    assert_int_equal(qf_cuda_backend_open(&options, fallback, &cuda, &err), -ENODEV);
    assert_non_null(strstr(err.text, "injected"));
    assert_int_equal(unsetenv("QUANTFS_FAULT"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_no_such_device),
        cmocka_unit_test(test_injected),
    };
    if (qf_cpu_backend_open(NULL, &fallback, NULL) != 0)
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    qf_backend_close(fallback);
    return rc;
}
