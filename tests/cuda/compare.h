/* SPDX-License-Identifier: Apache-2.0 */
/* Weights of every kind of number, and the comparison of two backends on them. */
#ifndef QF_TESTS_CUDA_COMPARE_H
#define QF_TESTS_CUDA_COMPARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant/backend.h"

enum number_class {
    UNIFORM,
    NORMAL,
    HEAVY, /* any finite bits */
    BITS,  /* any bits: NaN, infinity */
    DENORMAL,
    ZEROS, /* mostly blocks of zeros of both signs */
    INFINITIES,
    NANS,
    ALL_NAN,
    TINY, /* absmax around the smallest normal numbers and 2^-128 */
    NUMBER_CLASS_COUNT
};

/* n elements of the class, the same for the same seed. */
void numbers_fill(void *out, enum qf_dtype dtype, size_t n, enum number_class class,
                  uint64_t seed);

/* A weight and where backends find it. */
struct weight {
    enum qf_dtype dtype;
    uint64_t rows; /* as it is stored */
    uint64_t cols;
    bool transposed;
    const void *data;
    size_t size;
    int fd; /* -1: in memory only */
    uint64_t fd_off;
    int read_rc;       /* what reading returns */
    uint64_t fails_at; /* … for reads that touch this offset (size: never) */
};

struct weight weight_of(const void *data, enum qf_dtype dtype, uint64_t rows,
                        uint64_t cols);
/* Jobs for chunks [first, first + count), with records at `stride` bytes. */
void weight_jobs(const struct weight *w, const struct qf_plan *plan, uint64_t first,
                 size_t count, void *records, size_t stride, struct qf_job *jobs);

/* Encodes all chunks with both, `batch` jobs a call, and compares records, byte by
 * byte. Prints and exits with 1 at a difference. Returns the bytes compared. */
uint64_t compare(qf_backend *got, qf_backend *want, const struct qf_codec_spec *spec,
                 const struct weight *w, size_t batch);
/* The same for chunks [first, end) of a plan. */
uint64_t compare_chunks(qf_backend *got, qf_backend *want, const struct qf_plan *plan,
                        const struct weight *w, uint64_t first, uint64_t end,
                        size_t batch);

#endif
