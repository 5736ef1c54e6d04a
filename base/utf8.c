/* SPDX-License-Identifier: Apache-2.0 */
#include "base/utf8.h"

size_t qf_utf8_size(const char *text, size_t left)
{
    const unsigned char *p = (const unsigned char *)text;
    unsigned char c = p[0];
    unsigned char low = 0x80, high = 0xbf;
    size_t size;
    if (c < 0x80)
        return 1;
    if (c >= 0xc2 && c <= 0xdf) {
        size = 2;
    } else if (c >= 0xe0 && c <= 0xef) {
        size = 3;
        low = c == 0xe0 ? 0xa0 : low;
        high = c == 0xed ? 0x9f : high;
    } else if (c >= 0xf0 && c <= 0xf4) {
        size = 4;
        low = c == 0xf0 ? 0x90 : low;
        high = c == 0xf4 ? 0x8f : high;
    } else {
        return 0;
    }
    if (left < size || p[1] < low || p[1] > high)
        return 0;
    for (size_t i = 2; i < size; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return size;
}
