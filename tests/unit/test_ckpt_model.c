/* SPDX-License-Identifier: Apache-2.0 */
/* Kinds of directory: which files are weights, and every reason to leave a model alone.
 */
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "ckpt/model.h"
#include "support/stfile.h"
#include "support/tmpdir.h"

#define TRANSFORMERS "{\"model_type\": \"llama\", \"architectures\": [\"X\"]}"
#define DIFFUSERS    "{\"_class_name\": \"UNet2DConditionModel\"}"
#define LFS          "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"

struct place {
    char *base;
    qf_root *root;
};

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->base = tmpdir_make();
    assert_int_equal(qf_root_open(p->base, &p->root, NULL), 0);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;
    qf_root_close(p->root);
    tmpdir_remove(p->base);
    free(p);
    return 0;
}

static void put(const struct place *p, const char *path, const char *text)
{
    tmpdir_write_text(p->base, path, text);
}

/* A shard with one BF16 matrix of this name. */
static void put_shard(const struct place *p, const char *path, const char *tensor)
{
    const struct stfile_tensor t = {tensor, QF_BF16, 2, {4, 8}, NULL};
    stfile_write(p->base, path, &t, 1);
}

static struct qf_model *load(const struct place *p, const char *path)
{
    struct qf_model *model = NULL;
    struct qf_err err = {.text = ""};
    int rc = qf_model_load(p->root, path, &model, &err);
    if (rc != 0)
        fail_msg("%s: %d %s", path, rc, err.text);
    assert_int_equal(qf_model_check(p->root, path, model), 0);
    return model;
}

static void expect_reason(const struct place *p, const char *path,
                          enum qf_model_kind kind, bool is_error, const char *says)
{
    struct qf_model *model = load(p, path);
    assert_int_equal(model->kind, kind);
    if (strstr(model->reason, says) == NULL || model->reason_is_error != is_error)
        fail_msg("%d %s", model->reason_is_error, model->reason);
    if (*says == '\0')
        assert_string_equal(model->reason, "");
    assert_int_equal(model->set_count, 0);
    qf_model_free(model);
}

static void refuse(const struct place *p, bool is_error, const char *says)
{
    expect_reason(p, "m", QF_MODEL_TRANSFORMERS, is_error, says);
}

/* ---- what is a model ---- */

static void test_single_file(void **state)
{
    struct place *p = *state;
    put(p, "m/config.json", TRANSFORMERS);
    put_shard(p, "m/model.safetensors", "a.weight");
    put_shard(p, "m/consolidated.safetensors", "b.weight");
    put(p, "m/model.safetensors.bak", "junk");
    put(p, "m/pytorch_model.bin", "junk");
    struct qf_model *model = load(p, "m");
    assert_int_equal(model->kind, QF_MODEL_TRANSFORMERS);
    assert_string_equal(model->reason, "");
    assert_string_equal(model->config_text, TRANSFORMERS);
    assert_int_equal(model->config_size, strlen(TRANSFORMERS));
    assert_string_equal(qf_json_string(qf_json_get(model->config, "model_type")),
                        "llama");
    assert_int_equal(model->set_count, 1);
    const struct qf_weight_set *set = &model->sets[0];
    assert_null(set->index_name);
    assert_null(set->index_text);
    assert_int_equal(set->shard_count, 1);
    assert_string_equal(set->shards[0].name, "model.safetensors");
    assert_string_equal(set->shards[0].header->tensors[0].name, "a.weight");
    struct stat st;
    assert_int_equal(qf_root_resolve(p->root, "m/model.safetensors", NULL, &st), 0);
    struct qf_ident ident = qf_ident_of(&st);
    assert_true(qf_ident_eq(&ident, &set->shards[0].ident));
    assert_int_equal(qf_root_resolve(p->root, "m/config.json", NULL, &st), 0);
    ident = qf_ident_of(&st);
    assert_true(qf_ident_eq(&ident, &model->config_ident));
    qf_model_free(model);
    qf_model_free(NULL);
}

