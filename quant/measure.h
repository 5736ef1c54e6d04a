/* SPDX-License-Identifier: Apache-2.0 */
/* How fast the kernels are: source bytes a second on one thread, beside memcpy of the
 * same bytes. The cases of a dtype take turns, so that a machine whose speed drifts
 * does not favour one of them; medians. Work is handed over in chunks of 1 Mi elements,
 * as the backends do, and memcpy gets the same chunks. The scalar kernels, fifty times
 * slower, get a sixteenth of the source. */
#ifndef QF_QUANT_MEASURE_H
#define QF_QUANT_MEASURE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/dtype.h"
#include "base/err.h"
#include "quant/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_MEASURE_SIZE_MIN   ((size_t)4 << 20)
#define QF_MEASURE_PASSES_MAX 99u
#define QF_MEASURE_ROWS_MAX   64u /* of one dtype */

/* QF_MEASURE_CASTS + d: a cast to dtype d. */
enum qf_measured {
    QF_MEASURE_MEMCPY,
    QF_MEASURE_NF4,
    QF_MEASURE_FP4,
    QF_MEASURE_DQ, /* nf4, then its absmax once more */
    QF_MEASURE_INT8,
    QF_MEASURE_Q8_0, /* GGUF's; _1 is as fast as _0 */
    QF_MEASURE_Q4_0,
    QF_MEASURE_Q5_1,
    QF_MEASURE_CASTS,
    QF_MEASURE_COUNT = QF_MEASURE_CASTS + QF_FLOAT_COUNT
};

const char *qf_measured_name(enum qf_measured what);

struct qf_measure_options {
    size_t size;     /* of the source: better larger than every cache */
    unsigned passes; /* 1 … QF_MEASURE_PASSES_MAX, after one that warms up */
    bool casts;
    bool (*stop)(void *arg); /* true: end soon, with -EINTR. May be NULL */
    void *arg;
};

struct qf_measure_row {
    enum qf_measured what;
    const char *isa;     /* NULL: memcpy */
    double rate;         /* source bytes a second */
    double memcpy_ratio; /* to memcpy's rate */
};

/* All instruction sets that this processor has, the best one first, behind the row of
 * memcpy. rows: QF_MEASURE_ROWS_MAX. -EINVAL (options), -ENOMEM, -EINTR. */
int qf_measure_kernels(const struct qf_measure_options *options, enum qf_dtype dtype,
                       struct qf_measure_row *rows, size_t *count) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
