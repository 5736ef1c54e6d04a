/* SPDX-License-Identifier: Apache-2.0 */
/* Names from outside, made fit for a sentence: tensor and file names may hold anything,
 * and sentences end in logs, terminals and JSON. */
#ifndef QF_CKPT_PRINTABLE_H
#define QF_CKPT_PRINTABLE_H

#ifdef __cplusplus
extern "C" {
#endif

struct qf_printable {
    char text[160];
};

/* Control characters (those of C1, too) and bytes that are not UTF-8 become '?'; long
 * names are cut with "...". */
struct qf_printable qf_printable(const char *name);

#ifdef __cplusplus
}
#endif
#endif