/* The root of the store may be a model itself. */
static void test_root_is_model(void **state)
{
    struct place *p = *state;
    put(p, "config.json", TRANSFORMERS);
    put_shard(p, "model.safetensors", "a.weight");
    struct qf_model *model = load(p, "");
    assert_int_equal(model->set_count, 1);
    qf_model_free(model);
}

static void test_sharded(void **state)
{
    struct place *p = *state;
    static const char index[] = "{\"metadata\":{},\"weight_map\":{\"b.weight\":\"model-"
                                "00002-of-00002.safetensors\","
                                "\"a.weight\":\"model-00001-of-00002.safetensors\"}}";
    put(p, "m/config.json", TRANSFORMERS);
    put(p, "m/model.safetensors.index.json", index);
    put_shard(p, "m/model-00001-of-00002.safetensors", "a.weight");
    put_shard(p, "m/model-00002-of-00002.safetensors", "b.weight");
    struct qf_model *model = load(p, "m");
    assert_string_equal(model->reason, "");
    assert_int_equal(model->set_count, 1);
    const struct qf_weight_set *set = &model->sets[0];
    assert_string_equal(set->index_name, "model.safetensors.index.json");
    assert_string_equal(set->index_text, index);
    assert_int_equal(set->index_size, strlen(index));
    assert_int_equal(set->index.entry_count, 2);
    assert_int_equal(set->shard_count, 2);
    assert_string_equal(set->shards[0].name, "model-00001-of-00002.safetensors");
    assert_string_equal(set->shards[1].name, "model-00002-of-00002.safetensors");
    assert_string_equal(set->shards[1].header->tensors[0].name, "b.weight");
    qf_model_free(model);
}

static void expect_sets(const struct place *p, const char *const *names, size_t count)
{
    struct qf_model *model = load(p, "m");
    assert_string_equal(model->reason, "");
    assert_int_equal(model->set_count, count);
    for (size_t i = 0; i < count; i++) {
        const struct qf_weight_set *set = &model->sets[i];
        const char *name =
            set->index_name != NULL ? set->index_name : set->shards[0].name;
        assert_string_equal(name, names[i]);
    }
    qf_model_free(model);
}

/* transformers takes the single file before the index, and variants when asked. */
static void test_variants(void **state)
{
    struct place *p = *state;
    put(p, "m/config.json", TRANSFORMERS);
    put_shard(p, "m/model.fp16.safetensors", "a.weight");
    put_shard(p, "m/model.safetensors", "a.weight");
    put_shard(p, "m/model.bf16-00001-of-00001.safetensors", "a.weight");
    put(p, "m/model.safetensors.index.bf16.json",
        "{\"weight_map\":{\"a.weight\":\"model.bf16-00001-of-00001.safetensors\"}}");
    put_shard(p, "m/model-00001-of-00001.safetensors", "a.weight");
    put(p, "m/model.safetensors.index.json",
        "{\"weight_map\":{\"a.weight\":\"model-00001-of-00001.safetensors\"}}");
    put_shard(p, "m/model..safetensors", "a.weight");
    put_shard(p, "m/modelx.safetensors", "a.weight");
    put_shard(p, "m/diffusion_pytorch_model.safetensors", "a.weight");
    static const char *const want[] = {"model.safetensors",
                                       "model.safetensors.index.json",
                                       "model.safetensors.index.bf16.json",
                                       "model.fp16.safetensors"};
    expect_sets(p, want, 4);
}

/* diffusers takes the index first, and has an old spelling of variants. */
static void test_diffusers(void **state)
{
    struct place *p = *state;
#define STEM "diffusion_pytorch_model"
    put(p, "m/config.json", DIFFUSERS);
    put_shard(p, "m/" STEM ".safetensors", "a.weight");
    put_shard(p, "m/" STEM ".fp16.safetensors", "a.weight");
    put_shard(p, "m/" STEM "-00001-of-00001.safetensors", "a.weight");
    put_shard(p, "m/" STEM "-00001-of-00001.fp32.safetensors", "a.weight");
    put_shard(p, "m/model.safetensors", "a.weight");
    put(p, "m/" STEM ".safetensors.index.json",
        "{\"weight_map\":{\"a.weight\":\"" STEM "-00001-of-00001.safetensors\"}}");
    put(p, "m/" STEM ".safetensors.fp32.index.json",
        "{\"weight_map\":{\"a.weight\":\"" STEM "-00001-of-00001.fp32.safetensors\"}}");
    static const char *const want[] = {STEM ".safetensors.index.json",
                                       STEM ".safetensors", STEM ".fp16.safetensors",
                                       STEM ".safetensors.fp32.index.json"};
    expect_sets(p, want, 4);
    struct qf_model *model = load(p, "m");
    assert_int_equal(model->kind, QF_MODEL_DIFFUSERS);
    qf_model_free(model);
#undef STEM
}

