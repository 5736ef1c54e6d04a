/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation of a scaled view's policy and metadata fails once: -ENOMEM each
 * time, and nothing leaks. The sources are compiled here again, with an allocator that
 * can be told to fail. */
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

#include "base/buf.c"
#include "view/policy.c"
#include "view/policy_list.c"
#include "view/torchao.c"
#undef malloc
#undef calloc
#undef realloc

static const uint64_t square[] = {128, 128}, odd[] = {128, 40}, vector[] = {8};
static struct qf_tensor tensors[] = {
    {"m.layers.0.q_proj.weight", QF_F16, 2, square, 0, 32768, NULL},
    {"m.layers.0.k_proj.weight", QF_F16, 2, odd, 32768, 10240, NULL},
    {"m.layers.0.up.weight", QF_F16, 2, square, 43008, 32768, NULL},
    {"m.embed_tokens.weight", QF_F16, 2, square, 75776, 32768, NULL},
    {"m.norm.weight", QF_F16, 1, vector, 108544, 16, NULL}};
#define COUNT (sizeof tensors / sizeof *tensors)

static int plan(long allocations, const struct qf_view *view, struct qf_policy *policy,
                struct qf_err *err)
{
    static const char config[] = "{\"architectures\":[\"LlamaForCausalLM\"]}";
    const struct qf_tensor *pointers[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        pointers[i] = &tensors[i];
    allocations_left = -1;
    qf_json *doc = qf_json_parse(config, strlen(config), NULL);
    allocations_left = allocations;
    int rc = qf_policy_plan(pointers, COUNT, doc, view, policy, err);
    allocations_left = -1;
    qf_json_free(doc);
    return rc;
}

static struct qf_view view_of(const char *name)
{
    struct qf_view view;
    allocations_left = -1;
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    return view;
}

static void test_policies(void **state)
{
    static const char *const names[] = {"ao-int8wo+group=32", "fp8", "ct-w8a16"};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct qf_view view = view_of(names[i]);
        struct qf_policy policy;
        struct qf_err err = {""};
        long n = 0;
        for (; plan(n, &view, &policy, &err) != 0; n++) {
            assert_string_equal(err.text, "out of memory");
            assert_null(policy.decisions);
            assert_null(policy.skip);
            assert_string_equal(policy.reason, "");
            qf_policy_fini(&policy);
        }
        assert_true(n > 6);
        assert_int_equal(policy.quantized_count, 1);
        assert_int_equal(policy.decisions[0].reason, QF_REASON_FUSED);
        qf_policy_fini(&policy);
    }
}

static void test_metadata(void **state)
{
    static char name[] = "m.safetensors";
    struct qf_view view = view_of("ao-int8dq");
    struct qf_shard header = {.tensor_count = COUNT, .tensors = tensors};
    struct qf_model_shard shard = {.name = name, .header = &header};
    struct qf_weight_set set = {.shard_count = 1, .shards = &shard};
    struct qf_policy policy;
    struct qf_torchao torchao;
    struct qf_err err = {""};
    long n = 0;
    (void)state;
    assert_int_equal(plan(-1, &view, &policy, &err), 0);
    for (;; n++) {
        allocations_left = n;
        int rc = qf_torchao_init(&torchao, &set, &view, &policy);
        if (rc == 0)
            break;
        assert_int_equal(rc, -ENOMEM);
        assert_int_equal(torchao.count, 0);
        assert_null(torchao.entries);
    }
    assert_true(n > 6);
    assert_int_equal(torchao.count, COUNT + 1);
    qf_torchao_fini(&torchao);
    qf_policy_fini(&policy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_policies),
                                       cmocka_unit_test(test_metadata)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
