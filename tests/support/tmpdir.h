/* SPDX-License-Identifier: Apache-2.0 */
/* A directory for one test, removed with everything in it. */
#ifndef QF_TESTS_SUPPORT_TMPDIR_H
#define QF_TESTS_SUPPORT_TMPDIR_H

#include <stddef.h>

/* Makes a new directory under $TMPDIR; returns its path (owned; tmpdir_remove frees).
 */
char *tmpdir_make(void);
void tmpdir_remove(char *path);
/* Writes a file below dir, making the directories on the way. */
void tmpdir_write(const char *dir, const char *path, const void *data, size_t size);
void tmpdir_write_text(const char *dir, const char *path, const char *text);

#endif
