/* SPDX-License-Identifier: Apache-2.0 */
/* Headers of bitsandbytes checkpoints: what they stand for, and every reason not to
 * believe them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "ckpt/bnb.h"
#include "ckpt/model.h"
#include "support/stfile.h"
#include "support/tmpdir.h"

#define STATE       ".quant_state.bitsandbytes__nf4"
#define TENSORS_MAX 16

/* A file that a test changes before it is parsed. */
struct file {
    size_t count;
    struct stfile_tensor tensors[TENSORS_MAX];
};

static const float map[16] = {-1, -0.5f, 0, 0.25f, 1};
static const float nested_map[256] = {0.125f, 0.5f};
static const unsigned char zero, one = 1;

static struct stfile_tensor *add(struct file *f, const char *name, enum qf_dtype dtype,
                                 uint64_t count, const void *data)
{
    assert_true(f->count < TENSORS_MAX);
    struct stfile_tensor *t = &f->tensors[f->count++];
    *t = (struct stfile_tensor){name, dtype, 1, {count, 0, 0, 0}, data};
    return t;
}

static struct stfile_tensor *find(struct file *f, const char *name)
{
    for (size_t i = 0; i < f->count; i++)
        if (strcmp(f->tensors[i].name, name) == 0)
            return &f->tensors[i];
    fail_msg("no %s", name);
    return NULL;
}

static void drop(struct file *f, const char *name)
{
    struct stfile_tensor *t = find(f, name);
    *t = f->tensors[--f->count];
}

static void set_state(struct file *f, const char *text)
{
    struct stfile_tensor *t = find(f, "a.weight" STATE);
    t->data = text;
    t->shape[0] = strlen(text);
}

/* a.weight [5, 51]: 255 elements, 128 bytes of codes, 4 blocks; and a plain norm. */
static struct file nf4_file(void)
{
    struct file f = {0};
    add(&f, "norm.weight", QF_F16, 8, NULL);
    add(&f, "a.weight", QF_U8, 128, NULL);
    add(&f, "a.weight.absmax", QF_F32, 4, NULL);
    add(&f, "a.weight.quant_map", QF_F32, 16, map);
    add(&f, "a.weight" STATE, QF_U8, 0, NULL);
    set_state(&f, "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": "
                  "\"bfloat16\", \"shape\": [5, 51]}  ");
    return f;
}

#define NESTED(size, dtype, offset)                                                    \
    "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"torch.float16\", "      \
    "\"shape\": [5, 51], \"nested_blocksize\": " size ", \"nested_dtype\": " dtype     \
    ", \"nested_offset\": " offset "}"

static struct file dq_file(void)
{
    struct file f = nf4_file();
    find(&f, "a.weight.absmax")->dtype = QF_U8;
    add(&f, "a.weight.nested_absmax", QF_F32, 2, NULL);
    add(&f, "a.weight.nested_quant_map", QF_F32, 256, nested_map);
    set_state(&f, NESTED("2", "\"float32\"", "0.0625"));
    return f;
}

static struct file int8_file(void)
{
    struct file f = {0};
    struct stfile_tensor *t = add(&f, "a.weight", QF_I8, 3, NULL);
    t->rank = 2;
    t->shape[1] = 7;
    add(&f, "a.SCB", QF_F32, 3, NULL);
    add(&f, "a.weight_format", QF_U8, 1, &zero)->rank = 0;
    add(&f, "norm.weight", QF_BF16, 8, NULL);
    return f;
}

/* Parses, as a model's loading does; *stored is what the file has. */
static int parse(const struct file *f, struct qf_shard **out, struct qf_err *err)
{
    size_t size;
    unsigned char *data = stfile_make(f->tensors, f->count, &size);
    uint64_t n = qf_load_u64(data);
    struct qf_shard *stored = NULL;
    assert_int_equal(qf_shard_parse(data, 8 + (size_t)n, size, &stored, err), 0);
    char **texts = calloc(f->count + 1, sizeof *texts);
    assert_non_null(texts);
    for (size_t i = 0; i < stored->tensor_count; i++) {
        const struct qf_tensor *t = &stored->tensors[i];
        if (!qf_bnb_is_small(t))
            continue;
        /* In a block of its own size, so that a sanitizer sees a read past it. */
        texts[i] = malloc(t->size > 0 ? (size_t)t->size : 1);
        assert_non_null(texts[i]);
        memcpy(texts[i], data + t->off, (size_t)t->size);
    }
    enum qf_dtype dtype = qf_bnb_plain_dtype(stored);
    int rc =
        qf_bnb_plain(stored, texts, dtype != QF_DTYPE_NONE ? dtype : QF_F32, out, err);
    if (rc != 0)
        qf_shard_free(stored);
    for (size_t i = 0; i < f->count; i++)
        free(texts[i]);
    free(texts);
    free(data);
    return rc;
}