static void test_named_weights(void **state)
{
    struct place *p = *state;
    put(p, "m/config.json",
        "{\"model_type\":\"x\",\"transformers_weights\":\"other.safetensors\"}");
    put_shard(p, "m/model.safetensors", "a.weight");
    put_shard(p, "m/other.safetensors", "a.weight");
    static const char *const other[] = {"other.safetensors", "model.safetensors"};
    expect_sets(p, other, 2);
    put(p, "m/config.json",
        "{\"model_type\":\"x\",\"transformers_weights\":\"model.safetensors\"}");
    static const char *const same[] = {"model.safetensors"};
    expect_sets(p, same, 1);
    put(p, "m/config.json",
        "{\"model_type\":\"x\",\"transformers_weights\":\"gone.safetensors\"}");
    refuse(p, true, "gone.safetensors: is missing");
    put(p, "m/config.json",
        "{\"model_type\":\"x\",\"transformers_weights\":\"../model.safetensors\"}");
    refuse(p, false, "transformers_weights: ../model.safetensors");
}

/* A hub cache: every file is a link to a blob. */
static void test_hub_cache(void **state)
{
    struct place *p = *state;
    put(p, "models--x/blobs/c0", TRANSFORMERS);
    put_shard(p, "models--x/blobs/a0", "a.weight");
    put(p, "models--x/snapshots/rev/README.md", "");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/models--x/snapshots/rev/config.json", p->base);
    assert_int_equal(symlink("../../blobs/c0", path), 0);
    snprintf(path, sizeof path, "%s/models--x/snapshots/rev/model.safetensors",
             p->base);
    assert_int_equal(symlink("../../blobs/a0", path), 0);
    struct qf_model *model = load(p, "models--x/snapshots/rev");
    assert_string_equal(model->reason, "");
    assert_int_equal(model->set_count, 1);
    struct stat st;
    assert_int_equal(qf_root_resolve(p->root, "models--x/blobs/a0", NULL, &st), 0);
    assert_int_equal(model->sets[0].shards[0].ident.ino, st.st_ino);
    qf_model_free(model);
}

/* ---- what is none ---- */

static void test_no_model(void **state)
{
    struct place *p = *state;
    put_shard(p, "none/model.safetensors", "a.weight");
    expect_reason(p, "none", QF_MODEL_NONE, false, "");
    static const char *const configs[] = {"{}", "[]", "{\"model_type\":null}", "3",
                                          "{\"_class_name\":1}"};
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        put(p, "none/config.json", configs[i]);
        expect_reason(p, "none", QF_MODEL_NONE, false, "");
    }
    put(p, "none/config.json", "{\"architectures\":[]}");
    struct qf_model *model = load(p, "none");
    assert_int_equal(model->kind, QF_MODEL_TRANSFORMERS);
    assert_int_equal(model->set_count, 1);
    qf_model_free(model);
}

static void test_no_directory(void **state)
{
    struct place *p = *state;
    struct qf_model *model = NULL;
    struct qf_err err = {.text = ""};
    put(p, "file", "");
    assert_int_equal(qf_model_load(p->root, "gone", &model, &err), -ENOENT);
    assert_non_null(strstr(err.text, "gone: No such file"));
    assert_int_equal(qf_model_load(p->root, "file", &model, &err), -ENOTDIR);
    assert_null(model);
}

