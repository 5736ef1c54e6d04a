/* SPDX-License-Identifier: Apache-2.0 */
#include "compare/errors.h"

#include <math.h>

#include "base/bytes.h"

static double sum(const double lane[QF_ERROR_LANES])
{
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

struct qf_errors qf_errors_of_lanes(const struct qf_error_lanes *lanes, uint64_t pairs)
{
    struct qf_errors out = {
        .count = pairs - lanes->x_not_finite - lanes->y_not_finite,
        .source_not_finite = lanes->x_not_finite,
        .view_not_finite = lanes->y_not_finite,
        .error = sum(lanes->error),
        .xx = sum(lanes->xx),
        .yy = sum(lanes->yy),
        .xy = sum(lanes->xy),
    };
    for (unsigned i = 0; i < QF_ERROR_LANES; i++)
        out.max_abs = fmax(out.max_abs, lanes->max_abs[i]);
    return out;
}

void qf_errors_add(struct qf_errors *to, const struct qf_errors *more)
{
    to->count += more->count;
    to->source_not_finite += more->source_not_finite;
    to->view_not_finite += more->view_not_finite;
    to->error += more->error;
    to->xx += more->xx;
    to->yy += more->yy;
    to->xy += more->xy;
    to->max_abs = fmax(to->max_abs, more->max_abs);
}

double qf_errors_mse(const struct qf_errors *errors)
{
    return errors->count != 0 ? errors->error / (double)errors->count : NAN;
}

double qf_errors_sqnr_db(const struct qf_errors *errors)
{
    if (errors->count == 0)
        return NAN;
    return errors->error > 0 ? 10 * log10(errors->xx / errors->error) : INFINITY;
}

double qf_errors_cosine(const struct qf_errors *errors)
{
    double norms = sqrt(errors->xx) * sqrt(errors->yy);
    return norms > 0 ? fmax(-1, fmin(1, errors->xy / norms)) : NAN;
}

uint64_t qf_codes_differing(const uint8_t *a, const uint8_t *b, size_t n)
{
    const uint64_t ones = UINT64_C(0x1111111111111111);
    uint64_t count = 0;
    size_t i = 0;
    for (; n - i >= 16; i += 16) {
        uint64_t d = qf_load_u64(a + i / 2) ^ qf_load_u64(b + i / 2);
        d |= d >> 2;
        d = (d | d >> 1) & ones; /* one bit a code */
        d = (d + (d >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
        count += d * UINT64_C(0x0101010101010101) >> 56;
    }
    for (; i < n; i++)
        count += ((a[i / 2] ^ b[i / 2]) >> (i % 2 == 0 ? 4 : 0) & 15) != 0;
    return count;
}

uint64_t qf_bytes_differing(const uint8_t *a, const uint8_t *b, size_t n)
{
    uint64_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += a[i] != b[i];
    return count;
}
