/* SPDX-License-Identifier: Apache-2.0 */
/* Leaving has two halves. First the mount is detached: nobody new comes in, and who has
 * files open reads on as before. That ends when they have closed them (the kernel then
 * ends the connection), when nobody has read for a second (a mapping may stay for
 * days), or when half of the time is over. Then the loop is stopped: what has been read
 * from the kernel is answered, what waits for the cache is written. Whatever hangs
 * there is left behind when the time is over: the cache on disk stands that, as it does
 * kill -9. */
#include "cli/serve.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/notify.h"
#include "fs/process.h"
#include "fs/signals.h"

#define TICK_MS         10000
#define TICK_LEAVING_MS 50
#define QUIET_MS        1000
#define LEAVE_NOW_MS    1000 /* for what is under way, when told twice to end */

enum phase { STARTING, SERVING, DRAINING, STOPPING, CLOSING };

struct qf_serve {
    struct qf_stack *stack;
    qf_signals *signals;
    qf_daemon *daemon;
    pthread_mutex_t lock; /* of all below; what it is about is not closed meanwhile */
    enum phase phase;
    bool handed_over;
    struct qf_kept kept; /* what a daemon before has left us, or we the next one */
    bool reload_wanted;  /* since before there was what to reload */
    int64_t drain_ends_ms, deadline_ms;
    uint64_t begun;      /* requests, when it was looked last */
    int64_t last_ms;     /* when one was under way last */
    int64_t watchdog_ms; /* 0: nobody waits for it */
    int64_t fed_ms;
    uint64_t ended; /* requests, then */
};

static bool is_served(const qf_serve *serve)
{
    return serve->phase == SERVING || serve->phase == DRAINING;
}

static void tell(const char *what)
{
    int rc = qf_notify("%s", what);
    if (rc != 0)
        qf_log(QF_LOG_DEBUG, "the service manager was not told '%s': %s", what,
               strerror(-rc));
}

static struct qf_metrics_load load_of(const qf_serve *serve)
{
    struct qf_metrics_load load;
    qf_metrics_load(qf_tree_metrics(serve->stack->tree), &load);
    return load;
}

/* ---- leaving ---- */

static void stop(qf_serve *serve, int64_t deadline_ms)
{
    serve->deadline_ms = deadline_ms;
    if (serve->phase < STOPPING)
        serve->phase = STOPPING;
}

static void drain(qf_serve *serve, int64_t now_ms)
{
    int64_t timeout_ms = 1000 * (int64_t)serve->stack->options->drain_timeout_s;
    const char *mountpoint = qf_daemon_mountpoint(serve->daemon);
    int rc = qf_daemon_detach(serve->daemon);
    serve->drain_ends_ms = now_ms + timeout_ms / 2;
    serve->deadline_ms = now_ms + timeout_ms;
    serve->last_ms = now_ms;
    serve->begun = load_of(serve).begun;
    tell("STOPPING=1");
    qf_log(QF_LOG_INFO, "%s: told to end: %s; waiting for readers", mountpoint,
           rc == 0 ? "unmounted" : strerror(-rc));
    serve->phase = DRAINING;
}

static void watch_drain(qf_serve *serve, int64_t now_ms)
{
    struct qf_metrics_load load = load_of(serve);
    if (load.begun != serve->begun || load.begun != load.ended)
        serve->last_ms = now_ms;
    serve->begun = load.begun;
    bool late = now_ms >= serve->drain_ends_ms;
    if (late)
        qf_log(QF_LOG_WARN, "%s: readers are cut off: they were given %u s",
               qf_daemon_mountpoint(serve->daemon),
               serve->stack->options->drain_timeout_s / 2);
    if (late || now_ms - serve->last_ms >= QUIET_MS)
        stop(serve, serve->deadline_ms);
}

/* Threads that hang cannot be ended but with the process. */
static void leave_behind(qf_serve *serve)
{
    if (serve->phase == STOPPING) {
        struct qf_metrics_load load = load_of(serve);
        qf_log(QF_LOG_ERROR, "left with %" PRIu64 " requests unanswered",
               load.begun - load.ended);
    } else {
        qf_log(QF_LOG_ERROR, "left before all was written to the cache");
    }
    _exit(serve->handed_over ? QF_EXIT_RESTART : QF_EXIT_SYSTEM);
}

