/* SPDX-License-Identifier: Apache-2.0 */
/* A comparison from a store to its totals: sizes, kinds, what is kept and cast, and
 * what happens to a source that changes or goes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/path.h"
#include "cache/store.h"
#include "compare/compare.h"
#include "support/stfile.h"
#include "support/tmpdir.h"

#define CONFIG                                                                         \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "          \
    "\"dtype\": \"bfloat16\"}"
#define SHARD "m/model.safetensors"
#define Q     "model.layers.0.self_attn.q_proj.weight"

struct ctx {
    char *dir;
    qf_root *root;
    qf_backend *backend;
    qf_store *store;
    qf_engine *engine;
    struct qf_model *model;
    size_t count;
    struct qf_variant *variants[QF_VIEWS_MAX];
};

/* q_proj: 100 x 130, not a whole number of blocks; its elements are all representable
 * as one block's scale times a value of the map but for one of each block. */
static void write_model(const char *dir, float spoil)
{
    static float q[100 * 130], norm[130];
    static int64_t ids[4];
    for (size_t i = 0; i < 100 * 130; i++)
        q[i] = i % 64 == 0 ? 1 : (float)((int)(i % 3) - 1);
    q[77] = spoil;
    for (size_t i = 0; i < 130; i++)
        norm[i] = 1 + (float)i * 0x1p-12f; /* rounded by the cast to bfloat16 */
    const struct stfile_tensor tensors[] = {
        {"model.ids", QF_I64, 1, {4}, ids},
        {"model.norm.weight", QF_F32, 1, {130}, norm},
        {Q, QF_F32, 2, {100, 130}, q},
        {"lm_head.weight", QF_BF16, 2, {8, 130}, NULL},
    };
    stfile_write(dir, SHARD, tensors, 4);
    tmpdir_write_text(dir, "m/config.json", CONFIG);
}

/* adjust: changes the views' settings; may be NULL. */
static void begin_in(struct ctx *c, char *dir, const char *views,
                     void (*adjust)(struct qf_view *views))
{
    struct qf_view parsed[QF_VIEWS_MAX];
    struct qf_engine_options options = {.thread_count = 2};
    *c = (struct ctx){.dir = dir};
    assert_int_equal(qf_root_open(c->dir, &c->root, NULL), 0);
    assert_int_equal(qf_cpu_backend_open(NULL, &c->backend, NULL), 0);
    assert_int_equal(qf_store_mem_open(0, &c->store), 0);
    options.backend = c->backend;
    options.store = c->store;
    assert_int_equal(qf_engine_new(&options, &c->engine), 0);
    assert_int_equal(qf_model_load(c->root, "m", &c->model, NULL), 0);
    assert_string_equal(c->model->reason, "");
    assert_int_equal(qf_view_parse_list(views, parsed, &c->count, NULL), 0);
    if (adjust != NULL)
        adjust(parsed);
    for (size_t i = 0; i < c->count; i++) {
        assert_int_equal(qf_variant_new(c->model, &parsed[i], &c->variants[i]), 0);
        assert_string_equal(c->variants[i]->reason, "");
    }
}

static void begin(struct ctx *c, const char *views, float spoil,
                  void (*adjust)(struct qf_view *views))
{
    char *dir = tmpdir_make();
    write_model(dir, spoil);
    begin_in(c, dir, views, adjust);
}

static void end(struct ctx *c)
{
    for (size_t i = 0; i < c->count; i++)
        qf_variant_free(c->variants[i]);
    qf_model_free(c->model);
    qf_engine_free(c->engine);
    qf_store_close(c->store);
    qf_backend_close(c->backend);
    qf_root_close(c->root);
    tmpdir_remove(c->dir);
}

static int run(struct ctx *c, struct qf_compare **out, struct qf_err *err)
{
    static const uint64_t origins[QF_VIEWS_MAX];
    const struct qf_compare_options options = {.root = c->root,
                                               .engine = c->engine,
                                               .thread_count = 3};
    const struct qf_compare_input input = {
        .path = "m",
        .model = c->model,
        .variant_count = c->count,
        .variants = (const struct qf_variant *const *)c->variants,
        .origins = origins};
    return qf_compare_run(&options, &input, out, err);
}

static const struct qf_compare_tensor *find(const struct qf_compare *compare,
                                            const char *name)
{
    for (size_t i = 0; i < compare->tensor_count; i++)
        if (strcmp(compare->tensors[i].src->name, name) == 0)
            return &compare->tensors[i];
    fail_msg("%s is missing", name);
    return NULL;
}

