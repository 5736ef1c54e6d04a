/* SPDX-License-Identifier: Apache-2.0 */
/* A heap that fails when the test wants it to, for sources that are included behind
 * this header; #undef malloc, calloc and realloc behind them. */
#ifndef QF_TESTS_FAILING_HEAP_H
#define QF_TESTS_FAILING_HEAP_H

#include <stdbool.h>
#include <stdlib.h>

/* A countdown: the allocation that it reaches fails. */
static long allocations_left;

static bool may_allocate(void)
{
    return allocations_left-- != 0;
}

static void *test_heap_malloc(size_t size)
{
    return may_allocate() ? malloc(size) : NULL;
}

static void *test_heap_calloc(size_t count, size_t size)
{
    return may_allocate() ? calloc(count, size) : NULL;
}

static void *test_heap_realloc(void *old, size_t size)
{
    return may_allocate() ? realloc(old, size) : NULL;
}

#define malloc  test_heap_malloc
#define calloc  test_heap_calloc
#define realloc test_heap_realloc

#endif
