/* SPDX-License-Identifier: Apache-2.0 */
/* The size of this text is part of a file's header, which is shown before any weight is
 * read; nested_offset is the only number in it that comes from data. Hence "%.8e": nine
 * significant digits bring every binary32 back, and 14 characters hold every finite
 * value that is not negative. A mean of absolute values is never negative; should a
 * negative number come nevertheless, its sign takes the place of the last digit. What
 * is not finite is spelled as Python's json does, and blanks fill the field up.
 *
 * (printf's decimal point is that of the locale: quantfs never calls setlocale.) */
#include "quant/qstate.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OFFSET_WIDTH 14
/* "{"quant_type" … "shape": [", two 20-digit numbers, the dq members, the offset. */
#define TEXT_SIZE 256

static void offset_text(float offset, char out[OFFSET_WIDTH + 1])
{
    char text[32];
    if (isnan(offset))
        snprintf(text, sizeof text, "NaN");
    else if (isinf(offset))
        snprintf(text, sizeof text, offset < 0 ? "-Infinity" : "Infinity");
    else
        snprintf(text, sizeof text, "%.*e", signbit(offset) ? 7 : 8, (double)offset);
    size_t n = strlen(text);
    assert(n <= OFFSET_WIDTH);
    memset(out, ' ', OFFSET_WIDTH);
    memcpy(out, text, n);
    out[OFFSET_WIDTH] = '\0';
}

static size_t format(const struct qf_codec_spec *spec, uint64_t rows, uint64_t cols,
                     float nested_offset, char out[TEXT_SIZE])
{
    char nested[96] = "";
    if (spec->codec == QF_CODEC_DQ) {
        char offset[OFFSET_WIDTH + 1];
        offset_text(nested_offset, offset);
        snprintf(nested, sizeof nested,
                 ", \"nested_blocksize\": %u, \"nested_dtype\": \"float32\", "
                 "\"nested_offset\": %s",
                 QF_NESTED_BLOCKSIZE, offset);
    }
    int n = snprintf(out, TEXT_SIZE,
                     "{\"quant_type\": \"%s\", \"blocksize\": %" PRIu32
                     ", \"dtype\": \"%s\", \"shape\": [%" PRIu64 ", %" PRIu64 "]%s}",
                     spec->codec == QF_CODEC_FP4 ? "fp4" : "nf4", spec->blocksize,
                     qf_dtype_torch_name(spec->dtype), rows, cols, nested);
    assert(n > 0 && n < TEXT_SIZE);
    return (size_t)n;
}

size_t qf_qstate_size(const struct qf_codec_spec *spec, uint64_t rows, uint64_t cols)
{
    char text[TEXT_SIZE];
    return format(spec, rows, cols, 0, text);
}

void qf_qstate_write(const struct qf_codec_spec *spec, uint64_t rows, uint64_t cols,
                     float nested_offset, char *out, size_t size)
{
    char text[TEXT_SIZE];
    size_t n = format(spec, rows, cols, nested_offset, text);
    assert(n <= size);
    memcpy(out, text, n);
    memset(out + n, ' ', size - n);
}

float qf_qstate_nested_offset(const char *text, size_t size)
{
    static const char key[] = "\"nested_offset\": ";
    char copy[TEXT_SIZE]; /* ended by a NUL, which the text is not */
    size_t n = size < sizeof copy ? size : sizeof copy - 1;
    memcpy(copy, text, n);
    copy[n] = '\0';
    const char *at = strstr(copy, key);
    return at != NULL ? strtof(at + strlen(key), NULL) : NAN;
}
