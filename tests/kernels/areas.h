/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers between forbidden pages, and the comparison of two tables of kernels on them.
 */
#ifndef QF_TESTS_KERNELS_AREAS_H
#define QF_TESTS_KERNELS_AREAS_H

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "quant/kernels.h"

#define AREA_SIZE (1u << 20)

static const struct qf_kernels *ref;
static const struct qf_kernels *isa;
static unsigned long long compared;

/* ---- buffers between forbidden pages ---- */

static inline char *guarded(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *p =
        mmap(NULL, AREA_SIZE + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(p != MAP_FAILED);
    assert(mprotect(p + page, AREA_SIZE, PROT_READ | PROT_WRITE) == 0);
    return p + page;
}

static char *src_area;
static char *codes_area;
static char *floats_area;
static unsigned char want_codes[AREA_SIZE];
static unsigned char want_floats[AREA_SIZE];

/* `size` bytes that end `gap` bytes before the forbidden page. */
static inline char *at_end(char *area, size_t size, size_t gap)
{
    assert(size + gap <= AREA_SIZE);
    return area + AREA_SIZE - size - gap;
}

_Noreturn static inline void fail(const char *what, enum qf_dtype dtype, size_t n,
                                  size_t at)
{
    printf("FAIL %s %s %s n=%zu: first difference at %zu\n", isa->name, what,
           qf_dtype_name(dtype), n, at);
    exit(1);
}

static inline void same(const char *what, enum qf_dtype dtype, size_t n,
                        const void *want, const void *got, size_t size)
{
    const unsigned char *a = want;
    const unsigned char *b = got;
    for (size_t i = 0; i < size; i++)
        if (a[i] != b[i])
            fail(what, dtype, n, i);
    compared += size;
}

static inline size_t width_of(enum qf_dtype dtype)
{
    return dtype == QF_F32 ? 4 : 2;
}

/* Puts `n` elements before the page behind (front: after the page in front of) the
 * source area. */
static inline char *place(const void *src, size_t size, size_t gap, bool front)
{
    char *p = front ? src_area + gap : at_end(src_area, size, gap);
    memmove(p, src, size);
    return p;
}

#endif
