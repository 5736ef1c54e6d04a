/* SPDX-License-Identifier: Apache-2.0 */
/* The log: one line an event, to stderr. Safe from any thread. */
#ifndef QF_BASE_LOG_H
#define QF_BASE_LOG_H

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_log_level { QF_LOG_ERROR, QF_LOG_WARN, QF_LOG_INFO, QF_LOG_DEBUG };

/* Lines above `level` are dropped. The default is QF_LOG_INFO. */
void qf_log_set_level(enum qf_log_level level);

/* Sends lines to syslog instead of stderr (a daemon has no stderr). */
void qf_log_to_syslog(void);

void qf_log(enum qf_log_level level, const char *fmt, ...) QF_PRINTF(2, 3);

#ifdef __cplusplus
}
#endif
#endif
