/* SPDX-License-Identifier: Apache-2.0 */
/* A model's name, and the texts beside its weights: read when they are asked for, never
 * a reason against the model, and what it depends on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it. */
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "ckpt/model.h"
#include "support/stfile.h"
#include "support/tmpdir.h"

static const struct stfile_tensor tensors[] = {
    {"a.weight", QF_BF16, 2, {4, 4, 0, 0}, NULL}};

static char *make_store(void)
{
    char *dir = tmpdir_make();
    tmpdir_write_text(dir, "m/config.json", "{\"model_type\": \"llama\"}");
    stfile_write(dir, "m/model.safetensors", tensors, 1);
    return dir;
}

static struct qf_model *load(const qf_root *root, bool whole)
{
    struct qf_model *model;
    struct qf_err err = {""};
    if ((whole ? qf_model_load_whole : qf_model_load)(root, "m", &model, &err) != 0)
        fail_msg("%s", err.text);
    assert_string_equal(model->reason, "");
    assert_string_equal(model->name, "m");
    return model;
}

static void test_read(void **state)
{
    (void)state;
    char *dir = make_store();
    qf_root *root;
    assert_int_equal(qf_root_open(dir, &root, NULL), 0);
    tmpdir_write_text(dir, "m/tokenizer.json", "{}");
    tmpdir_write_text(dir, "m/tokenizer.model", "x");
    struct qf_model *model = load(root, false);
    assert_false(model->whole);
    assert_null(model->texts[QF_MODEL_TOKENIZER].data);
    qf_model_free(model);
    model = load(root, true);
    assert_true(model->whole);
    assert_int_equal(model->texts[QF_MODEL_TOKENIZER].size, 2);
    assert_string_equal(model->texts[QF_MODEL_TOKENIZER].data, "{}");
    assert_true(model->texts[QF_MODEL_SENTENCEPIECE].exists);
    assert_false(model->texts[QF_MODEL_CHAT_TEMPLATE].exists);
    assert_int_equal(qf_model_check(root, "m", model), 0);
    tmpdir_write_text(dir, "m/tokenizer.json", "{ }");
    assert_int_equal(qf_model_check(root, "m", model), -ESTALE);
    qf_model_free(model);
    model = load(root, true);
    tmpdir_write_text(dir, "m/chat_template.jinja", "");
    assert_int_equal(qf_model_check(root, "m", model), -ESTALE);
    qf_model_free(model);
    qf_root_close(root);
    tmpdir_remove(dir);
}

/* At the limit, past it, and what git left. */
static void test_problems(void **state)
{
    (void)state;
    char *dir = make_store(), path[4200];
    qf_root *root;
    assert_int_equal(qf_root_open(dir, &root, NULL), 0);
    for (int past = 0; past < 2; past++) {
        tmpdir_write_text(dir, "m/tokenizer.json", "");
        snprintf(path, sizeof path, "%s/m/tokenizer.json", dir);
        assert_int_equal(truncate(path, (off_t)QF_CONFIG_SIZE_MAX + past), 0);
        struct qf_model *model = load(root, true);
        const struct qf_model_text *text = &model->texts[QF_MODEL_TOKENIZER];
        assert_true(text->exists);
        assert_true((text->data != NULL) == (past == 0));
        assert_true((text->problem[0] != '\0') == (past != 0));
        qf_model_free(model);
    }
    tmpdir_write_text(dir, "m/tokenizer.json", "version https://git-lfs.github.com/");
    struct qf_model *model = load(root, true);
    assert_non_null(strstr(model->texts[QF_MODEL_TOKENIZER].problem, "LFS"));
    assert_null(model->texts[QF_MODEL_TOKENIZER].data);
    qf_model_free(model);
    qf_root_close(root);
    tmpdir_remove(dir);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"org/tiny", "tiny"},
        {"models--org--Tiny-1B/snapshots/abc", "Tiny-1B"},
        {"models--gpt2/snapshots/abc", "gpt2"},
        {"models--o--n/snapshots/abc/text_encoder", "text_encoder"},
        {"o--n/snapshots/abc", "abc"},
        {"snapshots/abc", "abc"},
    };
    char name[QF_MODEL_NAME_SIZE], *dir = tmpdir_make();
    qf_root *root;
    assert_int_equal(qf_root_open(dir, &root, NULL), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qf_model_name(root, cases[i][0], name);
        assert_string_equal(name, cases[i][1]);
    }
    qf_model_name(root, "", name);
    assert_string_equal(name, strrchr(qf_root_path(root), '/') + 1);
    qf_root_close(root);
    tmpdir_remove(dir);
    assert_int_equal(qf_root_open("/", &root, NULL), 0);
    qf_model_name(root, "", name);
    assert_string_equal(name, "model");
    qf_root_close(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_problems),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
