/* SPDX-License-Identifier: Apache-2.0 */
/* Returned by value, so that a sentence can name two of them without buffers. */
#include "ckpt/printable.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "base/utf8.h"

static const char cut_mark[] = "...";

static bool is_control(const char *character)
{
    unsigned char c = (unsigned char)character[0], next = (unsigned char)character[1];
    /* U+0080 to U+009f: one of them begins a terminal's commands, as ESC [ does. */
    return c < 0x20 || c == 0x7f || (c == 0xc2 && next < 0xa0);
}

struct qf_printable qf_printable(const char *name)
{
    struct qf_printable out;
    size_t used = 0, size = strlen(name);
    while (*name != '\0') {
        size_t n = qf_utf8_size(name, size);
        if (used + (n > 0 ? n : 1) > sizeof out.text - sizeof cut_mark) {
            memcpy(out.text + used, cut_mark, sizeof cut_mark);
            return out;
        }
        if (n == 0 || is_control(name)) {
            out.text[used++] = '?';
            n = n > 0 ? n : 1;
        } else {
            memcpy(out.text + used, name, n);
            used += n;
        }
        name += n;
        size -= n;
    }
    out.text[used] = '\0';
    return out;
}
