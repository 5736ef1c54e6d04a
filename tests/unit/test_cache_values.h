/* SPDX-License-Identifier: Apache-2.0 */
/* Values that a test can recompute from their number, put into and looked up in a
 * store. */
#ifndef QF_TESTS_UNIT_TEST_CACHE_VALUES_H
#define QF_TESTS_UNIT_TEST_CACHE_VALUES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it. */
#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/hash.h"
#include "cache/store.h"

#define TEST_LIMIT (UINT64_C(16) << 20)

static inline struct qf_hash128 value_key(uint64_t number)
{
    return qf_hash128(&number, sizeof number);
}

static inline void value_fill(unsigned char *out, size_t size, uint64_t number)
{
    uint64_t x = number * UINT64_C(0x9e3779b97f4a7c15) + size + 1;
    for (size_t i = 0; i < size; i += sizeof x) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(out + i, &x, size - i < sizeof x ? size - i : sizeof x);
    }
}

/* For qf_store_put: the value was malloc'ed. */
static inline void value_done(void *arg, bool lasting)
{
    (void)lasting;
    free(arg);
}

static inline void origin_put(qf_store *store, uint64_t origin, uint64_t number,
                              size_t size)
{
    unsigned char *data = malloc(size + 1);
    assert_non_null(data);
    value_fill(data, size, number);
    qf_store_put(store, value_key(number), origin, data, size, value_done, data);
}

static inline void value_put(qf_store *store, uint64_t number, size_t size)
{
    origin_put(store, 0, number, size);
}

/* Whether the value is found; if so it must be the right one. */
static inline bool value_found(qf_store *store, uint64_t number, size_t size)
{
    struct qf_store_value value;
    if (!qf_store_get(store, value_key(number), &value))
        return false;
    unsigned char *want = malloc(size + 1);
    assert_non_null(want);
    value_fill(want, size, number);
    if (value.size != size || (uintptr_t)value.data % 8 != 0 ||
        memcmp(value.data, want, size) != 0) {
        fprintf(stderr, "value %llu is wrong\n", (unsigned long long)number);
        abort();
    }
    free(want);
    qf_store_release(store, &value);
    return true;
}

static inline struct qf_store_stats stats_of(qf_store *store)
{
    struct qf_store_stats stats;
    qf_store_stats(store, &stats);
    return stats;
}

static inline qf_store *lmdb_open(const char *dir, uint64_t limit)
{
    const struct qf_store_lmdb_options options = {.dir = dir, .bytes_limit = limit};
    struct qf_err err = {{0}};
    qf_store *store = NULL;
    if (qf_store_lmdb_open(&options, &store, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return store;
}

static inline void path_in(char *out, size_t size, const char *dir, const char *name)
{
    int n = snprintf(out, size, "%s/%s", dir, name);
    assert_true(n > 0 && (size_t)n < size);
}

/* -1: there is none. */
static inline long long file_size(const char *dir, const char *name)
{
    char path[4096];
    struct stat st;
    path_in(path, sizeof path, dir, name);
    return stat(path, &st) == 0 ? (long long)st.st_size : -1;
}

#endif