static struct qf_shard *accept(const struct file *f)
{
    struct qf_err err = {.text = ""};
    struct qf_shard *shard = NULL;
    if (parse(f, &shard, &err) != 0)
        fail_msg("%s", err.text);
    return shard;
}

static void refuse(const struct file *f, const char *says)
{
    struct qf_err err = {.text = ""};
    struct qf_shard *shard = NULL;
    int rc = parse(f, &shard, &err);
    if (rc != -EBADMSG || strstr(err.text, says) == NULL)
        fail_msg("%d '%s', not '%s'", rc, err.text, says);
    assert_int_equal(parse(f, &shard, NULL), -EBADMSG);
}

static const struct qf_tensor *stored(const struct qf_shard *shard, const char *name)
{
    const struct qf_tensor *t = qf_shard_find(shard->stored, name);
    assert_non_null(t);
    return t;
}

/* ---- what is understood ---- */

static void test_nf4(void **state)
{
    (void)state;
    struct file f = nf4_file();
    struct qf_shard *shard = accept(&f);
    assert_int_equal(shard->tensor_count, 2);
    assert_int_equal(shard->file_size, shard->stored->file_size);
    assert_null(qf_shard_find(shard, "a.weight.absmax"));
    assert_null(qf_shard_find(shard, "norm.weight")->coded);
    const struct qf_tensor *t = qf_shard_find(shard, "a.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, QF_BF16);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->shape[0], 5);
    assert_int_equal(t->shape[1], 51);
    assert_int_equal(t->size, 510);
    assert_int_equal(t->off, stored(shard, "a.weight")->off);
    assert_int_equal(t->coded->kind, QF_CODED_NF4);
    assert_int_equal(t->coded->blocksize, 64);
    assert_int_equal(t->coded->absmax_off, stored(shard, "a.weight.absmax")->off);
    assert_memory_equal(t->coded->map, map, sizeof map);
    assert_false(t->coded->nested);
    assert_int_equal(t->coded->stored_size,
                     128 + 16 + 64 + stored(shard, "a.weight" STATE)->size);
    qf_shard_free(shard);
    /* Other names of the same things, and sizes at their limits. */
    static const char *const states[] = {
        "{\"quant_type\":\"fp4\",\"blocksize\":64,\"dtype\":\"float32\","
        "\"shape\":[255]}",
        "{\"quant_type\":\"fp4\",\"blocksize\":64,\"dtype\":\"float32\","
        "\"shape\":[1,5,51,1],\"more\":[]}"};
    for (size_t i = 0; i < 2; i++) {
        set_state(&f, states[i]);
        shard = accept(&f);
        t = qf_shard_find(shard, "a.weight");
        assert_int_equal(t->coded->kind, QF_CODED_FP4);
        assert_int_equal(t->size, 1020);
        qf_shard_free(shard);
    }
    find(&f, "a.weight")->dtype = QF_BF16; /* quant_storage */
    find(&f, "a.weight")->shape[0] = 64;
    find(&f, "a.weight.absmax")->shape[0] = 8;
    set_state(&f, "{\"quant_type\":\"fp4\",\"blocksize\":32,\"dtype\":\"float32\","
                  "\"shape\":[255]}");
    qf_shard_free(accept(&f));
}

static void test_dq(void **state)
{
    (void)state;
    struct file f = dq_file();
    struct qf_shard *shard = accept(&f);
    const struct qf_tensor *t = qf_shard_find(shard, "a.weight");
    assert_int_equal(t->dtype, QF_F16);
    assert_true(t->coded->nested);
    assert_int_equal(t->coded->nested_blocksize, 2);
    assert_true(t->coded->nested_offset == 0.0625f);
    assert_memory_equal(t->coded->nested_map, nested_map, sizeof nested_map);
    assert_int_equal(t->coded->nested_absmax_off,
                     stored(shard, "a.weight.nested_absmax")->off);
    qf_shard_free(shard);
}

static void test_int8(void **state)
{
    (void)state;
    struct file f = int8_file();
    for (int i = 0; i < 2; i++) {
        struct qf_shard *shard = accept(&f);
        const struct qf_tensor *t = qf_shard_find(shard, "a.weight");
        assert_int_equal(shard->tensor_count, 2);
        assert_int_equal(t->dtype, QF_BF16); /* the norm's */
        assert_int_equal(t->size, 42);
        assert_int_equal(t->coded->kind, QF_CODED_INT8);
        assert_int_equal(t->coded->row_size, 7);
        assert_int_equal(t->coded->scb_off, stored(shard, "a.SCB")->off);
        qf_shard_free(shard);
        if (i == 0)
            drop(&f, "a.weight_format");
    }
}

static void test_plain(void **state)
{
    (void)state;
    struct file f = {0};
    add(&f, "norm.weight", QF_F16, 8, NULL);
    add(&f, "ids", QF_U8, 8, NULL);
    struct qf_shard *shard = accept(&f);
    assert_null(shard->stored);
    assert_int_equal(shard->tensor_count, 2);
    qf_shard_free(shard);
    f.count = 0;
    add(&f, "ids", QF_U8, 8, NULL);
    shard = accept(&f);
    assert_int_equal(qf_bnb_plain_dtype(shard), QF_DTYPE_NONE);
    qf_shard_free(shard);
}

/* ---- what is refused ---- */

static void test_states(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"{\"quant_type\": \"nf4\"", "is not JSON"},
        {"[]", "quant_type is neither nf4 nor fp4"},
        {"{\"quant_type\":\"int8\",\"blocksize\":64}", "neither nf4 nor fp4"},
        {"{\"quant_type\":\"nf4\",\"blocksize\":48}", "blocksize is no power"},
        {"{\"quant_type\":\"nf4\",\"blocksize\":16}", "blocksize is no power"},
        {"{\"quant_type\":\"nf4\",\"blocksize\":8192}", "blocksize is no power"},
        {"{\"quant_type\":\"nf4\",\"blocksize\":-64}", "blocksize is no power"},
        {"{\"quant_type\":\"nf4\",\"blocksize\":64.5}", "blocksize is no power"},
        {"{\"quant_type\":\"nf4\",\"blocksize\":\"64\"}", "blocksize is no power"},
        {"{\"quant_type\":\"nf4\",\"blocksize\":64}", "dtype is not float32"},
        {"{\"quant_type\":\"nf4\",\"blocksize\":64,\"dtype\":\"float64\"}",
         "dtype is not float32"},
#define SHAPE(text)                                                                    \
    "{\"quant_type\":\"nf4\",\"blocksize\":64,\"dtype\":\"float16\",\"shape\":" text "}"
        {SHAPE("7"), "no list of 1 to 4 sizes"},
        {SHAPE("[]"), "no list of 1 to 4 sizes"},
        {SHAPE("[1,1,1,5,51]"), "no list of 1 to 4 sizes"},
        {SHAPE("[0,51]"), "no list of 1 to 4 sizes"},
        {SHAPE("[-5,51]"), "no list of 1 to 4 sizes"},
        {SHAPE("[5.5,51]"), "no list of 1 to 4 sizes"},
        {SHAPE("[\"5\",51]"), "no list of 1 to 4 sizes"},
        {SHAPE("[1e300,51]"), "no list of 1 to 4 sizes"},
        {SHAPE("[4294967296,4294967296]"), "no list of 1 to 4 sizes"},
        {SHAPE("[5,53]"), "tensor 'a.weight': its size does not fit the shape"},
        {SHAPE("[5,50]"), "tensor 'a.weight': its size does not fit the shape"},
        {"{\"quant_type\":\"nf4\",\"blocksize\":128,\"dtype\":\"float16\","
         "\"shape\":[5,51]}",
         "'a.weight.absmax': its size does not fit the shape"},
        {NESTED("256", "\"float32\"", "0.5"), "its nested_absmax is not in the same"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct file f = nf4_file();
        set_state(&f, cases[i].text);
        refuse(&f, cases[i].says);
    }
    struct file f = nf4_file();
    static char large[QF_BNB_STATE_SIZE_MAX + 2];
    memset(large, ' ', QF_BNB_STATE_SIZE_MAX + 1);
    memcpy(large, SHAPE("[5,51]"), strlen(SHAPE("[5,51]")));
    set_state(&f, large);
    refuse(&f, "is too large for a quant_state");
    large[QF_BNB_STATE_SIZE_MAX] = '\0';
    set_state(&f, large);
    qf_shard_free(accept(&f));
}

