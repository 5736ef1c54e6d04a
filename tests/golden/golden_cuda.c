/* SPDX-License-Identifier: Apache-2.0 */
/* Every kernel table against real outputs of bitsandbytes' CUDA kernels
 * (bnb_cuda.safetensors). Those were compiled with fast-math, so the rule of
 * docs/FORMATS.md section 2 holds: all-zero blocks apart, every nf4 byte, absmax, SCB
 * and nested code is equal; an fp4 or int8 code may differ where y lies within 2 ulp of
 * a threshold (int8: the product within 2 ulp of a half); offset is within 2 ulp, and
 * so is nested_absmax, in ulps of the offset, since it is a difference from it. With
 * CUDA's own offset nested_absmax is equal. The counts are printed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "golden/stload.h"
#include "quant/dequant.h"
#include "quant/half.h"
#include "quant/kernels.h"
#include "quant/tables.h"
#include "quant/ties.h"

static struct stload golden;
static const struct qf_kernels *k;

/* One source tensor, widened. */
struct source {
    char name[64]; /* "normal.BF16" */
    enum qf_dtype dtype;
    void *raw;
    float *wide;
    size_t n;
    size_t rows;
    size_t cols;
};

struct counts {
    size_t elements;
    size_t zero_blocks;
    size_t fp4_near;
    size_t int8_near;
    size_t nested_far; /* offset or nested_absmax not equal, within 2 ulp */
};

static void *get(const char *prefix, const char *suffix, size_t want_size)
{
    size_t size;
    void *p = stload_get(&golden, prefix, suffix, &size);
    assert_non_null(p);
    assert_int_equal(size, want_size);
    return p;
}

/* ---- 4-bit ---- */

static unsigned nibble(const uint8_t *packed, size_t i)
{
    return i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15u;
}

static void check_4bit(const struct source *s, bool fp4, struct counts *c)
{
    size_t bytes = (s->n + 1) / 2;
    size_t blocks = (s->n + 63) / 64;
    uint8_t *want = get(s->name, fp4 ? "fp4.packed" : "nf4.packed", bytes);
    float *want_absmax =
        get(s->name, fp4 ? "fp4.absmax" : "nf4.absmax", blocks * sizeof(float));
    uint8_t *got = malloc(bytes);
    float *absmax = malloc(blocks * sizeof *absmax);
    assert_true(got != NULL && absmax != NULL);
    (fp4 ? k->fp4 : k->nf4)[s->dtype](s->raw, s->n, 64, got, absmax);
    assert_memory_equal(absmax, want_absmax, blocks * sizeof *absmax);
    for (size_t b = 0; b < blocks; b++) {
        if (absmax[b] == 0) {
            c->zero_blocks++;
            continue;
        }
        for (size_t i = b * 64; i < (b + 1) * 64 && i < 2 * bytes; i++) {
            if (nibble(got, i) == nibble(want, i))
                continue;
            float y = i < s->n ? s->wide[i] * (1.0f / absmax[b]) : 0;
            if (!fp4 || !qf_tie_4bit(true, y, nibble(want, i)))
                fail_msg("%s %s %s: code %zu is %u, was %u (y = %a)", k->name, s->name,
                         fp4 ? "fp4" : "nf4", i, nibble(got, i), nibble(want, i),
                         (double)y);
            c->fp4_near++;
        }
    }
    free(want);
    free(want_absmax);
    free(got);
    free(absmax);
}

/* quant_map[code] * absmax, rounded to the dtype: the bytes that a loader computes. */
static void check_dequantized(const struct source *s)
{
    size_t width = qf_dtype_size(s->dtype);
    char *want = get(s->name, "nf4.dequantized", s->n * width);
    uint8_t *packed = get(s->name, "nf4.packed", (s->n + 1) / 2);
    float *absmax = get(s->name, "nf4.absmax", (s->n + 63) / 64 * sizeof *absmax);
    float *values = malloc(s->n * sizeof *values);
    float map[16];
    assert_non_null(values);
    qf_dequant_map(QF_CODEC_NF4, map);
    k->dequant_4bit(packed, s->n, 64, map, absmax, values);
    for (size_t i = 0; i < s->n; i++) {
        float expected;
        float got;
        char rounded[4];
        k->cast[QF_F32][s->dtype](&values[i], 1, rounded);
        k->cast[s->dtype][QF_F32](rounded, 1, &got);
        k->cast[s->dtype][QF_F32](want + i * width, 1, &expected);
        assert_true(got == expected || (isnan(got) && isnan(expected)));
    }
    free(values);
    free(want);
    free(packed);
    free(absmax);
}

static void check_nested(const struct source *s, struct counts *c)
{
    size_t blocks = (s->n + 63) / 64;
    size_t nested = (blocks + 255) / 256;
    float *absmax = get(s->name, "nf4.absmax", blocks * sizeof *absmax);
    float *want_offset = get(s->name, "dq.nested_offset", sizeof *want_offset);
    float *want_absmax = get(s->name, "dq.nested_absmax", nested * sizeof *want_absmax);
    uint8_t *want = get(s->name, "dq.absmax", blocks);
    uint8_t *got = malloc(blocks);
    float *got_absmax = malloc(nested * sizeof *got_absmax);
    assert_true(got != NULL && got_absmax != NULL);
    float offset = k->mean(absmax, blocks);
    assert_true(qf_within_ulps(offset, *want_offset, QF_TIE_ULPS));
    c->nested_far += offset != *want_offset;
    k->nested(absmax, blocks, *want_offset, got, got_absmax);
    assert_memory_equal(got, want, blocks);
    assert_memory_equal(got_absmax, want_absmax, nested * sizeof *got_absmax);
    k->nested(absmax, blocks, offset, got, got_absmax);
    assert_memory_equal(got, want, blocks);
    float ulp = nextafterf(offset, INFINITY) - offset;
    for (size_t i = 0; i < nested; i++) {
        assert_true(fabsf(got_absmax[i] - want_absmax[i]) <= 2 * ulp);
        c->nested_far += got_absmax[i] != want_absmax[i];
    }
    free(absmax);
    free(want_offset);
    free(want_absmax);
    free(want);
    free(got);
    free(got_absmax);
}

