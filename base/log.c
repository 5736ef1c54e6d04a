/* SPDX-License-Identifier: Apache-2.0 */
/* One formatted buffer and one write per line, so that lines of several threads never
 * mix. */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <syslog.h>
#include <unistd.h>

#define LINE_SIZE 2048

static _Atomic int max_level = QF_LOG_INFO;
static atomic_bool use_syslog;

static const char *const level_names[] = {"error", "warning", "info", "debug"};
static const int level_priorities[] = {LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG};

void qf_log_set_level(enum qf_log_level level)
{
    atomic_store(&max_level, (int)level);
}

void qf_log_to_syslog(void)
{
    openlog("quantfs", LOG_PID, LOG_DAEMON);
    atomic_store(&use_syslog, true);
}

void qf_log(enum qf_log_level level, const char *fmt, ...)
{
    if ((int)level > atomic_load(&max_level))
        return;
    char line[LINE_SIZE];
    int head = snprintf(line, sizeof line, "quantfs: %s: ", level_names[level]);
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line + head, sizeof line - (size_t)head - 1, fmt, args);
    va_end(args);
    if (n < 0)
        return;
    if (atomic_load(&use_syslog)) {
        syslog(level_priorities[level], "%s", line + head);
        return;
    }
    size_t size = (size_t)head + (size_t)n;
    if (size > sizeof line - 2)
        size = sizeof line - 2;
    line[size++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, size);
    (void)ignored;
}
