/* SPDX-License-Identifier: Apache-2.0 */
/* Source bytes a second of every kernel, on one thread, beside memcpy of the same
 * bytes (quant/measure.h tells how). `quantfs bench` shows the same numbers.
 *
 *   qf_bench_kernels [MiB of source] [passes] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/measure.h"

int main(int argc, char **argv)
{
    size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 512;
    struct qf_measure_options options = {
        .size = mib << 20,
        .passes = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 7,
        .others = true,
        .casts = true,
    };
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        struct qf_measure_row rows[QF_MEASURE_ROWS_MAX];
        size_t count = 0;
        int rc = qf_measure_kernels(&options, (enum qf_dtype)d, rows, &count);
        if (rc == -EINVAL) {
            fprintf(stderr,
                    "usage: qf_bench_kernels [MiB of source >= 4] [passes 1-99]\n");
            return 2;
        }
        if (rc != 0) {
            fprintf(stderr, "%s\n", strerror(-rc));
            return 1;
        }
        for (size_t i = 0; i < count; i++)
            printf("%-5s %-7s %-16s %6.2f GB/s  %.2f\n",
                   qf_dtype_name((enum qf_dtype)d),
                   rows[i].isa != NULL ? rows[i].isa : "",
                   qf_measured_name(rows[i].what), rows[i].rate * 1e-9,
                   rows[i].memcpy_ratio);
    }
    return 0;
}