static void test_bad_config(void **state)
{
    struct place *p = *state;
    put_shard(p, "m/model.safetensors", "a.weight");
    put(p, "m/config.json", "{\"model_type\": \"x\",}");
    expect_reason(p, "m", QF_MODEL_NONE, true, "config.json: not JSON: line 1");
    put(p, "m/config.json", "\xef\xbb\xbf" TRANSFORMERS);
    expect_reason(p, "m", QF_MODEL_NONE, true, "byte order mark");
    put(p, "m/config.json", LFS);
    expect_reason(p, "m", QF_MODEL_NONE, false, "config.json: is a Git LFS pointer");
    char *deep = malloc(100001);
    assert_non_null(deep);
    memset(deep, '[', 100000);
    deep[100000] = '\0';
    put(p, "m/config.json", deep);
    free(deep);
    expect_reason(p, "m", QF_MODEL_NONE, true, "nested too deeply");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/m/config.json", p->base);
    assert_int_equal(remove(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    expect_reason(p, "m", QF_MODEL_NONE, true, "config.json: Is a directory");
    assert_int_equal(remove(path), 0);
    assert_int_equal(symlink("/etc/hostname", path), 0);
    expect_reason(p, "m", QF_MODEL_NONE, true, "leaves the store");
    assert_int_equal(remove(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_reason(p, "m", QF_MODEL_NONE, true, "is not a regular file");
}

static void test_config_size_limit(void **state)
{
    struct place *p = *state;
    char path[PATH_MAX];
    put_shard(p, "m/model.safetensors", "a.weight");
    put(p, "m/config.json", TRANSFORMERS);
    snprintf(path, sizeof path, "%s/m/config.json", p->base);
    assert_int_equal(truncate(path, (off_t)QF_CONFIG_SIZE_MAX + 1), 0);
    expect_reason(p, "m", QF_MODEL_NONE, true, "config.json: File too large");
    assert_int_equal(truncate(path, (off_t)QF_CONFIG_SIZE_MAX), 0);
    expect_reason(p, "m", QF_MODEL_NONE, true, "not JSON"); /* NULs at its end */
}

static void test_adapter(void **state)
{
    struct place *p = *state;
    put(p, "m/adapter_config.json", "{}");
    put_shard(p, "m/adapter_model.safetensors", "a.weight");
    expect_reason(p, "m", QF_MODEL_NONE, false, "adapter");
    put(p, "m/config.json", TRANSFORMERS);
    put_shard(p, "m/model.safetensors", "a.weight");
    refuse(p, false, "adapter");
}

static void test_no_weights(void **state)
{
    struct place *p = *state;
    put(p, "m/config.json", TRANSFORMERS);
    put(p, "m/pytorch_model.bin", "junk");
    put_shard(p, "m/model-00001-of-00002.safetensors", "a.weight");
    refuse(p, false, "no safetensors weights");
}

static void test_quantized_config(void **state)
{
    struct place *p = *state;
    static const char nested[] =
        "{\"model_type\":\"x\",\"text_config\":{\"model_type\":\"y\","
        "\"quantization_config\":{\"quant_method\":\"gptq\"}}}";
    static const char *const configs[] = {
        "{\"model_type\":\"x\",\"quantization_config\":{\"quant_method\":\"gptq\"}}",
        "{\"model_type\":\"x\",\"compression_config\":{\"quant_method\":\"gptq\"}}",
        nested};
    put_shard(p, "m/model.safetensors", "a.weight");
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        put(p, "m/config.json", configs[i]);
        refuse(p, false, "already quantized (quant_method gptq)");
    }
    put(p, "m/config.json", "{\"model_type\":\"x\",\"quantization_config\":{}}");
    refuse(p, false, "already quantized (quant_method unknown)");
    put(p, "m/config.json", "{\"model_type\":\"x\",\"quantization_config\":null}");
    static const char *const want[] = {"model.safetensors"};
    expect_sets(p, want, 1);
}

static void test_quantized_tensors(void **state)
{
    struct place *p = *state;
    static const struct stfile_tensor tensors[] = {
        {"a.weight.quant_state.bitsandbytes__nf4", QF_U8, 1, {8}, NULL},
        {"a.qweight", QF_I32, 2, {8, 8}, NULL},
        {"a.qzeros", QF_I32, 2, {8, 8}, NULL},
        {"a.SCB", QF_F32, 1, {8}, NULL},
        {"a.weight_packed", QF_I32, 2, {8, 8}, NULL},
        {"a.weight", QF_F8_E4M3, 2, {8, 8}, NULL},
        {"a.weight", QF_I8, 2, {8, 8}, NULL},
        {"a.weight", QF_U8, 2, {8, 1}, NULL}};
    put(p, "m/config.json", TRANSFORMERS);
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        stfile_write(p->base, "m/model.safetensors", &tensors[i], 1);
        refuse(p, false, "already quantized (model.safetensors: tensor 'a.");
    }
    /* No matrices of weights. */
    static const struct stfile_tensor plain[] = {
        {"position_ids", QF_U8, 2, {1, 8}, NULL},
        {"mask.weight", QF_BOOL, 2, {8, 8}, NULL},
        {"b.weight", QF_U8, 1, {8}, NULL},
        {"SCB", QF_F32, 1, {8}, NULL}};
    stfile_write(p->base, "m/model.safetensors", plain, 4);
    static const char *const want[] = {"model.safetensors"};
    expect_sets(p, want, 1);
}

/* ---- damage ---- */

static void test_bad_shard(void **state)
{
    struct place *p = *state;
    put(p, "m/config.json", TRANSFORMERS);
    put(p, "m/model.safetensors", "");
    refuse(p, true, "model.safetensors: header: the file has 0 bytes");
    put(p, "m/model.safetensors", "1234567");
    refuse(p, true, "header: the file has 7 bytes");
    put(p, "m/model.safetensors", "not a header at all");
    refuse(p, true, "model.safetensors: header: its size is given as");
    put_shard(p, "m/model.safetensors", "a.weight");
    char path[PATH_MAX];
    struct stat st;
    snprintf(path, sizeof path, "%s/m/model.safetensors", p->base);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size - 1), 0);
    refuse(p, true, "tensor 'a.weight': data ends past the end of the file");
    assert_int_equal(truncate(path, st.st_size + 1), 0);
    refuse(p, true, "1 bytes that belong to no tensor");
    assert_int_equal(truncate(path, 40), 0);
    refuse(p, true, "truncated");
    put(p, "m/model.safetensors", LFS);
    refuse(p, false, "model.safetensors: is a Git LFS pointer; run git lfs pull");
    assert_int_equal(remove(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    refuse(p, true, "model.safetensors: is not a regular file");
    assert_int_equal(remove(path), 0);
    assert_int_equal(symlink("/etc/hostname", path), 0);
    refuse(p, true, "model.safetensors: a symbolic link leaves the store");
    assert_int_equal(remove(path), 0);
    assert_int_equal(symlink("model.safetensors", path), 0);
    refuse(p, true, "model.safetensors: Too many levels of symbolic links");
    assert_int_equal(remove(path), 0);
    assert_int_equal(symlink("nowhere", path), 0);
    refuse(p, true, "model.safetensors: the symbolic link leads nowhere");
}

/* One bad shard is a reason against all sets: they share a config. */
static void test_one_bad_set(void **state)
{
    struct place *p = *state;
    put(p, "m/config.json", TRANSFORMERS);
    put_shard(p, "m/model.safetensors", "a.weight");
    put(p, "m/model.fp16.safetensors", "12345678");
    refuse(p, true, "model.fp16.safetensors: header: ");
}

static void put_index(const struct place *p, const char *map)
{
    char text[1024];
    snprintf(text, sizeof text, "{\"weight_map\":{%s}}", map);
    put(p, "m/model.safetensors.index.json", text);
}

static void test_bad_index(void **state)
{
    struct place *p = *state;
    put(p, "m/config.json", TRANSFORMERS);
    put_shard(p, "m/s1.safetensors", "a.weight");
    put_shard(p, "m/s2.safetensors", "b.weight");
    put_shard(p, "m/s3.safetensors", "a.weight");
    static const struct {
        const char *map;
        bool is_error;
        const char *says;
    } cases[] = {{"", true, "index.json: weight_map is empty"},
                 {"\"a.weight\":\"../m/s1.safetensors\"", true,
                  "'../m/s1.safetensors' is not"},
                 {"\"a.weight\":\"/etc/passwd\"", true, "'/etc/passwd' is not"},
                 {"\"a.weight\":1", true, "the shard of 'a.weight' is not a string"},
                 {"\"a.weight\":\"s1.bin\"", false,
                  "s1.bin: is not a safetensors file"},
                 {"\"a.weight\":\"s1.safetensors\",\"b.weight\":\"s9.safetensors\"",
                  true, "s9.safetensors: is missing"},
                 {"\"b.weight\":\"s1.safetensors\"", true,
                  "index.json: tensor 'b.weight' is not in s1.safetensors"},
                 {"\"a.weight\":\"s1.safetensors\",\"b.weight\":\"s1.safetensors\"",
                  true, "tensor 'b.weight' is not in s1.safetensors"},
                 {"\"x\":", true, "index.json: not JSON"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put_index(p, cases[i].map);
        refuse(p, cases[i].is_error, cases[i].says);
    }
    put(p, "m/model.safetensors.index.json", LFS);
    refuse(p, false, "index.json: is a Git LFS pointer");
    const struct stfile_tensor both[] = {{"a.weight", QF_BF16, 2, {4, 8}, NULL},
                                         {"b.weight", QF_BF16, 2, {4, 8}, NULL}};
    stfile_write(p->base, "m/s4.safetensors", both, 2);
    put_index(p, "\"a.weight\":\"s1.safetensors\",\"b.weight\":\"s4.safetensors\"");
    refuse(p, true, "index.json: tensor 'a.weight' is in two shards");
    /* A tensor that the index does not list is loaded too. */
    put_index(p, "\"a.weight\":\"s4.safetensors\"");
    static const char *const want[] = {"model.safetensors.index.json"};
    expect_sets(p, want, 1);
}

/* What is decided about a file must not depend on which set asks. */
static void test_shared_shard(void **state)
{
    struct place *p = *state;
    put(p, "m/config.json", TRANSFORMERS);
    put_shard(p, "m/model.safetensors", "a.weight");
    put_shard(p, "m/more.safetensors", "b.weight");
    put_index(p, "\"a.weight\":\"model.safetensors\"");
    static const char *const want[] = {"model.safetensors",
                                       "model.safetensors.index.json"};
    expect_sets(p, want, 2);
    put_index(p,
              "\"a.weight\":\"model.safetensors\",\"b.weight\":\"more.safetensors\"");
    refuse(p, true, "model.safetensors: belongs to two sets of weights");
}

/* ---- downloads ---- */

static void test_downloads(void **state)
{
    struct place *p = *state;
    static const char *const signs[] = {"m/s2.safetensors.incomplete",
                                        "m/s2.safetensors.part",
                                        "m/s2.safetensors.crdownload",
                                        "m/.cache/huggingface/download/x.y.incomplete",
                                        ".cache/huggingface/download/m/x.y.incomplete"};
    put(p, "m/config.json", TRANSFORMERS);
    put_shard(p, "m/s1.safetensors", "a.weight");
    put_index(p, "\"a.weight\":\"s1.safetensors\",\"b.weight\":\"s2.safetensors\"");
    refuse(p, true, "s2.safetensors: is missing");
    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++) {
        char path[PATH_MAX];
        put(p, signs[i], "");
        refuse(p, false, "s2.safetensors: is still being downloaded");
        snprintf(path, sizeof path, "%s/%s", p->base, signs[i]);
        assert_int_equal(remove(path), 0);
    }
    put_shard(p, "m/s2.safetensors", "b.weight");
    put(p, "m/s2.safetensors.aria2", "");
    refuse(p, false, "s2.safetensors: is still being downloaded");
}

static void test_hub_downloads(void **state)
{
    struct place *p = *state;
    static const char *const index =
        "{\"weight_map\":{\"a.weight\":\"s1.safetensors\"}}";
    put(p, "models--x/snapshots/rev/te/config.json", TRANSFORMERS);
    put(p, "models--x/snapshots/rev/te/model.safetensors.index.json", index);
    put(p, "models--x/blobs/0123.incomplete", "");
    expect_reason(p, "models--x/snapshots/rev/te", QF_MODEL_TRANSFORMERS, false,
                  "is still being downloaded");
    put(p, "snapshots/rev/config.json", TRANSFORMERS);
    put(p, "snapshots/rev/model.safetensors.index.json", index);
    expect_reason(p, "snapshots/rev", QF_MODEL_TRANSFORMERS, true, "is missing");
    put(p, "blobs/0123.incomplete", "");
    expect_reason(p, "snapshots/rev", QF_MODEL_TRANSFORMERS, false, "downloaded");
}

/* ---- changes ---- */

static void wait_for_tick(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

static void expect_stale(const struct place *p, struct qf_model *model)
{
    assert_int_equal(qf_model_check(p->root, "m", model), -ESTALE);
    qf_model_free(model);
}

static void test_check(void **state)
{
    struct place *p = *state;
    put(p, "m/config.json", TRANSFORMERS);
    put_shard(p, "m/s1.safetensors", "a.weight");
    put_index(p, "\"a.weight\":\"s1.safetensors\",\"b.weight\":\"s2.safetensors\"");
    struct qf_model *model = load(p, "m");
    assert_string_not_equal(model->reason, "");
    wait_for_tick();
    put_shard(p, "m/s2.safetensors", "b.weight"); /* the download is done */
    expect_stale(p, model);

    static const char *const files[] = {"m/config.json", "m/s1.safetensors",
                                        "m/model.safetensors.index.json"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/%s", p->base, files[i]);
        model = load(p, "m");
        assert_string_equal(model->reason, "");
        wait_for_tick();
        assert_int_equal(utimensat(AT_FDCWD, path, NULL, 0), 0);
        expect_stale(p, model);
    }
    model = load(p, "m");
    wait_for_tick();
    put(p, "m/new", "");
    expect_stale(p, model);
    /* A malformed file that grows in place. */
    put(p, "m/s2.safetensors", "123");
    model = load(p, "m");
    assert_true(model->reason_is_error);
    wait_for_tick();
    put_shard(p, "m/s2.safetensors", "b.weight");
    expect_stale(p, model);
}

/* The blob behind a dangling link appears elsewhere. */
static void test_check_elsewhere(void **state)
{
    struct place *p = *state;
    char path[PATH_MAX];
    put(p, "m/config.json", TRANSFORMERS);
    put(p, "blobs/x", "");
    snprintf(path, sizeof path, "%s/m/model.safetensors", p->base);
    assert_int_equal(symlink("../blobs/a", path), 0);
    struct qf_model *model = load(p, "m");
    assert_non_null(strstr(model->reason, "leads nowhere"));
    put_shard(p, "blobs/a", "a.weight");
    expect_stale(p, model);
    model = load(p, "m");
    assert_string_equal(model->reason, "");
    assert_int_equal(remove(path), 0);
    expect_stale(p, model);
}

int main(void)
{
#define IN_PLACE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        IN_PLACE(test_single_file),       IN_PLACE(test_root_is_model),
        IN_PLACE(test_sharded),           IN_PLACE(test_variants),
        IN_PLACE(test_diffusers),         IN_PLACE(test_named_weights),
        IN_PLACE(test_hub_cache),         IN_PLACE(test_no_model),
        IN_PLACE(test_no_directory),      IN_PLACE(test_bad_config),
        IN_PLACE(test_config_size_limit), IN_PLACE(test_adapter),
        IN_PLACE(test_no_weights),        IN_PLACE(test_quantized_config),
        IN_PLACE(test_quantized_tensors), IN_PLACE(test_bad_shard),
        IN_PLACE(test_one_bad_set),       IN_PLACE(test_bad_index),
        IN_PLACE(test_shared_shard),      IN_PLACE(test_downloads),
        IN_PLACE(test_hub_downloads),     IN_PLACE(test_check),
        IN_PLACE(test_check_elsewhere)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
