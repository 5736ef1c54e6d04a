/* SPDX-License-Identifier: Apache-2.0 */
/* Returned by value, so that a sentence can name two of them without buffers. */
#include "ckpt/printable.h"

#include <stddef.h>
#include <string.h>

static const char cut_mark[] = "...";

/* Bytes of the UTF-8 character at p (which ends with a NUL), 0 if it is none. Longer
 * spellings of short characters pass: nothing is decoded here. */
static size_t char_size(const char *p)
{
    unsigned char c = (unsigned char)p[0];
    size_t size = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if (c > 0xf4)
        return 0;
    for (size_t i = 1; i < size; i++)
        if (((unsigned char)p[i] & 0xc0) != 0x80)
            return 0;
    return size;
}

struct qf_printable qf_printable(const char *name)
{
    struct qf_printable out;
    size_t used = 0;
    while (*name != '\0') {
        size_t n = char_size(name);
        if (used + (n > 0 ? n : 1) > sizeof out.text - sizeof cut_mark) {
            memcpy(out.text + used, cut_mark, sizeof cut_mark);
            return out;
        }
        if (n == 0 || (unsigned char)*name < 0x20 || *name == 0x7f) {
            out.text[used++] = '?';
            name++;
            continue;
        }
        memcpy(out.text + used, name, n);
        used += n;
        name += n;
    }
    out.text[used] = '\0';
    return out;
}
