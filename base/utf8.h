/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QF_BASE_UTF8_H
#define QF_BASE_UTF8_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of the UTF-8 character at text (left > 0), 0 if it is none: a longer spelling
 * than need be, a surrogate, past U+10FFFF, cut off. */
size_t qf_utf8_size(const char *text, size_t left);

#ifdef __cplusplus
}
#endif
#endif
