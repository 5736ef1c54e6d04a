/* SPDX-License-Identifier: Apache-2.0 */
/* How far a long command is: a bar on a terminal, a plain line a second elsewhere. */
#ifndef QF_CLI_PROGRESS_H
#define QF_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct qf_progress {
    const char *label; /* borrowed */
    uint64_t total;    /* bytes */
    uint64_t done;
    FILE *to; /* NULL: nothing is shown */
    bool terminal;
    bool shown; /* the terminal's line holds the bar */
    int64_t started_ms;
    int64_t last_ms;
};

/* to: NULL for a quiet command. */
void qf_progress_start(struct qf_progress *progress, FILE *to, const char *label,
                       uint64_t total);
/* Shows it unless that was done a moment ago. */
void qf_progress_update(struct qf_progress *progress, uint64_t done);
/* Takes the bar away, before something else is printed; the next update shows it. */
void qf_progress_hide(struct qf_progress *progress);
/* The last word: shows where it has ended, on a line of its own. */
void qf_progress_end(struct qf_progress *progress, uint64_t done);

struct qf_bytes_text {
    char text[24];
};

/* "1.23 GB" */
struct qf_bytes_text qf_bytes_text(uint64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
