/* SPDX-License-Identifier: Apache-2.0 */
/* The small parts under the LMDB store. */
#include "test_cache_values.h"

#include "base/limits.h"
#include "cache/key.h"
#include "cache/netfs.h"
#include "cache/recency.h"
#include "cache/record.h"
#include "cache/verified.h"

static void test_record(void **state)
{
    (void)state;
    const size_t sizes[] = {0, 1, 63, 4016, 4017, 100000};
    for (size_t n = 0; n < sizeof sizes / sizeof sizes[0]; n++) {
        size_t size = sizes[n];
        size_t stored_size = qf_record_stored_size(size, 4080);
        assert_true(stored_size == 4080 || stored_size == size + QF_RECORD_HEAD_SIZE);
        unsigned char *data = malloc(size + 1);
        unsigned char *stored = malloc(stored_size);
        assert_non_null(data);
        assert_non_null(stored);
        value_fill(data, size, n);
        qf_record_write(stored, stored_size, value_key(n), data, size, 42);
        struct qf_record r;
        assert_true(qf_record_parse(stored, stored_size, 4080, value_key(n), &r));
        assert_int_equal(r.size, size);
        assert_int_equal(r.serial, 42);
        assert_true(r.data == stored + QF_RECORD_HEAD_SIZE);
        assert_memory_equal(r.data, data, size);
        assert_true(qf_record_verify(&r));
        assert_false(qf_record_parse(stored, stored_size, 4080, value_key(99), &r));
        assert_false(qf_record_parse(stored, stored_size - 1, 4080, value_key(n), &r));
        assert_false(qf_record_parse(stored, 63, 0, value_key(n), &r));
        free(data);
        free(stored);
    }
}

/* Every bit of head and data is covered, but the serial's (it names, it does not
 * promise) and the padding's. */
static void test_record_flips(void **state)
{
    (void)state;
    unsigned char stored[512];
    unsigned char data[300];
    value_fill(data, sizeof data, 5);
    qf_record_write(stored, sizeof stored, value_key(5), data, sizeof data, 1);
    size_t caught = 0;
    for (size_t bit = 0; bit < sizeof stored * 8; bit++) {
        struct qf_record r;
        stored[bit / 8] ^= (unsigned char)(1u << (bit % 8));
        bool good =
            qf_record_parse(stored, sizeof stored, sizeof stored, value_key(5), &r) &&
            qf_record_verify(&r);
        if (good)
            assert_memory_equal(r.data, data, sizeof data);
        caught += !good;
        stored[bit / 8] ^= (unsigned char)(1u << (bit % 8));
    }
    assert_int_equal(caught, (QF_RECORD_HEAD_SIZE - 8 + sizeof data) * 8);
}

static void test_recency(void **state)
{
    (void)state;
    qf_recency *recency = qf_recency_new();
    struct qf_recent *out = calloc(QF_RECENCY_COUNT_MAX, sizeof *out);
    assert_non_null(recency);
    assert_non_null(out);
    assert_false(qf_recency_pending(recency));
    assert_int_equal(qf_recency_drain(recency, out), 0);
    assert_true(qf_recency_note(recency, value_key(1)));
    assert_false(qf_recency_note(recency, value_key(2)));
    assert_false(qf_recency_note(recency, value_key(1)));
    assert_true(qf_recency_pending(recency));
    assert_int_equal(qf_recency_drain(recency, out), 2);
    assert_true(qf_hash128_eq(out[0].key, value_key(2)));
    assert_true(qf_hash128_eq(out[1].key, value_key(1)));
    assert_false(qf_recency_pending(recency));

    /* Bounded, whatever comes. */
    for (uint64_t i = 0; i < 4 * QF_RECENCY_COUNT_MAX; i++)
        qf_recency_note(recency, value_key(i));
    size_t count = qf_recency_drain(recency, out);
    assert_in_range(count, QF_RECENCY_COUNT_MAX * 9 / 10, QF_RECENCY_COUNT_MAX);
    for (size_t i = 1; i < count; i++)
        assert_true(out[i - 1].tick < out[i].tick);
    assert_true(qf_recency_note(recency, value_key(1)));
    assert_int_equal(qf_recency_drain(recency, out), 1);
    free(out);
    qf_recency_free(recency);
    qf_recency_free(NULL);
}

static void test_verified(void **state)
{
    (void)state;
    qf_verified *set = qf_verified_new(100);
    assert_non_null(set);
    assert_false(qf_verified_has(set, 0)); /* an empty place is no mark */
    assert_false(qf_verified_has(set, 5));
    qf_verified_add(set, 5);
    assert_true(qf_verified_has(set, 5));
    /* Marks of one group push each other out; they are never taken for each other. */
    for (uint64_t i = 1; i <= 100; i++) {
        uint64_t mark = 5 + (i * UINT64_C(0x9e3779b97f4a7c15) << 22);
        assert_false(qf_verified_has(set, mark));
        qf_verified_add(set, mark);
        assert_true(qf_verified_has(set, mark));
    }
    unsigned kept = 0;
    for (uint64_t i = 1; i <= 100; i++)
        kept += qf_verified_has(set, 5 + (i * UINT64_C(0x9e3779b97f4a7c15) << 22));
    assert_in_range(kept, 4, 8);
    /* As many as it was made for are kept, but for a few. */
    for (uint64_t i = 0; i < 4096; i++)
        qf_verified_add(set, value_key(i).low);
    kept = 0;
    for (uint64_t i = 0; i < 2048; i++)
        kept += qf_verified_has(set, value_key(i).low);
    assert_true(kept > 1400);
    qf_verified_free(set);
}

static void test_netfs(void **state)
{
    (void)state;
    assert_string_equal(qf_netfs_name(0x6969), "NFS");
    assert_string_equal(qf_netfs_name(0xff534d42), "CIFS");
    assert_string_equal(qf_netfs_name(0xfe534d42), "SMB");
    assert_string_equal(qf_netfs_name(0x0bd00bd0), "Lustre");
    assert_string_equal(qf_netfs_name(0x65735546), "FUSE");
    assert_null(qf_netfs_name(0xef53));     /* ext4 */
    assert_null(qf_netfs_name(0x01021994)); /* tmpfs */
    assert_null(qf_netfs_name(0x58465342)); /* XFS */
}

/* Each member of a key decides. */
static void test_key(void **state)
{
    (void)state;
    struct qf_key key = {.rows = 3, .cols = 4};
    struct qf_hash128 base = qf_key_hash(&key);
    assert_true(qf_hash128_eq(base, qf_key_hash(&key)));
    unsigned char *bytes = (unsigned char *)&key;
    for (size_t i = 0; i < sizeof key; i++) {
        bytes[i] ^= 1;
        assert_false(qf_hash128_eq(base, qf_key_hash(&key)));
        bytes[i] ^= 1;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record),  cmocka_unit_test(test_record_flips),
        cmocka_unit_test(test_recency), cmocka_unit_test(test_verified),
        cmocka_unit_test(test_netfs),   cmocka_unit_test(test_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
