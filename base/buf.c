/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

static char *reserve(struct qf_buf *buf, size_t extra)
{
    if (buf->failed)
        return NULL;
    if (extra > buf->capacity - buf->size) {
        size_t want = buf->capacity < 64 ? 64 : buf->capacity * 2;
        while (want - buf->size < extra)
            want *= 2;
        char *data = realloc(buf->data, want);
        if (data == NULL) {
            buf->failed = true;
            return NULL;
        }
        buf->data = data;
        buf->capacity = want;
    }
    return buf->data + buf->size;
}

void qf_buf_fini(struct qf_buf *buf)
{
    free(buf->data);
    *buf = (struct qf_buf){0};
}

void qf_buf_append(struct qf_buf *buf, const void *data, size_t size)
{
    char *to = size != 0 ? reserve(buf, size) : NULL;
    if (to == NULL)
        return;
    memcpy(to, data, size);
    buf->size += size;
}

void qf_buf_append_str(struct qf_buf *buf, const char *text)
{
    qf_buf_append(buf, text, strlen(text));
}

void qf_buf_append_fill(struct qf_buf *buf, char byte, size_t count)
{
    char *to = count != 0 ? reserve(buf, count) : NULL;
    if (to == NULL)
        return;
    memset(to, byte, count);
    buf->size += count;
}

void qf_buf_appendf(struct qf_buf *buf, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *to = n < 0 ? NULL : reserve(buf, (size_t)n + 1);
    if (to == NULL) {
        buf->failed = true;
    } else {
        vsnprintf(to, (size_t)n + 1, fmt, again);
        buf->size += (size_t)n;
    }
    va_end(again);
}

void qf_buf_append_json(struct qf_buf *buf, const char *text, size_t size)
{
    static const char short_escapes[] = "\b\t\n\f\r";
    static const char short_letters[] = "btnfr";
    qf_buf_append(buf, "\"", 1);
    size_t plain = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        size_t n = qf_utf8_size(text + i, size - i);
        if (n > 0 && c >= 0x20 && c != '"' && c != '\\') {
            i += n - 1;
            continue;
        }
        qf_buf_append(buf, text + plain, i - plain);
        plain = i + 1;
        const char *e = c != 0 ? strchr(short_escapes, c) : NULL;
        if (c == '"' || c == '\\')
            qf_buf_appendf(buf, "\\%c", c);
        else if (e != NULL)
            qf_buf_appendf(buf, "\\%c", short_letters[e - short_escapes]);
        else
            qf_buf_appendf(buf, "\\u%04x", n > 0 ? c : 0xdc00u + c);
    }
    qf_buf_append(buf, text + plain, size - plain);
    qf_buf_append(buf, "\"", 1);
}

void qf_buf_append_double(struct qf_buf *buf, double value)
{
    char text[64];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*f", digits, value);
        if (strlen(text) < sizeof text - 1 && strtod(text, NULL) == value) {
            qf_buf_append_str(buf, text);
            return;
        }
    }
    qf_buf_appendf(buf, "%.17e", value);
}

char *qf_buf_take(struct qf_buf *buf, size_t *size)
{
    qf_buf_append(buf, "", 1);
    if (buf->failed) {
        qf_buf_fini(buf);
        return NULL;
    }
    if (size != NULL)
        *size = buf->size - 1;
    char *data = buf->data;
    *buf = (struct qf_buf){0};
    return data;
}