static void test_nested_states(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {NESTED("0", "\"float32\"", "0.5"), "nested_blocksize is no number"},
        {NESTED("65537", "\"float32\"", "0.5"), "nested_blocksize is no number"},
        {NESTED("2.5", "\"float32\"", "0.5"), "nested_blocksize is no number"},
        {NESTED("2", "\"float16\"", "0.5"), "nested_dtype is not float32"},
        {NESTED("2", "1", "0.5"), "nested_dtype is not float32"},
        {NESTED("2", "\"float32\"", "\"0.5\""), "nested_offset is no finite"},
        {NESTED("2", "\"float32\"", "NaN"), "nested_offset is no finite"},
        {NESTED("2", "\"float32\"", "1e39"), "nested_offset is no finite"},
        {NESTED("4", "\"float32\"", "0.5"), "'a.weight.nested_absmax': its size"},
        {SHAPE("[5,51]"), "nested_blocksize is no number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct file f = dq_file();
        set_state(&f, cases[i].text);
        refuse(&f, cases[i].says);
    }
    struct file f = dq_file();
    find(&f, "a.weight.nested_absmax")->shape[0] = 1;
    set_state(&f, NESTED("65536", "\"float32\"", "-0.5"));
    qf_shard_free(accept(&f));
}

static void test_parts(void **state)
{
    (void)state;
    static const char *const parts[] = {"absmax", "quant_map", "nested_quant_map"};
    char name[64], says[96];
    for (size_t i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "a.weight.%s", parts[i]);
        struct file f = dq_file();
        drop(&f, name);
        snprintf(says, sizeof says, "its %s is not in the same file", parts[i]);
        refuse(&f, says);
        f = dq_file();
        find(&f, name)->dtype = i == 0 ? QF_I8 : QF_I32;
        snprintf(says, sizeof says, "'%s': is not of dtype", name);
        refuse(&f, says);
        f = dq_file();
        find(&f, name)->shape[0]--;
        snprintf(says, sizeof says, "'%s': its size does not fit", name);
        refuse(&f, says);
    }
    struct file f = dq_file();
    drop(&f, "a.weight.nested_absmax");
    refuse(&f, "its nested_absmax is not in the same file");
    f = nf4_file();
    find(&f, "a.weight.absmax")->dtype = QF_F16;
    refuse(&f, "'a.weight.absmax': is not of dtype F32");
}

