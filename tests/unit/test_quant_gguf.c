/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF's codecs: plans whose records a cache can keep, and a backend whose records are
 * what the kernel makes of the whole tensor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it. */
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "quant/backend.h"
#include "quant/gguf.h"

#define CODECS (QF_CODEC_GGUF_Q5_1 - QF_CODEC_GGUF_Q8_0 + 1)

static enum qf_codec codec_of(int i)
{
    return (enum qf_codec)(QF_CODEC_GGUF_Q8_0 + i);
}

static int plan_of(enum qf_codec codec, uint64_t rows, uint64_t cols, bool transposed,
                   struct qf_plan *out, struct qf_err *err)
{
    struct qf_codec_spec spec = qf_codec_default(codec, QF_BF16);
    const uint64_t shape[2] = {rows, cols};
    return qf_codec_plan(&spec, QF_BF16, shape, transposed, out, err);
}

static void test_plans(void **state)
{
    (void)state;
    static const size_t sizes[CODECS] = {34, 18, 20, 22, 24};
    for (int i = 0; i < CODECS; i++) {
        struct qf_plan plan;
        struct qf_err err = {""};
        assert_int_equal(plan_of(codec_of(i), 5000, 1056, false, &plan, &err), 0);
        assert_int_equal(plan.part_count, 1);
        assert_int_equal(plan.parts[0].size, 5000 * 33 * sizes[i]);
        uint64_t sum = 0;
        for (uint64_t n = 0; n < plan.chunk_count; n++) {
            assert_true(qf_plan_chunk_size(&plan, n) + 64 <= QF_STORED_SIZE_MAX);
            sum += qf_plan_chunk_size(&plan, n);
        }
        assert_int_equal(sum, plan.parts[0].size);
        assert_int_equal(plan_of(codec_of(i), 32, 33, false, &plan, &err), -ENOTSUP);
        assert_non_null(strstr(err.text, "33"));
        assert_int_equal(plan_of(codec_of(i), 64, 64, true, &plan, &err), -ENOTSUP);
    }
    struct qf_plan plan;
    struct qf_err err = {""};
    assert_int_equal(plan_of(QF_CODEC_GGUF_F16, 64, 64, false, &plan, &err), -ENOTSUP);
    assert_int_equal(plan_of(QF_CODEC_GGUF_BF16, 64, 64, false, &plan, &err), -ENOTSUP);
}

struct source {
    const unsigned char *bytes;
    int rc;
};

static int read_source(void *ctx, void *buf, size_t size, uint64_t off)
{
    struct source *s = ctx;
    memcpy(buf, s->bytes + off, size);
    return s->rc;
}

static void test_records(void **state)
{
    (void)state;
    enum { ROWS = 1100, COLS = 1056, N = ROWS * COLS };
    uint16_t *x = malloc(N * sizeof *x);
    uint8_t *want = malloc(N / 32 * 34), *record = aligned_alloc(64, 1 << 20);
    qf_backend *backend;
    uint32_t seed = 1;
    assert_true(x != NULL && want != NULL && record != NULL);
    for (size_t i = 0; i < N; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (uint16_t)((seed >> 16 & 0x83ffu) | 0x3c00u);
    }
    assert_int_equal(qf_cpu_backend_open(NULL, &backend, NULL), 0);
    for (int i = 0; i < CODECS; i++) {
        struct qf_plan plan;
        struct source source = {(const unsigned char *)x, 0};
        assert_int_equal(plan_of(codec_of(i), ROWS, COLS, false, &plan, NULL), 0);
        qf_kernels_for(QF_ISA_SCALAR)
            ->gguf[qf_gguf_block_of(codec_of(i))][QF_BF16](x, N / 32, want);
        for (uint64_t n = 0; n < plan.chunk_count; n++) {
            struct qf_job job = {.plan = &plan,
                                 .chunk = n,
                                 .source = {.read = read_source,
                                            .ctx = &source,
                                            .fd = -1},
                                 .record = record};
            qf_backend_encode(backend, &job, 1);
            assert_int_equal(job.rc, 0);
            assert_memory_equal(record, want + n * plan.parts[0].chunk_stride,
                                qf_plan_chunk_size(&plan, n));
            source.rc = -EIO;
            qf_backend_encode(backend, &job, 1);
            assert_int_equal(job.rc, -EIO);
            source.rc = 0;
        }
    }
    qf_backend_close(backend);
    free(record);
    free(want);
    free(x);
}

static void test_names(void **state)
{
    (void)state;
    enum qf_codec codec;
    assert_true(qf_codec_from_name("gguf-q5_1", &codec));
    assert_int_equal(codec, QF_CODEC_GGUF_Q5_1);
    assert_string_equal(qf_gguf_info(codec)->name, "Q5_1");
    assert_string_equal(qf_gguf_info(QF_CODEC_GGUF_BF16)->name, "BF16");
    assert_int_equal(qf_gguf_info(QF_CODEC_GGUF_BF16)->dtype, QF_BF16);
    assert_int_equal(qf_gguf_info(QF_CODEC_GGUF_F16)->dtype, QF_F16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_records),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
