/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <string.h>

#include "ckpt/printable.h"
#include "cli/verify.h"

static const struct {
    const char *key;
    const char *text;
} ties[QF_TIE_COUNT] = {
    [QF_TIE_THRESHOLD] = {"threshold", "4-bit codes of values at a threshold"},
    [QF_TIE_HALF] = {"half", "int8 codes of products at a half"},
    [QF_TIE_CPU_CODE] = {"cpu_code", "4-bit codes by the rule of bitsandbytes' CPU"},
    [QF_TIE_ZERO_BLOCK] = {"zero_block", "codes or absmax of blocks of zeros"},
    [QF_TIE_NAN] = {"nan", "codes or absmax of blocks with NaN"},
    [QF_TIE_OFFSET] = {"offset",
                       "nested offsets off by an ulp or two, and what follows"},
    [QF_TIE_CPU_NESTED] = {"cpu_nested",
                           "nested codes by the table of bitsandbytes' CPU"},
    [QF_TIE_DTYPE] = {"dtype", "kept values, the same in another dtype"},
    [QF_TIE_BUFFER] = {"buffer", "buffers that were not saved; loaders make them"},
    [QF_TIE_SHARED] = {"shared", "tensors that are there under another name"},
};

static const struct {
    const char *key;
    const char *text;
} problems[QF_VERIFY_PROBLEM_COUNT] = {
    [QF_VERIFY_DIFFERENT] = {"different", "differs"},
    [QF_VERIFY_SHAPE] = {"shape", "has another dtype or shape"},
    [QF_VERIFY_MISSING] = {"missing", "is missing"},
    [QF_VERIFY_EXTRA] = {"extra", "is in the checkpoint only"},
    [QF_VERIFY_KEPT] = {"kept", "is not quantized, and the view quantizes it"},
    [QF_VERIFY_QUANTIZED] = {"quantized", "is quantized, and the view keeps it"},
};

static uint64_t problem_sum(const struct qf_verify *verify)
{
    uint64_t sum = 0;
    for (int i = 0; i < QF_VERIFY_PROBLEM_COUNT; i++)
        sum += verify->problems[i];
    return sum;
}

static void append_string(struct qf_buf *out, const char *name, const char *value)
{
    qf_buf_appendf(out, ", \"%s\": ", name);
    qf_buf_append_json(out, value, strlen(value));
}

void qf_verify_json(const struct qf_verify *verify, const char *dir,
                    const char *against, double seconds, struct qf_buf *out)
{
    qf_buf_appendf(out, "{\"equal\": %s", problem_sum(verify) == 0 ? "true" : "false");
    append_string(out, "directory", dir);
    append_string(out, "against", against);
    append_string(out, "views", verify->views);
    qf_buf_appendf(out,
                   ",\n \"models\": %zu, \"tensors\": {\"equal\": %" PRIu64
                   ", \"with_known_ties\": %" PRIu64 ", \"different\": %" PRIu64
                   "},\n \"known_ties\": {",
                   verify->dir_count, verify->equal, verify->tied, verify->different);
    for (int i = 0; i < QF_TIE_COUNT; i++)
        qf_buf_appendf(out, "%s\"%s\": %" PRIu64, i != 0 ? ", " : "", ties[i].key,
                       verify->ties[i]);
    qf_buf_append_str(out, "},\n \"problems\": {");
    for (int i = 0; i < QF_VERIFY_PROBLEM_COUNT; i++)
        qf_buf_appendf(out, "%s\"%s\": %" PRIu64, i != 0 ? ", " : "", problems[i].key,
                       verify->problems[i]);
    qf_buf_appendf(out,
                   "},\n \"values_different\": %" PRIu64
                   ", \"seconds\": %.3f,\n \"differences\": [",
                   verify->codes_different, seconds);
    for (size_t i = 0; i < verify->told_count; i++) {
        const struct qf_verify_difference *d = &verify->told[i];
        qf_buf_appendf(out, "%s\n  {\"problem\": \"%s\"", i != 0 ? "," : "",
                       problems[d->problem].key);
        append_string(out, "tensor", d->tensor != NULL ? d->tensor : "");
        if (d->index != UINT64_MAX)
            qf_buf_appendf(out, ", \"index\": %" PRIu64, d->index);
        if (d->want[0] != '\0' || d->got[0] != '\0') {
            append_string(out, "view", d->want);
            append_string(out, "checkpoint", d->got);
        }
        qf_buf_append_str(out, "}");
    }
    qf_buf_append_str(out, "]}\n");
}

static void append_difference(const struct qf_verify_difference *d, struct qf_buf *out)
{
    qf_buf_appendf(out, "%s %s", qf_printable(d->tensor != NULL ? d->tensor : "?").text,
                   problems[d->problem].text);
    if (d->index != UINT64_MAX)
        qf_buf_appendf(out, ", first at %" PRIu64, d->index);
    if (d->want[0] != '\0' || d->got[0] != '\0')
        qf_buf_appendf(out, ": view %s, checkpoint %s", qf_printable(d->want).text,
                       qf_printable(d->got).text);
    qf_buf_append_str(out, "\n");
}

void qf_verify_text(const struct qf_verify *verify, struct qf_buf *out)
{
    uint64_t sum = problem_sum(verify);
    for (size_t i = 0; i < verify->told_count; i++)
        append_difference(&verify->told[i], out);
    if (sum > verify->told_count)
        qf_buf_appendf(out, "… and %" PRIu64 " more\n", sum - verify->told_count);
    for (int i = 0; i < QF_TIE_COUNT; i++)
        if (verify->ties[i] != 0)
            qf_buf_appendf(out, "known: %" PRIu64 " %s\n", verify->ties[i],
                           ties[i].text);
    qf_buf_appendf(out,
                   "%s (%s): %" PRIu64 " tensors equal, %" PRIu64
                   " equal but for known ties, %" PRIu64 " different\n",
                   sum == 0 ? "equal" : "different", verify->views, verify->equal,
                   verify->tied, verify->different);
}
