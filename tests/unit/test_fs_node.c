/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/node.h"

#define TICKET qf_node_ticket(&table)

static void test_ids(void **state)
{
    (void)state;
    assert_int_equal(qf_node_id("", ""), QF_NODE_ROOT);
    assert_true(qf_node_id("nf4", "") > QF_NODE_ROOT);
    assert_int_equal(qf_node_id("nf4", "a"), qf_node_id("nf4", "a"));
    assert_int_not_equal(qf_node_id("nf4", "a"), qf_node_id("nf4", "b"));
    assert_int_not_equal(qf_node_id("nf4", "a"), qf_node_id("dq", "a"));
    /* where the name ends and the path begins matters */
    assert_int_not_equal(qf_node_id("a", "bc"), qf_node_id("ab", "c"));
    assert_int_not_equal(qf_node_id("a", "b"), qf_node_id("", "ab"));
}

static void test_remember(void **state)
{
    (void)state;
    struct qf_node_table table;
    struct qf_place place;
    uint64_t generation;
    assert_int_equal(qf_node_table_init(&table), 0);
    assert_int_equal(qf_node_find(&table, 5, &place, &generation), -ENOENT);
    assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "a/b", 7), 0);
    assert_int_equal(qf_node_find(&table, 5, &place, &generation), 0);
    assert_string_equal(place.view, "dq");
    assert_string_equal(place.path, "a/b");
    assert_int_equal(generation, 7);
    free(place.path);
    assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "a/b", 9), 0);
    assert_int_equal(qf_node_find(&table, 5, &place, &generation), 0);
    assert_int_equal(generation, QF_GENERATION_UNSURE);
    free(place.path);
    assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "a/b", 9), 0);
    assert_int_equal(qf_node_find(&table, 5, &place, &generation), 0);
    assert_int_equal(generation, 9);
    free(place.path);
    /* three lookups, three forgets */
    qf_node_forget(&table, 5, 2);
    assert_int_equal(table.count, 1);
    qf_node_forget(&table, 5, 1);
    assert_int_equal(table.count, 0);
    assert_int_equal(qf_node_find(&table, 5, &place, &generation), -ENOENT);
    qf_node_forget(&table, 5, 1);
    /* more than there were */
    assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "a/b", 7), 0);
    qf_node_forget(&table, 5, UINT64_MAX);
    assert_int_equal(table.count, 0);
    qf_node_table_fini(&table);
}

static void assert_generation(struct qf_node_table *table, uint64_t expected)
{
    struct qf_place place;
    uint64_t generation;
    assert_int_equal(qf_node_find(table, 5, &place, &generation), 0);
    assert_int_equal(generation, expected);
    free(place.path);
}

/* Two lookups on both sides of a change: whichever order their answers have, only a
 * lookup that began after both of them says what the kernel knows. */
static void test_crossing_lookups(void **state)
{
    (void)state;
    for (int old_last = 0; old_last < 2; old_last++) {
        struct qf_node_table table;
        assert_int_equal(qf_node_table_init(&table), 0);
        assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "a", 1), 0);
        assert_generation(&table, 1);
        uint64_t first = TICKET, second = TICKET, third = TICKET;
        assert_int_equal(qf_node_remember(&table, first, 5, "dq", "a",
                                          old_last ? 2 : 1),
                         0);
        assert_generation(&table, old_last ? QF_GENERATION_UNSURE : 1);
        assert_int_equal(qf_node_remember(&table, second, 5, "dq", "a",
                                          old_last ? 1 : 2),
                         0);
        assert_generation(&table, QF_GENERATION_UNSURE);
        /* began before the change was seen */
        assert_int_equal(qf_node_remember(&table, third, 5, "dq", "a", 2), 0);
        assert_generation(&table, QF_GENERATION_UNSURE);
        assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "a", 2), 0);
        assert_generation(&table, 2);
        /* an open found other contents: the lookup that follows has the last word */
        qf_node_doubt(&table, 5);
        assert_generation(&table, QF_GENERATION_UNSURE);
        assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "a", 3), 0);
        assert_generation(&table, 3);
        qf_node_doubt(&table, 6);
        qf_node_table_fini(&table);
    }
}

/* Two paths with one id: the second one is refused, the first one stays. */
static void test_collision(void **state)
{
    (void)state;
    struct qf_node_table table;
    struct qf_place place;
    uint64_t generation;
    assert_int_equal(qf_node_table_init(&table), 0);
    assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "a", 7), 0);
    assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "b", 8), -EIO);
    assert_int_equal(qf_node_remember(&table, TICKET, 5, "nf4", "a", 8), -EIO);
    assert_int_equal(qf_node_find(&table, 5, &place, &generation), 0);
    assert_string_equal(place.path, "a");
    assert_int_equal(generation, 7);
    free(place.path);
    qf_node_forget(&table, 5, 1);
    assert_int_equal(qf_node_remember(&table, TICKET, 5, "dq", "b", 8), 0);
    qf_node_table_fini(&table);
}

static void test_many(void **state)
{
    (void)state;
    enum { COUNT = 20000 };
    struct qf_node_table table;
    struct qf_place place;
    uint64_t generation;
    char path[32];
    assert_int_equal(qf_node_table_init(&table), 0);
    size_t first = table.bucket_count;
    for (unsigned i = 0; i < COUNT; i++) {
        snprintf(path, sizeof path, "d/%u", i);
        assert_int_equal(qf_node_remember(&table, TICKET, qf_node_id("nf4", path),
                                          "nf4", path, i + 1),
                         0);
    }
    assert_int_equal(table.count, COUNT);
    assert_true(table.bucket_count > first);
    for (unsigned i = 0; i < COUNT; i++) {
        snprintf(path, sizeof path, "d/%u", i);
        uint64_t id = qf_node_id("nf4", path);
        assert_int_equal(qf_node_find(&table, id, &place, &generation), 0);
        assert_string_equal(place.path, path);
        assert_int_equal(generation, i + 1);
        free(place.path);
        if (i % 2 == 0)
            qf_node_forget(&table, id, 1);
    }
    assert_int_equal(table.count, COUNT / 2);
    qf_node_table_fini(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_remember),
        cmocka_unit_test(test_crossing_lookups),
        cmocka_unit_test(test_collision),
        cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests_name("fs_node", tests, NULL, NULL);
}
