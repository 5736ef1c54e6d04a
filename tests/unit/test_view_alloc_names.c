/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation of names and overrides fails once: -ENOMEM each time, and nothing
 * leaks. The sources are compiled here again, with an allocator that can be told to
 * fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A countdown: the allocation that it reaches fails. */
static long allocations_left;

static bool may_allocate(void)
{
    return allocations_left-- != 0;
}

static void *test_heap_realloc(void *old, size_t size)
{
    return may_allocate() ? realloc(old, size) : NULL;
}

static char *test_heap_strndup(const char *text, size_t size)
{
    return may_allocate() ? strndup(text, size) : NULL;
}

#undef strndup
#define realloc test_heap_realloc
#define strndup test_heap_strndup
#include "base/buf.c"
#include "view/names.c"
#include "view/overrides.c"
#include "view/settings.c"
#undef realloc
#undef strndup

static const char name[] = "dq+blocksize=128+only=mlp+skip=a:b+force=score";

/* Until it does not fail any more; how often it did. */
static long fails(const char *text, size_t size, int expected)
{
    long n = 0;
    for (;; n++) {
        struct qf_view view;
        struct qf_err err = {""};
        allocations_left = n;
        int rc = qf_view_parse(text, size, &view, &err);
        if (rc == expected)
            return n;
        assert_int_equal(rc, -ENOMEM);
        assert_string_equal(err.text, "out of memory");
    }
}

static void test_parse(void **state)
{
    (void)state;
    assert_true(fails("dq", 2, 0) > 0);
    assert_true(fails(name, strlen(name), 0) > 0);
    assert_true(fails("int8+storage=uint8", 18, -EINVAL) > 0);
}

static void test_list(void **state)
{
    struct qf_view views[QF_VIEWS_MAX];
    size_t count;
    long n = 0;
    int rc;
    (void)state;
    for (;; n++) {
        struct qf_err err = {""};
        allocations_left = n;
        rc = qf_view_parse_list("nf4:dq+skip=a", views, &count, &err);
        if (rc == 0)
            break;
        assert_int_equal(rc, -ENOMEM);
        assert_non_null(strstr(err.text, "out of memory"));
    }
    assert_true(n > 1);
}

static void test_overrides(void **state)
{
    static const char text[] = "{\"only\":[\"x\"],\"skip\":[\"y\"],\"views\":{\"nf4\":"
                               "{\"skip\":[\"z\"]},\"dq\":{\"force\":[\"f\"]}}}";
    struct qf_view base, view, copy;
    long n = 0;
    int rc;
    (void)state;
    allocations_left = -1;
    assert_int_equal(qf_view_parse(name, strlen(name), &base, NULL), 0);
    for (;; n++) {
        struct qf_err err = {""};
        allocations_left = n;
        rc = qf_overrides_apply(&base, text, strlen(text), &view, &err);
        if (rc == 0)
            break;
        assert_int_equal(rc, -ENOMEM);
    }
    assert_true(n > 10);
    assert_int_equal(view.skip.count, 3);
    for (n = 0;; n++) {
        allocations_left = n;
        rc = qf_overrides_apply(&view, NULL, 0, &copy, NULL);
        if (rc == 0)
            break;
        assert_int_equal(rc, -ENOMEM);
    }
    assert_true(n > 6);
    qf_view_fini(&copy);
    qf_view_fini(&view);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_overrides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
