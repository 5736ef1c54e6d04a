/* SPDX-License-Identifier: Apache-2.0 */
/* The log: one line an event, to stderr, the journal or syslog. Safe from any thread.
 */
#ifndef QF_BASE_LOG_H
#define QF_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_log_level { QF_LOG_ERROR, QF_LOG_WARN, QF_LOG_INFO, QF_LOG_DEBUG };

/* Lines above `level` are dropped. The default is QF_LOG_INFO. */
void qf_log_set_level(enum qf_log_level level);

/* One JSON object a line instead of text: "time" (UTC), "level", "pid", "message". */
void qf_log_set_json(bool on);

/* When stderr is the journal's (JOURNAL_STREAM), lines begin with "<N>", their priority
 * for it, instead of the level's name. */
void qf_log_to_journal(void);

/* Sends lines to syslog instead of stderr (a daemon has no stderr). */
void qf_log_to_syslog(void);

void qf_log(enum qf_log_level level, const char *fmt, ...) QF_PRINTF(2, 3);

/* For what can happen again with each request. The line is "subject: sentence" (the
 * subject names a file); the same line within QF_LOG_REPEAT_MS of the first is counted
 * instead, and "subject: sentence (N more)" is logged when that time is over. */
void qf_log_repeated(enum qf_log_level level, const char *subject, const char *fmt, ...)
    QF_PRINTF(3, 4);
/* Logs the counts whose time is over at `now_ms` (of qf_clock_ms); INT64_MAX: all of
 * them. Somebody must call this now and then, and at the end. */
void qf_log_repeated_flush(int64_t now_ms);

#define QF_LOG_REPEAT_MS 60000

#ifdef __cplusplus
}
#endif
#endif
