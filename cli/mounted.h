/* SPDX-License-Identifier: Apache-2.0 */
/* A mount of ours seen from outside, by its status file. */
#ifndef QF_CLI_MOUNTED_H
#define QF_CLI_MOUNTED_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The mount's top that `path` (absolute, without links) lies in or is. False: it lies
 * in none. */
bool qf_mounted_find(const char *path, char top[PATH_MAX]);
/* The source of a path: MNT/nf4/a/b becomes STORE/a/b. A path that lies in no mount
 * stays. */
void qf_mounted_source(char path[PATH_MAX]);
/* The whole status; returns owned. NULL: there is none. */
char *qf_mounted_status(const char *top);
/* The value of a key in a status; false: it is not there, or longer than fits. */
bool qf_mounted_value(const char *status, const char *key, char *out, size_t size);
/* The same for a number; 0 when it is not there. */
uint64_t qf_mounted_number(const char *status, const char *key);

#ifdef __cplusplus
}
#endif
#endif
