/* SPDX-License-Identifier: Apache-2.0 */
/* The settings of a view: what they are called in a view's name and in overrides, which
 * values they take, and which codecs know them. One home for both spellings. */
#ifndef QF_VIEW_SETTINGS_H
#define QF_VIEW_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "view/names.h"

#ifdef __cplusplus
extern "C" {
#endif

/* In the order in which a view's name has them. */
enum qf_setting {
    QF_SETTING_DTYPE,
    QF_SETTING_COMPUTE,
    QF_SETTING_STORAGE,
    QF_SETTING_BLOCKSIZE,
    QF_SETTING_THRESHOLD,
    QF_SETTING_GROUP,
    QF_SETTING_ONLY,
    QF_SETTING_SKIP,
    QF_SETTING_FORCE,
    QF_SETTING_COUNT
};

enum qf_setting_kind { QF_SETTING_WORD, QF_SETTING_NUMBER, QF_SETTING_PATTERNS };

struct qf_setting_info {
    const char *name; /* in a view's name */
    const char *key;  /* in overrides */
    enum qf_setting_kind kind;
    uint32_t codecs; /* which it means something to: bits 1 << enum qf_codec */
};

extern const struct qf_setting_info qf_settings[QF_SETTING_COUNT];

/* Whether the codec knows the setting. */
bool qf_setting_fits(enum qf_setting setting, enum qf_codec codec);

/* Set a value; `label` is what the sentence calls the setting. -EINVAL says what is
 * allowed, and leaves the view as it was. */
int qf_setting_set_word(struct qf_view *view, enum qf_setting setting,
                        const char *label, const char *word,
                        struct qf_err *err) QF_MUST_CHECK;
int qf_setting_set_number(struct qf_view *view, enum qf_setting setting,
                          const char *label, double number,
                          struct qf_err *err) QF_MUST_CHECK;
/* A word or a number, whichever the setting takes, from text that is not ended. */
int qf_setting_set_text(struct qf_view *view, enum qf_setting setting, const char *text,
                        size_t size, struct qf_err *err) QF_MUST_CHECK;
/* The list of a setting that takes patterns. */
struct qf_patterns *qf_setting_patterns(struct qf_view *view, enum qf_setting setting);
/* The value of a word or a number in its one spelling. */
void qf_setting_append_value(const struct qf_view *view, enum qf_setting setting,
                             struct qf_buf *out);

/* A piece "key=value" of a view's name. */
struct qf_setting_piece {
    enum qf_setting setting; /* QF_SETTING_COUNT: unknown */
    const char *key;
    size_t key_size;
    const char *value; /* NULL: no '=' */
    size_t value_size;
};

/* The piece behind the '+' at *at, up to the next '+' or to `end`; moves *at there.
 * False when *at is `end`. */
bool qf_setting_next(const char **at, const char *end, struct qf_setting_piece *out);
/* The pattern at *at, up to the next ':' or to `end`; moves *at behind that. False when
 * *at is behind `end`. */
bool qf_setting_next_pattern(const char **at, const char *end, const char **pattern,
                             size_t *size);

#ifdef __cplusplus
}
#endif
#endif
