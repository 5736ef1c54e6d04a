/* SPDX-License-Identifier: Apache-2.0 */
/* The whole road from a stored tensor to the parts of its quantized form, on every
 * backend of this machine, against the numpy reference: vectors.safetensors holds
 * sources and parts (see make_vectors.py for its names and how to make it anew). */
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
    {"absmax", QF_PART_ABSMAX},
    {"scb", QF_PART_SCB},
    {"nested_codes", QF_PART_NESTED_CODES},
    {"nested_absmax", QF_PART_NESTED_ABSMAX},
    {"nested_quant_map", QF_PART_NESTED_QUANT_MAP},
    {"quant_map", QF_PART_QUANT_MAP},
    {"state", QF_PART_QUANT_STATE},
};

static void compare(const char *name, const struct qf_plan *plan, const struct parts *r)
{
    size_t compared = 0;
    for (size_t i = 0; i < sizeof part_names / sizeof *part_names; i++) {
        size_t size;
        char *want = stload_get(&vectors, name, part_names[i].name, &size);
        const struct qf_part *part = qf_plan_part(plan, part_names[i].role);
        assert_true((want != NULL) == (part != NULL));
        if (want == NULL)
            continue;
        if (part->size != size || memcmp(r->data[part - plan->parts], want, size) != 0)
            fail_msg("%s.%s differs", name, part_names[i].name);
        free(want);
        compared++;
    }
    assert_true(compared >= 2);
}

/* Splits "c00.nf4.F32.BF16.64.n" (ended by ".src"). */
static bool parse_case(const struct qf_tensor *t, char *name, struct qf_plan *plan)
{
    char copy[64];
    char codec[8];
    char dtype[8];
    unsigned blocksize;
    char order;
    size_t length = strlen(t->name);
    if (length < 4 || length >= sizeof copy ||
        strcmp(t->name + length - 4, ".src") != 0)
        return false;
    memcpy(name, t->name, length - 4);
    name[length - 4] = '\0';
    assert_int_equal(sscanf(name, "c%*u.%7[^.].%*[^.].%7[^.].%u.%c", codec, dtype,
                            &blocksize, &order),
                     4);
    enum qf_codec which = QF_CODEC_COUNT;
    assert_true(qf_codec_from_name(codec, &which));
    struct qf_codec_spec spec =
        qf_codec_default(which, qf_dtype_from_name(dtype, strlen(dtype)));
    spec.blocksize = blocksize;
    assert_int_equal(qf_codec_plan(&spec, t->dtype, t->shape, order == 't', plan, NULL),
                     0);
    return true;
}

static void test_backend(void **state)
{
    qf_backend *backend = NULL;
    struct qf_err err = {""};
    /* The seal takes its kernels from here. */
    assert_int_equal(setenv("QUANTFS_ISA", *state, 1), 0);
    assert_int_equal(qf_cpu_backend_open(*state, &backend, &err), 0);
    assert_string_equal(qf_backend_name(backend), *state);
    size_t cases = 0;
    for (size_t i = 0; i < vectors.shard->tensor_count; i++) {
        const struct qf_tensor *t = &vectors.shard->tensors[i];
        char name[64];
        struct qf_plan plan;
        if (!parse_case(t, name, &plan))
            continue;
        struct parts_source source = {vectors.file + t->off, t->size};
        struct parts r = {{NULL}};
        parts_make(backend, &plan, &source, &r);
        compare(name, &plan, &r);
        parts_free(&plan, &r);
        cases++;
    }
    assert_true(cases >= 60);
    qf_backend_close(backend);
    unsetenv("QUANTFS_ISA");
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
    int failed = _cmocka_run_group_tests("vectors", tests, count, NULL, NULL);
    stload_close(&vectors);
    return failed;
}
