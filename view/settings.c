/* SPDX-License-Identifier: Apache-2.0 */
/* A value means the same wherever it is written, so what it may be is decided here, for
 * JSON and for names. */
#include "view/settings.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BIT(codec) (UINT32_C(1) << (codec))
/* Of these the dtype is the name, and nothing is chosen. */
#define PLAIN    (BIT(QF_CODEC_BF16) | BIT(QF_CODEC_FP16) | BIT(QF_CODEC_FP32))
#define ALL      ((BIT(QF_CODEC_COUNT) - 1) & ~PLAIN)
#define BNB_4BIT (BIT(QF_CODEC_NF4) | BIT(QF_CODEC_FP4) | BIT(QF_CODEC_DQ))
/* Of the others the libraries have one scale a row, and no word for groups. */
#define GROUPED                                                                        \
    (BIT(QF_CODEC_AO_INT8WO) | BIT(QF_CODEC_AO_FLOAT8WO) | BIT(QF_CODEC_CT_W8A16) |    \
     BIT(QF_CODEC_CT_W4A16))

_Static_assert(QF_CODEC_COUNT < 32, "a mask has a bit for each codec");

const struct qf_setting_info qf_settings[QF_SETTING_COUNT] = {
    [QF_SETTING_DTYPE] = {"dtype", "dtype", QF_SETTING_WORD, ALL},
    [QF_SETTING_COMPUTE] = {"compute", "compute_dtype", QF_SETTING_WORD, BNB_4BIT},
    [QF_SETTING_STORAGE] = {"storage", "quant_storage", QF_SETTING_WORD, BNB_4BIT},
    [QF_SETTING_BLOCKSIZE] = {"blocksize", "blocksize", QF_SETTING_NUMBER, BNB_4BIT},
    [QF_SETTING_THRESHOLD] = {"threshold", "int8_threshold", QF_SETTING_NUMBER,
                              BIT(QF_CODEC_INT8)},
    [QF_SETTING_GROUP] = {"group", "group", QF_SETTING_NUMBER, GROUPED},
    [QF_SETTING_ONLY] = {"only", "only", QF_SETTING_PATTERNS, ALL},
    [QF_SETTING_SKIP] = {"skip", "skip", QF_SETTING_PATTERNS, ALL},
    [QF_SETTING_FORCE] = {"force", "force", QF_SETTING_PATTERNS, ALL},
};

bool qf_setting_fits(enum qf_setting setting, enum qf_codec codec)
{
    if (qf_codec_info(codec)->family == QF_FAMILY_GGUF)
        return setting == QF_SETTING_ONLY || setting == QF_SETTING_SKIP;
    return (qf_settings[setting].codecs & BIT(codec)) != 0;
}

/* ---- values ---- */

int qf_setting_set_word(struct qf_view *view, enum qf_setting setting,
                        const char *label, const char *word, struct qf_err *err)
{
    bool storage = setting == QF_SETTING_STORAGE;
    enum qf_dtype dtype =
        storage && strcmp(word, "uint8") == 0 ? QF_U8 : qf_dtype_from_torch(word);
    if (dtype == QF_DTYPE_NONE)
        return qf_err_set(err, -EINVAL, "'%s' must be %sfloat32, float16 or bfloat16",
                          label, storage ? "uint8, " : "");
    switch (setting) {
    case QF_SETTING_DTYPE:
        view->dtype = dtype;
        return 0;
    case QF_SETTING_COMPUTE:
        view->compute = dtype;
        return 0;
    default:
        assert(storage);
        view->storage = dtype;
        return 0;
    }
}

static int set_power_of_two(const char *label, double number, uint32_t least,
                            uint32_t most, uint32_t *out, struct qf_err *err)
{
    for (uint32_t size = least; size <= most; size *= 2) {
        if (number == (double)size) {
            *out = size;
            return 0;
        }
    }
    return qf_err_set(err, -EINVAL, "'%s' must be a power of two from %u to %u", label,
                      least, most);
}

int qf_setting_set_number(struct qf_view *view, enum qf_setting setting,
                          const char *label, double number, struct qf_err *err)
{
    if (setting == QF_SETTING_BLOCKSIZE)
        return set_power_of_two(label, number, QF_BLOCKSIZE_DEFAULT, QF_BLOCKSIZE_MAX,
                                &view->blocksize, err);
    if (setting == QF_SETTING_GROUP)
        return set_power_of_two(label, number, QF_GROUP_MIN, QF_GROUP_MAX, &view->group,
                                err);
    assert(setting == QF_SETTING_THRESHOLD);
    if (!isfinite(number) || number < 0)
        return qf_err_set(err, -EINVAL, "'%s' must be a number that is not negative",
                          label);
    view->int8_threshold = number + 0.0; /* -0.0 is 0.0 */
    return 0;
}

