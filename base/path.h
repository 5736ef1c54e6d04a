/* SPDX-License-Identifier: Apache-2.0 */
/* Relative paths as text: "" is the top, no leading or trailing '/'. */
#ifndef QF_BASE_PATH_H
#define QF_BASE_PATH_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* "a/b", either of which may be empty. Returns owned, NULL without memory. */
char *qf_path_join(const char *a, const char *b);
/* All before the last '/', "" without one. Returns owned, NULL without memory. */
char *qf_path_parent(const char *path);
/* What follows the last '/'. Borrowed. */
const char *qf_path_name(const char *path);
bool qf_path_ends_with(const char *path, const char *end);

#ifdef __cplusplus
}
#endif
#endif
