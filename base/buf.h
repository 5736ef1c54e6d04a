/* SPDX-License-Identifier: Apache-2.0 */
/* A growing byte buffer. Appends never fail one by one: the first allocation failure
 * sticks in `failed`, and the owner checks it once at the end. */
#ifndef QF_BASE_BUF_H
#define QF_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_buf {
    char *data; /* owned; NULL while empty; not ended by a NUL */
    size_t size;
    size_t capacity;
    bool failed; /* an append ran out of memory; data is still freed by qf_buf_fini */
};

/* A zeroed struct is an empty buffer. */
void qf_buf_fini(struct qf_buf *buf);
void qf_buf_append(struct qf_buf *buf, const void *data, size_t size);
void qf_buf_append_str(struct qf_buf *buf, const char *text);
void qf_buf_append_fill(struct qf_buf *buf, char byte, size_t count);
void qf_buf_appendf(struct qf_buf *buf, const char *fmt, ...) QF_PRINTF(2, 3);
/* Appends a JSON string with its quotes. UTF-8 stays as it is; only what JSON demands
 * is escaped (", \\ and controls), in the spelling of Python's json module with
 * ensure_ascii=False. A byte XX that is no UTF-8 (names of files may hold any) becomes
 * \udcXX, Python's surrogateescape: the text is UTF-8, and no byte is lost. */
void qf_buf_append_json(struct qf_buf *buf, const char *text, size_t size);
/* Appends a finite number in a spelling that reads back the same, as a float: 6.0. */
void qf_buf_append_double(struct qf_buf *buf, double value);
/* Moves the bytes out (returns owned; free() them), ended by a NUL that *size does not
 * count. Returns NULL when an append failed; the buffer is empty afterwards. */
char *qf_buf_take(struct qf_buf *buf, size_t *size);

#ifdef __cplusplus
}
#endif
#endif
