/* SPDX-License-Identifier: Apache-2.0 */
/* The subcommands. Each runs with its own argv (argv[0] is its name) and returns the
 * process's exit code. Private to cli/. */
#ifndef QF_CLI_CLI_H
#define QF_CLI_CLI_H

#include <stdatomic.h>
#include <stddef.h>

#include "base/err.h"
#include "cli/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Exit codes of all subcommands but mount and umount (which have mount(8)'s). */
#define QF_CLI_OK     0
#define QF_CLI_USAGE  1
#define QF_CLI_FAILED 2

extern const struct qf_cli_command qf_cmd_mount;
extern const struct qf_cli_command qf_cmd_umount;
extern const struct qf_cli_command qf_cmd_info;
extern const struct qf_cli_command qf_cmd_check;
extern const struct qf_cli_command qf_cmd_diff;
extern const struct qf_cli_command qf_cmd_cache;
extern const struct qf_cli_command qf_cmd_warm;
extern const struct qf_cli_command qf_cmd_export;
extern const struct qf_cli_command qf_cmd_verify;
extern const struct qf_cli_command qf_cmd_doctor;
extern const struct qf_cli_command qf_cmd_demo;

/* Prints "quantfs <command>: sentence" and a pointer to --help; returns QF_CLI_USAGE.
 */
int qf_cli_usage_error(const char *command, const char *fmt, ...) QF_PRINTF(2, 3);

/* The argument of an option: a number from 1 to `max`; returns 0 or QF_CLI_USAGE. */
int qf_cli_number(const char *command, const char *option, const char *text,
                  unsigned max, unsigned *out);

/* From now on SIGINT and SIGTERM only set this to their number; a second one ends the
 * process. */
const atomic_int *qf_cli_catch_signals(void);

/* Where the cache is unless the user says otherwise: $XDG_CACHE_HOME/quantfs,
 * ~/.cache/quantfs; /var/cache/quantfs for root. */
int qf_cli_cache_dir(char *out, size_t size, struct qf_err *err) QF_MUST_CHECK;

/* A small file whole, with a NUL behind it that *size does not count. Returns owned. */
int qf_cli_read_file(const char *path, size_t size_max, char **data, size_t *size,
                     struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