static void test_orphans(void **state)
{
    (void)state;
    static const char *const orphans[] = {"b.weight.absmax",
                                          "b.weight.quant_map",
                                          "b.weight.nested_absmax",
                                          "b.weight.nested_quant_map",
                                          "b.SCB",
                                          "b.weight_format",
                                          "a.weight.quant_state.bitsandbytes__fp4",
                                          "b.weight.quant_state.bitsandbytes__x"};
    for (size_t i = 0; i < sizeof orphans / sizeof *orphans; i++) {
        struct file f = nf4_file();
        add(&f, orphans[i], QF_U8, 1, &zero);
        refuse(&f, "belongs to no weight of the same file");
    }
    static const enum qf_dtype codes[] = {QF_U8, QF_I8};
    for (size_t i = 0; i < 2; i++) {
        struct file f = nf4_file();
        struct stfile_tensor *t = add(&f, "b.weight", codes[i], 2, NULL);
        t->rank = 2;
        t->shape[1] = 1;
        refuse(&f, "'b.weight': codes without a quant_state or SCB");
    }
    /* The weight is in another file, its parts are here. */
    struct file f = nf4_file();
    drop(&f, "a.weight");
    refuse(&f, "belongs to no weight of the same file");
}

static void test_int8_refused(void **state)
{
    (void)state;
    struct file f = int8_file();
    find(&f, "a.weight_format")->data = &one;
    refuse(&f, "'a.weight_format': a format of weights other than rows");
    f = int8_file();
    find(&f, "a.weight_format")->rank = 1;
    find(&f, "a.weight_format")->shape[0] = 2;
    find(&f, "a.weight_format")->data = "\0";
    refuse(&f, "a format of weights other than rows");
    f = int8_file();
    find(&f, "a.SCB")->shape[0] = 4;
    refuse(&f, "'a.SCB': is not one F32 for each row");
    f = int8_file();
    find(&f, "a.SCB")->dtype = QF_F16;
    refuse(&f, "'a.SCB': is not one F32 for each row");
    f = int8_file();
    find(&f, "a.weight")->rank = 1;
    refuse(&f, "'a.weight': is no matrix");
    f = int8_file();
    find(&f, "a.weight")->shape[1] = 0;
    refuse(&f, "'a.weight': is no matrix");
}

/* ---- directories ---- */

#define CONFIG(quantization)                                                           \
    "{\"model_type\": \"llama\", \"quantization_config\": " quantization "}"
#define BNB "{\"quant_method\": \"bitsandbytes\"}"

