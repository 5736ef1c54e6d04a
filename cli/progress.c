/* SPDX-License-Identifier: Apache-2.0 */
/* The rate is that of the whole time: what is left is guessed from it, and a guess that
 * jumps is of no use. */
#include "cli/progress.h"

#include <string.h>
#include <unistd.h>

#include "base/clock.h"

#define BAR_MS  100
#define LINE_MS 1000

struct qf_bytes_text qf_bytes_text(uint64_t bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB"};
    struct qf_bytes_text out;
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1000 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1000;
        unit++;
    }
    snprintf(out.text, sizeof out.text, unit == 0 ? "%.0f %s" : "%.2f %s", value,
             units[unit]);
    return out;
}

void qf_progress_start(struct qf_progress *progress, FILE *to, const char *label,
                       uint64_t total)
{
    int64_t now = qf_clock_ms();
    *progress = (struct qf_progress){.label = label,
                                     .total = total,
                                     .to = to,
                                     .terminal = to != NULL && isatty(fileno(to)),
                                     .started_ms = now,
                                     .last_ms = now};
}

static void show(struct qf_progress *p, int64_t now)
{
    double seconds = (double)(now - p->started_ms) / 1000;
    double speed = seconds > 0 ? (double)p->done / seconds : 0;
    uint64_t left = p->total > p->done ? p->total - p->done : 0;
    int percent =
        p->total != 0 ? (int)(100 * ((double)p->done / (double)p->total)) : 100;
    fprintf(p->to, "%s%s: %3d %%  %s of %s  %s/s", p->terminal ? "\r\033[K" : "",
            p->label, percent, qf_bytes_text(p->done).text,
            qf_bytes_text(p->total).text, qf_bytes_text((uint64_t)speed).text);
    if (speed > 0 && left > 0) {
        uint64_t s = (uint64_t)((double)left / speed);
        fprintf(p->to, "  %u:%02u:%02u left", (unsigned)(s / 3600),
                (unsigned)(s / 60 % 60), (unsigned)(s % 60));
    }
    fputs(p->terminal ? "" : "\n", p->to);
    fflush(p->to);
    p->shown = p->terminal;
    p->last_ms = now;
}

void qf_progress_update(struct qf_progress *progress, uint64_t done)
{
    progress->done = done;
    int64_t now = qf_clock_ms();
    if (progress->to != NULL &&
        now - progress->last_ms >= (progress->terminal ? BAR_MS : LINE_MS))
        show(progress, now);
}

void qf_progress_hide(struct qf_progress *progress)
{
    if (progress->shown)
        fputs("\r\033[K", progress->to);
    progress->shown = false;
}

void qf_progress_end(struct qf_progress *progress, uint64_t done)
{
    progress->done = done;
    if (progress->to == NULL)
        return;
    show(progress, qf_clock_ms());
    fputs(progress->terminal ? "\n" : "", progress->to);
    progress->shown = false;
}
