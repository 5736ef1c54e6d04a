/* SPDX-License-Identifier: Apache-2.0 */
/* One formatted buffer and one write per line, so that lines of several threads never
 * mix.
 *
 * Lines that repeat are known by a hash of what they say. The table is small and never
 * grows: when many different files fail at once, the one that has waited longest gives
 * up its place, and its count is logged early. */
#include "base/log.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"

#define TEXT_SIZE   2048
#define LINE_SIZE   (TEXT_SIZE + 64)
#define REPEATS_MAX 256

static _Atomic int max_level = QF_LOG_INFO;
static atomic_bool use_syslog, use_journal, use_json;

static const char *const level_names[] = {"error", "warning", "info", "debug"};
static const int level_priorities[] = {LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG};

/* A line that was logged, and is only counted until its time is over. */
struct repeat {
    uint64_t hash;
    int64_t since_ms;
    uint64_t more;
    enum qf_log_level level;
    char *text; /* NULL: the place is free */
};

static pthread_mutex_t repeats_lock = PTHREAD_MUTEX_INITIALIZER;
static struct repeat repeats[REPEATS_MAX];

void qf_log_set_level(enum qf_log_level level)
{
    atomic_store(&max_level, (int)level);
}

void qf_log_set_json(bool on)
{
    atomic_store(&use_json, on);
}

void qf_log_to_journal(void)
{
    /* The variable is inherited by children whose stderr is another one. */
    const char *stream = getenv("JOURNAL_STREAM");
    uintmax_t dev, ino;
    struct stat st;
    atomic_store(&use_journal, stream != NULL &&
                                   sscanf(stream, "%ju:%ju", &dev, &ino) == 2 &&
                                   fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev &&
                                   st.st_ino == ino);
}

void qf_log_to_syslog(void)
{
    openlog("quantfs", LOG_PID, LOG_DAEMON);
    atomic_store(&use_syslog, true);
}

/* ---- lines ---- */

static void append_json(struct qf_buf *out, enum qf_log_level level, const char *text)
{
    struct timeval now;
    struct tm utc;
    char time[32];
    gettimeofday(&now, NULL);
    gmtime_r(&now.tv_sec, &utc);
    strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%S", &utc);
    qf_buf_appendf(out, "{\"time\":\"%s.%03dZ\",\"level\":\"%s\",\"pid\":%d,", time,
                   (int)(now.tv_usec / 1000), level_names[level], (int)getpid());
    qf_buf_append_str(out, "\"message\":");
    qf_buf_append_json(out, text, strlen(text));
    qf_buf_append_str(out, "}");
}

static void put_stderr(enum qf_log_level level, const char *text)
{
    struct qf_buf line = {0};
    bool journal = atomic_load(&use_journal), json = atomic_load(&use_json);
    if (journal)
        qf_buf_appendf(&line, "<%d>", level_priorities[level]);
    if (json)
        append_json(&line, level, text);
    else if (journal)
        qf_buf_append_str(&line, text);
    else
        qf_buf_appendf(&line, "quantfs: %s: %s", level_names[level], text);
    qf_buf_append_str(&line, "\n");
    ssize_t ignored = line.failed ? 0 : write(STDERR_FILENO, line.data, line.size);
    (void)ignored;
    qf_buf_fini(&line);
}

static void put_syslog(enum qf_log_level level, const char *text)
{
    struct qf_buf line = {0};
    if (atomic_load(&use_json))
        append_json(&line, level, text);
    else
        qf_buf_append_str(&line, text);
    if (!line.failed)
        syslog(level_priorities[level], "%.*s", (int)line.size, line.data);
    qf_buf_fini(&line);
}

static void put(enum qf_log_level level, const char *text)
{
    if (atomic_load(&use_syslog))
        put_syslog(level, text);
    else
        put_stderr(level, text);
}

void qf_log(enum qf_log_level level, const char *fmt, ...)
{
    if ((int)level > atomic_load(&max_level))
        return;
    char text[TEXT_SIZE];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n >= 0)
        put(level, text);
}

/* ---- lines that repeat; with the lock held ---- */

static void repeat_end(struct repeat *repeat)
{
    if (repeat->more > 0) {
        char line[LINE_SIZE];
        snprintf(line, sizeof line, "%s (%" PRIu64 " more)", repeat->text,
                 repeat->more);
        put(repeat->level, line);
    }
    free(repeat->text);
    *repeat = (struct repeat){0};
}

static void end_old(int64_t now_ms)
{
    for (size_t i = 0; i < REPEATS_MAX; i++)
        if (repeats[i].text != NULL &&
            (now_ms == INT64_MAX || now_ms - repeats[i].since_ms >= QF_LOG_REPEAT_MS))
            repeat_end(&repeats[i]);
}

/* The place of this line; else a free one, or the oldest, which is freed. */
static struct repeat *place_of(uint64_t hash)
{
    struct repeat *oldest = &repeats[0];
    for (size_t i = 0; i < REPEATS_MAX; i++) {
        if (repeats[i].text != NULL && repeats[i].hash == hash)
            return &repeats[i];
        bool better =
            repeats[i].text == NULL
                ? oldest->text != NULL
                : oldest->text != NULL && repeats[i].since_ms < oldest->since_ms;
        if (better)
            oldest = &repeats[i];
    }
    if (oldest->text != NULL)
        repeat_end(oldest);
    return oldest;
}

void qf_log_repeated(enum qf_log_level level, const char *subject, const char *fmt, ...)
{
    if ((int)level > atomic_load(&max_level))
        return;
    char text[TEXT_SIZE];
    int head = snprintf(text, sizeof text, "%s: ", subject);
    if (head < 0 || (size_t)head >= sizeof text)
        return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(text + head, sizeof text - (size_t)head, fmt, args);
    va_end(args);
    uint64_t hash = qf_hash64(text, strlen(text));
    pthread_mutex_lock(&repeats_lock);
    int64_t now_ms = qf_clock_ms();
    end_old(now_ms);
    struct repeat *repeat = place_of(hash);
    if (repeat->text != NULL) {
        repeat->more++;
    } else {
        *repeat = (struct repeat){hash, now_ms, 0, level, strdup(text)};
        put(level, text);
    }
    pthread_mutex_unlock(&repeats_lock);
}

void qf_log_repeated_flush(int64_t now_ms)
{
    pthread_mutex_lock(&repeats_lock);
    end_old(now_ms);
    pthread_mutex_unlock(&repeats_lock);
}