static struct qf_model *load(const char *dir, qf_root *root, const char *config,
                             const struct file *f)
{
    struct qf_model *model = NULL;
    tmpdir_write_text(dir, "m/config.json", config);
    stfile_write(dir, "m/model.safetensors", f->tensors, f->count);
    assert_int_equal(qf_model_load(root, "m", &model, NULL), 0);
    assert_int_equal(qf_model_check(root, "m", model), 0);
    return model;
}

static void test_model(void **state)
{
    (void)state;
    static const char *const configs[] = {
        CONFIG(BNB), CONFIG("{\"load_in_4bit\": true}"),
        CONFIG("{\"load_in_8bit\": true}"),
        "{\"model_type\":\"x\",\"text_config\":{\"quantization_config\":" BNB "}}"};
    char *dir = tmpdir_make();
    qf_root *root;
    assert_int_equal(qf_root_open(dir, &root, NULL), 0);
    struct file f = dq_file();
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        struct qf_model *model = load(dir, root, configs[i], &f);
        assert_string_equal(model->reason, "");
        assert_true(model->is_bnb);
        assert_int_equal(model->sets[0].shards[0].header->tensor_count, 2);
        qf_model_free(model);
    }
    static const struct {
        const char *config, *says;
    } refused[] = {{CONFIG("{\"quant_method\": \"gptq\", \"load_in_4bit\": true}"),
                    "already quantized (quant_method gptq)"},
                   {CONFIG("{\"load_in_4bit\": 1}"),
                    "already quantized (quant_method unknown)"},
                   {"{\"model_type\": \"llama\"}",
                    "already quantized (model.safetensors: "}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct qf_model *model = load(dir, root, refused[i].config, &f);
        if (strstr(model->reason, refused[i].says) == NULL)
            fail_msg("%s", model->reason);
        assert_false(model->is_bnb);
        assert_int_equal(model->set_count, 0);
        qf_model_free(model);
    }
    drop(&f, "a.weight.absmax");
    struct qf_model *model = load(dir, root, CONFIG(BNB), &f);
    assert_non_null(strstr(model->reason,
                           "already quantized (quant_method bitsandbytes), and not to "
                           "be dequantized: model.safetensors: tensor 'a.weight': its "
                           "absmax is not in the same file"));
    assert_false(model->is_bnb);
    assert_false(model->reason_is_error);
    qf_model_free(model);
    f.count = 0;
    add(&f, "norm.weight", QF_F16, 8, NULL);
    model = load(dir, root, CONFIG(BNB), &f);
    assert_non_null(strstr(model->reason, "though no tensor of it is"));
    qf_model_free(model);
    qf_root_close(root);
    tmpdir_remove(dir);
}

/* The dtype of int8 weights is that of the first plain tensor of all shards; an index
 * names the stored tensors. */
static void test_shards(void **state)
{
    (void)state;
    char *dir = tmpdir_make();
    qf_root *root;
    assert_int_equal(qf_root_open(dir, &root, NULL), 0);
    struct file f = int8_file(), g = {0};
    drop(&f, "norm.weight");
    add(&g, "norm.weight", QF_F16, 8, NULL);
    tmpdir_write_text(dir, "m/config.json", CONFIG(BNB));
    tmpdir_write_text(dir, "m/model.safetensors.index.json",
                      "{\"weight_map\": {\"a.weight\": \"1.safetensors\", \"a.SCB\": "
                      "\"1.safetensors\", \"norm.weight\": \"2.safetensors\"}}");
    stfile_write(dir, "m/1.safetensors", f.tensors, f.count);
    stfile_write(dir, "m/2.safetensors", g.tensors, g.count);
    struct qf_model *model = NULL;
    assert_int_equal(qf_model_load(root, "m", &model, NULL), 0);
    assert_string_equal(model->reason, "");
    const struct qf_tensor *t =
        qf_shard_find(model->sets[0].shards[0].header, "a.weight");
    assert_int_equal(t->dtype, QF_F16);
    assert_null(model->sets[0].shards[1].header->stored);
    qf_model_free(model);
    qf_root_close(root);
    tmpdir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nf4),          cmocka_unit_test(test_dq),
        cmocka_unit_test(test_int8),         cmocka_unit_test(test_plain),
        cmocka_unit_test(test_states),       cmocka_unit_test(test_nested_states),
        cmocka_unit_test(test_parts),        cmocka_unit_test(test_orphans),
        cmocka_unit_test(test_int8_refused), cmocka_unit_test(test_model),
        cmocka_unit_test(test_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
