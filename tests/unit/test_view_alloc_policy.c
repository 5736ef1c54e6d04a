/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation of the policy fails once: -ENOMEM each time, and nothing leaks. The
 * sources are compiled here again, with an allocator that can be told to fail. */
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

#include "support/failing_heap.h"

#include "view/policy.c"
#include "view/policy_closure.c"
#include "view/policy_rules.c"
#undef malloc
#undef calloc
#undef realloc

static int plan(long allocations, struct qf_policy *policy, struct qf_err *err)
{
    static const uint64_t shape[] = {8, 8};
    static const char *const names[] = {"bert.fc.weight",
                                        "bert.out_proj.weight",
                                        "bert.wte.weight",
                                        "cls.x.weight",
                                        "bert.experts.0.fc.weight",
                                        "bert.taken.weight",
                                        "bert.taken.weight.absmax"};
    struct qf_tensor tensors[7];
    const struct qf_tensor *pointers[7];
    for (size_t i = 0; i < 7; i++) {
        tensors[i] = (struct qf_tensor){.name = names[i],
                                        .dtype = QF_F16,
                                        .rank = 2,
                                        .shape = shape};
        pointers[i] = &tensors[i];
    }
    static const char config[] = "{\"model_type\":\"bert\"}";
    struct qf_view view;
    assert_int_equal(qf_view_parse("nf4", 3, &view, NULL), 0);
    qf_json *doc = qf_json_parse(config, strlen(config), NULL);
    allocations_left = allocations;
    int rc = qf_policy_plan(pointers, 7, doc, &view, policy, err);
    qf_json_free(doc);
    return rc;
}

static void test_policy(void **state)
{
    struct qf_policy policy;
    struct qf_err err;
    long n = 0;
    int rc;
    (void)state;
    for (;; n++) {
        err.text[0] = '\0';
        rc = plan(n, &policy, &err);
        if (rc == 0)
            break;
        assert_int_equal(rc, -ENOMEM);
        assert_string_equal(err.text, "out of memory");
        assert_null(policy.decisions);
        assert_null(policy.skip);
        assert_string_equal(policy.reason, "");
        qf_policy_fini(&policy);
    }
    assert_true(n > 30);
    assert_int_equal(policy.quantized_count, 3);
    qf_policy_fini(&policy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_policy)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
