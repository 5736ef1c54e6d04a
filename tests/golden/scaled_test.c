/* SPDX-License-Identifier: Apache-2.0 */
/* Every backend of this machine gives what torchao, compressed-tensors and transformers
 * themselves made of the weights in scaled.safetensors (make_scaled.py), byte for byte.
 * Allowed is what no loader could use: rows whose torchao float8 scale is 0, for which
 * torchao divides by it (NaN) and we have the scale 1. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "golden/parts.h"
#include "golden/stload.h"
#include "quant/backend.h"
#include "quant/kernels.h"

static struct stload vectors;

static const struct {
    const char *name;
    enum qf_part_role role;
} part_names[] = {
    {"codes", QF_PART_CODES},
    {"scale", QF_PART_SCALE},
    {"zero_point", QF_PART_ZERO_POINT},
    {"shape", QF_PART_SHAPE},
};

/* Makes the row ours where that is allowed; true if it was. */
static bool allow_row(const struct qf_plan *plan, const struct parts *got, uint64_t row,
                      char *codes, char *scales)
{
    enum qf_scaled scaled = qf_codec_info(plan->spec.codec)->scaled;
    const struct qf_part *part = qf_plan_part(plan, QF_PART_SCALE);
    float scale;
    float ours;
    if (qf_codec_info(plan->spec.codec)->family != QF_FAMILY_TORCHAO ||
        scaled == QF_SCALED_I8_MUL)
        return false;
    memcpy(&scale, scales + row * sizeof scale, sizeof scale);
    if (scale != 0)
        return false;
    memcpy(&ours, got->data[part - plan->parts] + row * sizeof ours, sizeof ours);
    assert_true(ours == 1);
    memcpy(scales + row * sizeof scale, &ours, sizeof ours);
    part = qf_plan_part(plan, QF_PART_CODES);
    memcpy(codes + row * plan->cols, got->data[part - plan->parts] + row * plan->cols,
           (size_t)plan->cols);
    return true;
}

static size_t compare(const char *name, const struct qf_plan *plan,
                      const struct parts *got)
{
    char *want[QF_PARTS_MAX] = {NULL};
    size_t allowed = 0;
    for (size_t i = 0; i < sizeof part_names / sizeof *part_names; i++) {
        size_t size;
        want[i] = stload_get(&vectors, name, part_names[i].name, &size);
        const struct qf_part *part = qf_plan_part(plan, part_names[i].role);
        assert_true((want[i] != NULL) == (part != NULL));
        if (part != NULL)
            assert_int_equal(part->size, size);
    }
    if (plan->spec.group == 0)
        for (uint64_t row = 0; row < plan->rows; row++)
            allowed += allow_row(plan, got, row, want[0], want[1]);
    for (size_t i = 0; i < sizeof part_names / sizeof *part_names; i++) {
        const struct qf_part *part = qf_plan_part(plan, part_names[i].role);
        if (part == NULL)
            continue;
        if (memcmp(got->data[part - plan->parts], want[i], (size_t)part->size) != 0)
            fail_msg("%s.%s differs", name, part_names[i].name);
        free(want[i]);
    }
    return allowed;
}

/* SOURCE.DTYPE of "SOURCE.DTYPE.src". */
static bool parse_source(const struct qf_tensor *t, char name[64])
{
    size_t length = strlen(t->name);
    if (length < 4 || length >= 64 || strcmp(t->name + length - 4, ".src") != 0)
        return false;
    memcpy(name, t->name, length - 4);
    name[length - 4] = '\0';
    return true;
}

static void test_backend(void **state)
{
    qf_backend *backend = NULL;
    struct qf_err err = {""};
    assert_int_equal(qf_cpu_backend_open(*state, &backend, &err), 0);
    size_t cases = 0;
    size_t rows = 0;
    size_t allowed = 0;
    for (size_t i = 0; i < vectors.shard->tensor_count * QF_CODEC_COUNT; i++) {
        const struct qf_tensor *t = &vectors.shard->tensors[i / QF_CODEC_COUNT];
        enum qf_codec codec = (enum qf_codec)(i % QF_CODEC_COUNT);
        char source[64];
        char name[96];
        if (!parse_source(t, source))
            continue;
        snprintf(name, sizeof name, "%s.%s.codes", source, qf_codec_name(codec));
        if (qf_shard_find(vectors.shard, name) == NULL)
            continue;
        snprintf(name, sizeof name, "%s.%s", source, qf_codec_name(codec));
        struct qf_plan plan;
        struct qf_codec_spec spec = qf_codec_default(codec, t->dtype);
        assert_int_equal(qf_codec_plan(&spec, t->dtype, t->shape, false, &plan, NULL),
                         0);
        struct parts_source memory = {vectors.file + t->off, t->size};
        struct parts got = {{NULL}};
        parts_make(backend, &plan, &memory, &got);
        allowed += compare(name, &plan, &got);
        parts_free(&plan, &got);
        rows += plan.rows;
        cases++;
    }
    print_message("%s: %zu cases, %zu rows, of which %zu allowed\n", (char *)*state,
                  cases, rows, allowed);
    assert_true(cases >= 180);
    qf_backend_close(backend);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[QF_ISA_COUNT];
    size_t count = 0;
    assert(argc == 2);
    vectors = stload_open(argv[1]);
    for (int i = 0; i <= (int)qf_isa_detect(); i++) {
        const char *isa = qf_isa_name((enum qf_isa)i);
        tests[count++] = (struct CMUnitTest){.name = isa,
                                             .test_func = test_backend,
                                             .initial_state = (void *)(uintptr_t)isa};
    }
    int failed = _cmocka_run_group_tests("scaled", tests, count, NULL, NULL);
    stload_close(&vectors);
    return failed;
}