/* strtod also takes blanks, signs, hexadecimals and names. */
static double number_of(const char *text)
{
    char *end;
    bool plain = text[0] >= '0' && text[0] <= '9' &&
                 text[strspn(text, "0123456789.eE-")] == '\0';
    double number = plain ? strtod(text, &end) : NAN;
    return plain && *end == '\0' ? number : NAN;
}

int qf_setting_set_text(struct qf_view *view, enum qf_setting setting, const char *text,
                        size_t size, struct qf_err *err)
{
    char value[QF_VIEW_NAME_SIZE];
    const struct qf_setting_info *info = &qf_settings[setting];
    if (size >= sizeof value)
        return qf_err_set(err, -EINVAL, "%s: the value is too long", info->name);
    memcpy(value, text, size);
    value[size] = '\0';
    if (info->kind == QF_SETTING_NUMBER)
        return qf_setting_set_number(view, setting, info->name, number_of(value), err);
    return qf_setting_set_word(view, setting, info->name, value, err);
}

struct qf_patterns *qf_setting_patterns(struct qf_view *view, enum qf_setting setting)
{
    switch (setting) {
    case QF_SETTING_ONLY:
        return &view->only;
    case QF_SETTING_SKIP:
        return &view->skip;
    default:
        assert(setting == QF_SETTING_FORCE);
        return &view->force;
    }
}

static void append_dtype(enum qf_dtype dtype, struct qf_buf *out)
{
    qf_buf_append_str(out, dtype == QF_U8 ? "uint8" : qf_dtype_torch_name(dtype));
}

/* Without the '+' of an exponent, which would begin a setting. */
static void append_number(double number, struct qf_buf *out)
{
    size_t start = out->size;
    qf_buf_append_double(out, number);
    char *plus = out->failed ? NULL : memchr(out->data + start, '+', out->size - start);
    if (plus != NULL) {
        memmove(plus, plus + 1, (size_t)(out->data + out->size - plus) - 1);
        out->size--;
    }
}

void qf_setting_append_value(const struct qf_view *view, enum qf_setting setting,
                             struct qf_buf *out)
{
    switch (setting) {
    case QF_SETTING_DTYPE:
        append_dtype(view->dtype, out);
        return;
    case QF_SETTING_COMPUTE:
        append_dtype(view->compute, out);
        return;
    case QF_SETTING_STORAGE:
        append_dtype(view->storage, out);
        return;
    case QF_SETTING_BLOCKSIZE:
        qf_buf_appendf(out, "%u", view->blocksize);
        return;
    case QF_SETTING_GROUP:
        qf_buf_appendf(out, "%u", view->group);
        return;
    default:
        assert(setting == QF_SETTING_THRESHOLD);
        append_number(view->int8_threshold, out);
    }
}

/* ---- pieces of a name ---- */

static enum qf_setting find(const char *name, size_t size)
{
    int i = 0;
    while (i < QF_SETTING_COUNT && (strlen(qf_settings[i].name) != size ||
                                    memcmp(qf_settings[i].name, name, size) != 0))
        i++;
    return (enum qf_setting)i;
}

/* The next `c`, or `end`. */
static const char *up_to(const char *at, const char *end, char c)
{
    const char *hit = memchr(at, c, (size_t)(end - at));
    return hit != NULL ? hit : end;
}

bool qf_setting_next(const char **at, const char *end, struct qf_setting_piece *out)
{
    if (*at == end)
        return false;
    const char *key = *at + 1;
    *at = up_to(key, end, '+');
    const char *equals = up_to(key, *at, '=');
    *out = (struct qf_setting_piece){.key = key, .key_size = (size_t)(equals - key)};
    out->setting = find(key, out->key_size);
    if (equals != *at) {
        out->value = equals + 1;
        out->value_size = (size_t)(*at - out->value);
    }
    return true;
}

bool qf_setting_next_pattern(const char **at, const char *end, const char **pattern,
                             size_t *size)
{
    if (*at > end)
        return false;
    *pattern = *at;
    const char *behind = up_to(*at, end, ':');
    *size = (size_t)(behind - *at);
    *at = behind + 1;
    return true;
}
