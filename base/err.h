/* SPDX-License-Identifier: Apache-2.0 */
/* Errors. Functions that can fail return 0 or a negative errno. Cold paths also take a
 * struct qf_err (last argument, may be NULL) into which whoever detects the error
 * writes one sentence a user can act on: file, what is wrong, what to do. */
#ifndef QF_BASE_ERR_H
#define QF_BASE_ERR_H

#include <errno.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QF_MUST_CHECK         __attribute__((warn_unused_result))
#define QF_PRINTF(fmt, first) __attribute__((format(printf, fmt, first)))

#define QF_ERR_TEXT_SIZE      512

struct qf_err {
    char text[QF_ERR_TEXT_SIZE];
};

/* Writes the sentence and returns `code` (a negative errno), so that a detector can say
 * `return qf_err_set(err, -EBADMSG, "…")`. err may be NULL. Long text is cut. */
int qf_err_set(struct qf_err *err, int code, const char *fmt, ...) QF_PRINTF(3, 4);

/* Whether the error of a system call tells something about the file that was asked for
 * (it is missing, may not be read, has gone: the same for whoever asks) and not of
 * trouble on the way there, which another try need not meet. */
bool qf_err_is_of_file(int code);

/* Puts "prefix: " before the sentence, for callers that know the file's name. */
void qf_err_prefix(struct qf_err *err, const char *fmt, ...) QF_PRINTF(2, 3);

#ifdef __cplusplus
}
#endif
#endif