/* The next daemon shall not be: the loop ends all the same, with no mount. */
static void take_back(qf_serve *serve)
{
    serve->handed_over = false;
    qf_log(QF_LOG_INFO, "%s: told to end: not left to the next daemon",
           serve->kept.mountpoint);
    qf_kept_end(&serve->kept);
    tell("STOPPING=1");
}

/* ---- what a signal does ---- */

static void reload(qf_serve *serve)
{
    struct qf_err err = {""};
    int rc = qf_notify("RELOADING=1\nMONOTONIC_USEC=%" PRId64, 1000 * qf_clock_ms());
    if (rc != 0)
        qf_log(QF_LOG_WARN, "telling the service manager: %s", strerror(-rc));
    rc = qf_stack_reload(serve->stack, &err);
    if (rc == 0)
        qf_log(QF_LOG_INFO, "SIGHUP: policy and limits are read again");
    else
        qf_log(QF_LOG_ERROR, "SIGHUP: what was in force stays: %s",
               err.text[0] != '\0' ? err.text : strerror(-rc));
    tell("READY=1");
}

static void log_status(qf_serve *serve)
{
    struct qf_buf text = {0};
    qf_tree_status(serve->stack->tree, &text);
    char *line = qf_buf_take(&text, NULL);
    if (line == NULL)
        return;
    for (char *p = line; *p != '\0'; p++)
        if (*p == '\n')
            *p = p[1] != '\0' ? ' ' : '\0';
    qf_log(QF_LOG_INFO, "status: %s", line);
    free(line);
}

static void told_to_end(qf_serve *serve)
{
    int64_t now_ms = qf_clock_ms();
    if (serve->handed_over)
        take_back(serve);
    else if (serve->phase == SERVING)
        drain(serve, now_ms);
    else if (serve->deadline_ms == 0 || now_ms + LEAVE_NOW_MS < serve->deadline_ms)
        stop(serve, now_ms + LEAVE_NOW_MS);
}

/* Unmounts nothing: what is not answered, the next daemon is asked again. */
static void hand_over(qf_serve *serve)
{
    const char *mountpoint = qf_daemon_mountpoint(serve->daemon);
    /* A keeper that has died will not start the next one. */
    bool heard = qf_notify("STATUS=leaving the mount to the next daemon") == 0;
    if (!heard || qf_daemon_hand_over(serve->daemon, &serve->kept) != 0) {
        qf_log(QF_LOG_ERROR,
               "SIGUSR2: nobody would start the next daemon of %s (-o "
               "restart=)",
               mountpoint);
        return;
    }
    qf_log(QF_LOG_INFO, "SIGUSR2: %s is left to the next daemon", mountpoint);
    serve->handed_over = true;
    stop(serve, qf_clock_ms() + 1000 * (int64_t)serve->stack->options->drain_timeout_s);
}

/* What is being opened is of no use to anybody yet; a mount that waits for it is. */
static void caught_at_the_start(qf_serve *serve, int signo)
{
    bool resuming = serve->kept.fuse_fd >= 0;
    if (signo == SIGUSR1)
        return;
    if (resuming && signo == SIGHUP) {
        serve->reload_wanted = true; /* the files may have been read already */
        return;
    }
    if (resuming && signo == SIGUSR2)
        _exit(QF_EXIT_RESTART);
    if (resuming) {
        qf_kept_end(&serve->kept);
        tell("STOPPING=1");
    }
    qf_signals_die(signo);
}

static void caught(void *arg, int signo)
{
    qf_serve *serve = arg;
    pthread_mutex_lock(&serve->lock);
    if (serve->phase == STARTING)
        caught_at_the_start(serve, signo);
    else if (signo == SIGTERM || signo == SIGINT)
        told_to_end(serve);
    else if (serve->phase == SERVING && signo == SIGHUP)
        reload(serve);
    else if (serve->phase == SERVING && signo == SIGUSR2)
        hand_over(serve);
    else if (is_served(serve) && signo == SIGUSR1)
        log_status(serve);
    pthread_mutex_unlock(&serve->lock);
}