static void test_totals(void **state)
{
    (void)state;
    struct ctx c;
    struct qf_compare *got;
    begin(&c, "nf4:fp4:dq:int8", 0.5f, NULL);
    assert_int_equal(run(&c, &got, NULL), 0);
    assert_int_equal(got->tensor_count, 4);
    assert_int_equal(got->pair_count, 3);
    const struct qf_compare_tensor *q = find(got, Q);
    const struct qf_compare_tensor *norm = find(got, "model.norm.weight");
    const struct qf_compare_tensor *head = find(got, "lm_head.weight");
    const struct qf_compare_tensor *ids = find(got, "model.ids");
    for (size_t v = 0; v < 4; v++) {
        const struct qf_compare_view *view = &got->views[v];
        assert_int_equal(q->cells[v].kind, QF_COMPARE_QUANTIZED);
        assert_int_equal(q->cells[v].errors.count, 13000);
        assert_int_equal(norm->cells[v].kind, QF_COMPARE_CAST);
        assert_int_equal(norm->cells[v].size, 260);
        assert_true(norm->cells[v].errors.error > 0);
        assert_true(norm->cells[v].errors.max_abs <= 0x1p-8);
        assert_int_equal(head->cells[v].kind, QF_COMPARE_KEPT);
        assert_true(head->cells[v].errors.error == 0 && head->cells[v].errors.xx > 0);
        assert_false(ids->compared);
        assert_int_equal(ids->cells[v].errors.count, 0);
        assert_int_equal(view->quantized.tensor_count, 1);
        assert_int_equal(view->quantized.elem_count, 13000);
        assert_int_equal(view->all.elem_count, 4 + 130 + 13000 + 8 * 130);
        assert_int_equal(view->all.errors.count, 130 + 13000 + 8 * 130);
        for (size_t i = 0; i < view->variant->file_count; i++)
            if (view->variant->files[i].layout != NULL)
                assert_int_equal(view->all.size,
                                 view->variant->files[i].layout->tensor_bytes);
    }
    /* Only 0.5 is off: int8 has 64/127, nf4 0.4407098, fp4 exactly 0.5. */
    assert_true(fabs(q->cells[0].errors.max_abs - (0.5 - 0.44070982933044434)) < 1e-7);
    assert_true(q->cells[1].errors.max_abs == 0);
    assert_true(q->cells[2].errors.max_abs == q->cells[0].errors.max_abs);
    assert_true(fabs(q->cells[3].errors.max_abs - (64.0 / 127 - 0.5)) < 1e-6);
    for (size_t p = 0; p < 3; p++) {
        bool maps = got->pairs[p].a == 0 && got->pairs[p].b == 2; /* nf4 and dq */
        assert_int_equal(got->pairs[p].same_map, maps);
        assert_int_equal(got->pairs[p].code_count, 13000);
        assert_int_equal(got->pairs[p].differing, maps ? 0 : 13000);
        assert_true(head->differing[p] == QF_COMPARE_NO_CODES);
    }
    qf_compare_free(got);
    end(&c);
}

/* q_proj: 256 x 384, all from -127 to 127 of a hundredth, but for the last block of
 * fp8, which is ten times as large. */
static void write_blocks(const char *dir)
{
    static float q[256 * 384];
    for (size_t i = 0; i < 256 * 384; i++) {
        size_t row = i / 384, col = i % 384;
        float x = (float)((int)((i * 7 + row) % 255) - 127) * 0.01f;
        q[i] = row >= 128 && col >= 256 ? 10 * x : x;
    }
    const struct stfile_tensor tensors[] = {{Q, QF_F32, 2, {256, 384}, q}};
    stfile_write(dir, SHARD, tensors, 1);
    tmpdir_write_text(dir, "m/config.json", CONFIG);
}

static void f32_of_views(struct qf_view *views)
{
    for (size_t i = 0; i < 10; i++)
        views[i].dtype = QF_F32;
}

/* What each scaled codec may be off by: half a step of its codes at the absmax (12.7 in
 * the lower rows), of which integers have 127.5 and 7.5, floats 16 and 8 a binade. */
