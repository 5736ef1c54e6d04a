/* SPDX-License-Identifier: Apache-2.0 */
/* How far the values of a view are from those of its source: sums that can be added up,
 * and what is told of them. Pure. */
#ifndef QF_COMPARE_ERRORS_H
#define QF_COMPARE_ERRORS_H

#include <stddef.h>
#include <stdint.h>

#include "quant/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Over pairs (x: source, y: view) of which both are finite; the others are counted and
 * are in no sum. */
struct qf_errors {
    uint64_t count;             /* pairs in the sums */
    uint64_t source_not_finite; /* NaN or infinity in the source */
    uint64_t view_not_finite;   /* in the view alone: in a block with an infinity */
    double error;               /* sum of (x - y)^2 */
    double xx, yy, xy;          /* sums of products */
    double max_abs;             /* largest |x - y| */
};

/* The sums of lanes that took `pairs` pairs, added in a fixed order. */
struct qf_errors qf_errors_of_lanes(const struct qf_error_lanes *lanes, uint64_t pairs);
/* Adds up; in which order decides the last bits. */
void qf_errors_add(struct qf_errors *to, const struct qf_errors *more);

/* All NaN where nothing defines them (no pairs; a cosine with nothing but zeros). */
double qf_errors_mse(const struct qf_errors *errors);
/* 10 log10(sum of x^2 / sum of (x - y)^2); infinity without any error. */
double qf_errors_sqnr_db(const struct qf_errors *errors);
double qf_errors_cosine(const struct qf_errors *errors);

/* How many of the first n 4-bit codes differ; and of codes that are bytes. */
uint64_t qf_codes_differing(const uint8_t *a, const uint8_t *b, size_t n);
uint64_t qf_bytes_differing(const uint8_t *a, const uint8_t *b, size_t n);

#ifdef __cplusplus
}
#endif
#endif