/* ---- at intervals ---- */

/* Alive: a thread waits for the next request, or one has been answered since. */
static void feed_watchdog(qf_serve *serve, int64_t now_ms)
{
    if (serve->watchdog_ms == 0 || now_ms - serve->fed_ms < serve->watchdog_ms / 2)
        return;
    struct qf_metrics_load load = load_of(serve);
    if (load.waiting > 0 || load.ended != serve->ended) {
        tell("WATCHDOG=1");
        serve->fed_ms = now_ms;
    }
    serve->ended = load.ended;
}

static void look_after(qf_serve *serve, int64_t now_ms)
{
    if (is_served(serve))
        feed_watchdog(serve, now_ms);
    if (serve->phase == DRAINING)
        watch_drain(serve, now_ms);
    if (serve->phase == STOPPING)
        qf_daemon_stop(serve->daemon);
    if (serve->deadline_ms != 0 && now_ms >= serve->deadline_ms)
        leave_behind(serve);
}

static int tick(void *arg)
{
    qf_serve *serve = arg;
    int64_t now_ms = qf_clock_ms();
    qf_log_repeated_flush(now_ms);
    pthread_mutex_lock(&serve->lock);
    look_after(serve, now_ms);
    bool leaving = serve->deadline_ms != 0;
    pthread_mutex_unlock(&serve->lock);
    if (leaving)
        return TICK_LEAVING_MS;
    bool soon = serve->watchdog_ms != 0 && serve->watchdog_ms / 4 < TICK_MS;
    return soon ? (int)(serve->watchdog_ms / 4) + 1 : TICK_MS;
}

static void enter(qf_serve *serve, enum phase phase)
{
    pthread_mutex_lock(&serve->lock);
    serve->phase = phase;
    pthread_mutex_unlock(&serve->lock);
}

/* ---- from beginning to end ---- */

static void free_serve(qf_serve *serve)
{
    qf_kept_fini(&serve->kept);
    pthread_mutex_destroy(&serve->lock);
    free(serve);
}

/* What came while we were starting is done now. */
static void begin_serving(qf_serve *serve)
{
    pthread_mutex_lock(&serve->lock);
    qf_kept_fini(&serve->kept); /* the daemon's now */
    serve->phase = SERVING;
    tell("READY=1");
    if (serve->reload_wanted)
        reload(serve);
    pthread_mutex_unlock(&serve->lock);
}

int qf_serve_begin(struct qf_stack *stack, struct qf_kept *resumed, qf_serve **out)
{
    qf_serve *serve = calloc(1, sizeof *serve);
    if (serve == NULL) {
        qf_kept_fini(resumed);
        return -ENOMEM;
    }
    serve->stack = stack;
    serve->kept = *resumed;
    *resumed = QF_KEPT_NONE;
    pthread_mutex_init(&serve->lock, NULL);
    serve->watchdog_ms = qf_notify_watchdog_ms();
    const struct qf_signals_ops ops = {.caught = caught, .tick = tick, .arg = serve};
    qf_signals_block();
    int rc = qf_signals_start(&ops, &serve->signals);
    if (rc != 0) {
        free_serve(serve);
        return rc;
    }
    *out = serve;
    return 0;
}

int qf_serve_run(qf_serve *serve, qf_daemon *daemon)
{
    serve->daemon = daemon;
    begin_serving(serve);
    int rc = qf_daemon_serve(daemon);
    enter(serve, CLOSING);
    return rc;
}

bool qf_serve_end(qf_serve *serve)
{
    if (serve == NULL)
        return false;
    qf_signals_stop(serve->signals);
    qf_log_repeated_flush(INT64_MAX);
    /* The last moment to be told: nobody asks who has gone. */
    if (serve->handed_over && qf_signals_end_pending())
        take_back(serve);
    bool handed_over = serve->handed_over;
    free_serve(serve);
    return handed_over;
}