static void test_scaled(void **state)
{
    (void)state;
    struct ctx c;
    struct qf_compare *got;
    char *dir = tmpdir_make();
    write_blocks(dir);
    begin_in(&c, dir,
             "ao-int8wo:ao-int8dq:ct-w8a8:ct-w8a16:ct-w4a16:ao-float8wo:ct-fp8:fp8:"
             "ao-float8wo-e5m2:nf4",
             f32_of_views);
    assert_int_equal(run(&c, &got, NULL), 0);
    const struct qf_compare_tensor *q = find(got, Q);
    const double codes = 256 * 384;
    static const double most[9] = {0.06, 0.06, 0.06, 0.06, 0.86,
                                   0.46, 0.46, 0.46, 0.92};
    for (size_t v = 0; v < 10; v++) {
        const struct qf_errors *e = &q->cells[v].errors;
        assert_int_equal(q->cells[v].kind, QF_COMPARE_QUANTIZED);
        assert_int_equal(e->count, 256 * 384);
        assert_true(e->max_abs > 0 && (v == 9 || e->max_abs < most[v]));
        assert_true(qf_errors_cosine(e) > 0.99);
    }
    /* The same records, made once: the same errors. A scale for each block is better
     * than one for a row with a larger block in it. */
    assert_true(q->cells[0].errors.error == q->cells[1].errors.error);
    struct qf_engine_stats stats;
    qf_engine_stats(c.engine, &stats);
    assert_int_equal(stats.chunks_encoded, 9);
    assert_true(q->cells[3].errors.error < q->cells[2].errors.error);
    /* Like with like: three views of bytes, three of E4M3; others stand alone. */
    assert_int_equal(got->pair_count, 6);
    for (size_t p = 0; p < got->pair_count; p++) {
        const struct qf_compare_pair *pair = &got->pairs[p];
        assert_true(pair->same_map && (pair->b <= 2 || (pair->a >= 5 && pair->b <= 7)));
        assert_true((double)pair->code_count == codes);
        if (pair->b == 1)
            assert_int_equal(pair->differing, 0);
        if (pair->b == 7) /* other scales */
            assert_true(pair->differing > 1000 && pair->differing < 256 * 384);
    }
    qf_compare_free(got);
    end(&c);
}

static void other_settings(struct qf_view *views)
{
    views[0].blocksize = 4096;
    views[1].blocksize = 128;
    views[1].storage = QF_BF16;
    views[2].blocksize = 256;
    views[2].dtype = QF_F16;
}

/* All blocks have the absmax 1, whatever their size. */
static void test_settings(void **state)
{
    (void)state;
    struct ctx c;
    struct qf_compare *got;
    begin(&c, "nf4:fp4:dq", 0.5f, other_settings);
    assert_int_equal(run(&c, &got, NULL), 0);
    const struct qf_compare_tensor *q = find(got, Q);
    const double want[3] = {0.5 - 0.44070982933044434, 0, 0.5 - 0.44070982933044434};
    const uint64_t blocks[3] = {4, 102, 51};
    for (size_t v = 0; v < 3; v++) {
        assert_int_equal(q->cells[v].kind, QF_COMPARE_QUANTIZED);
        assert_true(fabs(q->cells[v].errors.max_abs - want[v]) < 1e-7);
        assert_true(q->cells[v].errors.error <= want[v] * want[v] + 1e-9);
        uint64_t scales = v == 2 ? blocks[v] + 4 + 1024 : 4 * blocks[v];
        uint64_t fixed = 6500 + scales + 64; /* codes, absmax, map; then quant_state */
        assert_in_range(q->cells[v].size, fixed + 80, fixed + 220);
    }
    qf_compare_free(got);
    end(&c);
}

/* An infinity takes its block, or row, along; all of it is counted and out. */
static void test_not_finite(void **state)
{
    (void)state;
    struct ctx c;
    struct qf_compare *got;
    begin(&c, "nf4:int8", INFINITY, NULL);
    assert_int_equal(run(&c, &got, NULL), 0);
    const struct qf_compare_tensor *q = find(got, Q);
    assert_int_equal(q->cells[0].errors.source_not_finite, 1);
    assert_int_equal(q->cells[0].errors.view_not_finite, 63);
    assert_int_equal(q->cells[1].errors.source_not_finite, 1);
    assert_int_equal(q->cells[1].errors.view_not_finite, 129);
    for (size_t v = 0; v < 2; v++)
        assert_true(isfinite(qf_errors_mse(&got->views[v].all.errors)));
    qf_compare_free(got);
    end(&c);
}

static void test_source_changes(void **state)
{
    (void)state;
    struct ctx c;
    struct qf_compare *got;
    struct qf_err err = {""};
    begin(&c, "nf4", 0, NULL);
    usleep(20000); /* the times of files move in steps */
    write_model(c.dir, 2);
    assert_int_equal(run(&c, &got, &err), -ESTALE);
    assert_non_null(strstr(err.text, "model.safetensors"));
    assert_non_null(strstr(err.text, "changed"));
    char *path = qf_path_join(c.dir, SHARD);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(run(&c, &got, &err), -ENOENT);
    assert_non_null(strstr(err.text, "model.safetensors"));
    free(path);
    end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scaled),         cmocka_unit_test(test_totals),
        cmocka_unit_test(test_settings),       cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_source_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
