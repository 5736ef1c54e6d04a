/* SPDX-License-Identifier: Apache-2.0 */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int qf_err_set(struct qf_err *err, int code, const char *fmt, ...)
{
    if (err != NULL) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->text, sizeof err->text, fmt, args);
        va_end(args);
    }
    return code;
}

bool qf_err_is_of_file(int code)
{
    switch (-code) {
    case EACCES:
    case EFBIG:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case ENOENT:
    case ENOTDIR:
    case ENXIO:
    case EOPNOTSUPP:
    case EOVERFLOW:
    case EPERM:
    case ESTALE:
    case EXDEV:
        return true;
    default:
        return false;
    }
}

void qf_err_prefix(struct qf_err *err, const char *fmt, ...)
{
    if (err == NULL)
        return;
    struct qf_err old = *err;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof err->text)
        return;
    if (snprintf(err->text + n, sizeof err->text - (size_t)n, ": %s", old.text) < 0)
        err->text[n] = '\0';
}
