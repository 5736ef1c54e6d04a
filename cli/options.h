/* SPDX-License-Identifier: Apache-2.0 */
/* What a subcommand takes, as a table. The parser, --help, the man pages and the
 * completions of the shells all come from it (the latter by `quantfs help --dump`). */
#ifndef QF_CLI_OPTIONS_H
#define QF_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_CLI_OPTIONS_MAX 24

/* The word for a value says what kind it is, so what a shell completes: see
 * qf_cli_kind(). "a|b|c" are the words it can be. */
struct qf_cli_option {
    char id;           /* what take() gets */
    bool letter;       /* -id is the same */
    const char *name;  /* --name; getopt_long's abbreviations work as everywhere */
    const char *value; /* word for its value; NULL: it has none */
    bool repeats;
    const char *help; /* no capital, no full stop */
};

struct qf_cli_operand {
    const char *word;
    bool repeats;
};

struct qf_cli_exit {
    const char *code;
    const char *meaning;
};

/* Arrays end with a zeroed element, and may be NULL. */
struct qf_cli_command {
    const char *name;                    /* "mount", "cache prune" */
    const char *summary;                 /* one phrase for lists */
    const char *about;                   /* paragraphs, one a line */
    const struct qf_cli_option *options; /* without --help, which all have */
    const struct qf_cli_operand *operands;
    const struct qf_cli_exit *exits;
    const struct qf_cli_command *subcommands; /* of one that is nothing else */
    bool tells_mount_options;                 /* in its help */
    int (*run)(const struct qf_cli_command *self, int argc, char **argv);
};

/* One option; returns 0, or the exit code after qf_cli_usage_error(). */
typedef int qf_cli_take(void *arg, char id, const char *value);

struct qf_cli_line {
    char **operands; /* as many as the command takes, or more when the last repeats */
    size_t count;
};

/* Returns -1 when the command is to run. Otherwise the exit code: its help was printed
 * (0) or the line was wrong. take may be NULL when there are no options. */
int qf_cli_parse(const struct qf_cli_command *command, int argc, char **argv,
                 qf_cli_take *take, void *arg, struct qf_cli_line *line) QF_MUST_CHECK;

/* Runs the one of its subcommands that argv[1] names. */
int qf_cli_run_subcommand(const struct qf_cli_command *command, int argc, char **argv);

/* ---- help ---- */

/* "quantfs warm [-q] PATH…", broken before width with the given indent. */
void qf_cli_synopsis(const struct qf_cli_command *command, size_t indent, size_t width,
                     struct qf_buf *out);
void qf_cli_help(const struct qf_cli_command *command, struct qf_buf *out);
/* Everything as one JSON document. commands ends with NULL. */
void qf_cli_dump(const struct qf_cli_command *const *commands, struct qf_buf *out);
/* Prints what is in it (not NULL) and frees it; returns the exit code. */
int qf_cli_print(struct qf_buf *text);

/* What a word for a value stands for: "dir", "file", "view", "views", "mount-options",
 * "choice", "none"; NULL: no such word is known. */
const char *qf_cli_kind(const char *word);

#ifdef __cplusplus
}
#endif
#endif