/* ---- int8 ---- */

static float fp16_of(float x)
{
    return qf_f32_of_bits(qf_f16_to_f32_bits(qf_f32_bits_to_f16(qf_f32_bits(x))));
}

static void check_int8(const struct source *s, struct counts *c)
{
    float *want_scb = get(s->name, "int8.SCB", s->rows * sizeof *want_scb);
    int8_t *want = get(s->name, "int8.weight", s->n);
    int8_t *got = malloc(s->n);
    assert_non_null(got);
    for (size_t row = 0; row < s->rows; row++) {
        const char *raw =
            (const char *)s->raw + row * s->cols * qf_dtype_size(s->dtype);
        float scb = 0;
        k->row_absmax[s->dtype](raw, s->cols, &scb);
        assert_memory_equal(&scb, &want_scb[row], sizeof scb);
        int8_t *codes = got + row * s->cols;
        k->int8[s->dtype](raw, s->cols, scb, codes);
        for (size_t i = 0; i < s->cols; i++) {
            if (codes[i] == want[row * s->cols + i])
                continue;
            float p = fp16_of(s->wide[row * s->cols + i]) * (1.0f / scb * 127.0f);
            if (!qf_tie_int8(p, want[row * s->cols + i]))
                fail_msg("%s %s int8: code [%zu, %zu] is %d, was %d (product %a)",
                         k->name, s->name, row, i, codes[i], want[row * s->cols + i],
                         (double)p);
            c->int8_near++;
        }
    }
    free(want_scb);
    free(want);
    free(got);
}

/* ---- all ---- */

static bool open_source(const struct qf_tensor *t, struct source *s)
{
    size_t length = strlen(t->name);
    if (length < 4 || strcmp(t->name + length - 4, ".src") != 0)
        return false;
    size_t size;
    snprintf(s->name, sizeof s->name, "%.*s", (int)(length - 4), t->name);
    s->raw = stload_get(&golden, s->name, "src", &size);
    assert_true(s->raw != NULL && t->rank == 2);
    s->dtype = t->dtype;
    s->rows = (size_t)t->shape[0];
    s->cols = (size_t)t->shape[1];
    s->n = s->rows * s->cols;
    s->wide = malloc(s->n * sizeof *s->wide);
    assert_non_null(s->wide);
    qf_kernels_for(QF_ISA_SCALAR)->cast[s->dtype][QF_F32](s->raw, s->n, s->wide);
    return true;
}

static void test_isa(void **state)
{
    (void)state;
    size_t sources = 0;
    struct counts c = {0};
    for (size_t i = 0; i < golden.shard->tensor_count; i++) {
        struct source s;
        if (!open_source(&golden.shard->tensors[i], &s))
            continue;
        sources++;
        c.elements += s.n;
        check_4bit(&s, false, &c);
        check_4bit(&s, true, &c);
        check_dequantized(&s);
        check_nested(&s, &c);
        check_int8(&s, &c);
        free(s.raw);
        free(s.wide);
    }
    assert_true(sources >= 20);
    printf("%s: %zu tensors, %zu elements; apart: %zu all-zero blocks; fp4 codes at a "
           "threshold %zu, int8 codes at a half %zu, offsets and nested absmax an ulp "
           "or two away %zu\n",
           k->name, sources, c.elements, c.zero_blocks, c.fp4_near, c.int8_near,
           c.nested_far);
}

static void test_maps(void **state)
{
    (void)state;
    float *nf4 = get("nf4", "quant_map", 64);
    float *fp4 = get("fp4", "quant_map", 64);
    assert_memory_equal(nf4, qf_nf4_values, 64);
    assert_memory_equal(fp4, qf_fp4_values, 64);
    const struct qf_tensor *t = qf_shard_find(golden.shard, "nested_quant_map");
    assert_non_null(t);
    assert_int_equal(t->size, 1024);
    assert_memory_equal(golden.file + t->off, qf_dynamic_values, 1024);
    free(nf4);
    free(fp4);
}

static int set_isa(void **state)
{
    k = qf_kernels_for(*(const enum qf_isa *)*state);
    return 0;
}

int main(int argc, char **argv)
{
    static enum qf_isa levels[QF_ISA_COUNT] = {QF_ISA_SCALAR, QF_ISA_AVX2,
                                               QF_ISA_AVX512};
    struct CMUnitTest tests[1 + QF_ISA_COUNT] = {cmocka_unit_test(test_maps)};
    size_t count = 1;
    assert(argc == 2);
    golden = stload_open(argv[1]);
    for (int i = 0; i <= (int)qf_isa_detect(); i++)
        tests[count++] = (struct CMUnitTest){.name = qf_isa_name((enum qf_isa)i),
                                             .test_func = test_isa,
                                             .setup_func = set_isa,
                                             .initial_state = &levels[i]};
    int failed = _cmocka_run_group_tests("golden", tests, count, NULL, NULL);
    stload_close(&golden);
    return failed;
}
