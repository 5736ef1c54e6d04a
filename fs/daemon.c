/* SPDX-License-Identifier: Apache-2.0 */
/* libfuse prints what went wrong instead of returning it; its log is caught while we
 * mount, so that the sentence reaches the prompt. */
#define FUSE_USE_VERSION 314
#include "fs/daemon.h"

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/notify.h"
#include "base/pool.h"
#include "fs/fuse_ll.h"
#include "fs/fuse_wire.h"
#include "fs/mountpoint.h"

/* A reader may wait for an encode in one of these; others go on. */
#define SERVE_THREADS_MIN 8u

struct qf_daemon {
    struct qf_fuse_context context;
    struct fuse_session *session;
    char *mountpoint; /* absolute */
    char device[QF_KEPT_DEVICE_SIZE];
    unsigned read_ahead_kb;
    bool one_fd; /* no clones of it: requests that they have read cannot be resent */
    /* Written by the thread of signals, too. */
    atomic_bool mounted; /* and it is for us to unmount */
    atomic_bool kept;    /* a service manager or a keeper has it, too */
    bool resumed;        /* from a daemon before this one */
    pthread_t thread;    /* that serves */
    atomic_bool serving;
};

static char fuse_message[QF_ERR_TEXT_SIZE]; /* written while one thread mounts */
static atomic_bool catching;

static void QF_PRINTF(2, 0)
    catch_fuse_log(enum fuse_log_level level, const char *fmt, va_list args)
{
    char line[QF_ERR_TEXT_SIZE];
    vsnprintf(line, sizeof line, fmt, args);
    line[strcspn(line, "\n")] = '\0';
    const char *text = strncmp(line, "fuse: ", 6) == 0 ? line + 6 : line;
    if (level <= FUSE_LOG_ERR && atomic_load(&catching))
        snprintf(fuse_message, sizeof fuse_message, "%s", text);
    else if (level <= FUSE_LOG_WARNING)
        qf_log(QF_LOG_DEBUG, "libfuse: %s", text);
}

const char *qf_daemon_libfuse_version(void)
{
    static char text[64];
    snprintf(text, sizeof text, "libfuse %s", fuse_pkgversion());
    return text;
}

/* "a,b" for -o; a comma or a backslash in a value is escaped for libfuse. */
static void append_escaped(struct qf_buf *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == ',' || *text == '\\')
            qf_buf_append(out, "\\", 1);
        qf_buf_append(out, text, 1);
    }
}

static char *mount_words(const struct qf_mount_options *options, const char *store_path)
{
    struct qf_buf words = {0};
    qf_buf_append_str(&words, "ro,default_permissions,subtype=quantfs,fsname=");
    append_escaped(&words, options->fsname[0] != '\0' ? options->fsname : store_path);
    qf_buf_appendf(&words, ",max_read=%u", QF_FUSE_READ_SIZE_MAX);
    if (options->allow_other)
        qf_buf_append_str(&words, ",allow_other");
    if (options->kernel[0] != '\0')
        qf_buf_appendf(&words, ",%s", options->kernel);
    return qf_buf_take(&words, NULL);
}

static int new_session(qf_daemon *daemon, char *words, struct qf_err *err)
{
    char *argv[] = {(char *)"quantfs", (char *)"-o", words, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);
    const struct fuse_lowlevel_ops *ops = qf_fuse_ops();
    daemon->session = fuse_session_new(&args, ops, sizeof *ops, &daemon->context);
    fuse_opt_free_args(&args);
    if (daemon->session == NULL)
        return qf_err_set(err, -EINVAL, "libfuse: %s", fuse_message);
    return 0;
}

static int open_backing(void *arg, int fd)
{
    const qf_daemon *daemon = arg;
    return qf_wire_backing_open(fuse_session_fd(daemon->session), fd);
}

static void close_backing(void *arg, int id)
{
    const qf_daemon *daemon = arg;
    qf_wire_backing_close(fuse_session_fd(daemon->session), id);
}

/* INIT cannot raise read-ahead above 128 KiB; root can, here, once INIT is answered
 * (which sets it to what was agreed). Without it a memcpy from a mapping makes requests
 * of 128 KiB one at a time. */
static void raise_read_ahead(void *arg)
{
    const qf_daemon *daemon = arg;
    struct qf_mountpoint mount;
    char path[128];
    if (daemon->read_ahead_kb == 0 || !qf_mountpoint_find(daemon->mountpoint, &mount))
        return;
    snprintf(path, sizeof path, "/sys/class/bdi/%s/read_ahead_kb", mount.device);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        qf_log(QF_LOG_DEBUG, "%s: %s (read-ahead stays as it is)", path,
               strerror(errno));
        return;
    }
    char text[16];
    int n = snprintf(text, sizeof text, "%u", daemon->read_ahead_kb);
    if (write(fd, text, (size_t)n) != n)
        qf_log(QF_LOG_DEBUG, "%s: %s", path, strerror(errno));
    close(fd);
}

/* libfuse has mounted; only its reading and writing is replaced. A libfuse that has
 * talked to the kernel before this (a synchronous INIT) leaves passthrough off. */
static void hook_io(qf_daemon *daemon)
{
    daemon->context.started = raise_read_ahead;
    daemon->context.started_arg = daemon;
    daemon->context.device = (struct qf_passthrough_device){.open = open_backing,
                                                            .close = close_backing,
                                                            .arg = daemon};
    if (fuse_session_custom_io(daemon->session, qf_fuse_io(),
                               fuse_session_fd(daemon->session)) != 0)
        qf_passthrough_off(daemon->context.passthrough,
                           "libfuse takes no reader of ours");
}

/* libfuse's loop waits in sem_wait, which only a signal ends; what the handler does is
 * nothing. */
static void wake(int signo)
{
    (void)signo;
}

static void catch_wake_signal(void)
{
    struct sigaction action = {.sa_handler = wake};
    sigemptyset(&action.sa_mask);
    sigaction(SIGRTMIN, &action, NULL);
}

static int new_handles(qf_daemon *daemon)
{
    return qf_handles_new(daemon->context.tree, daemon->context.journal,
                          &daemon->context.handles);
}

static int copy_device(void *arg, uint64_t key, const void *data, size_t size)
{
    (void)key;
    snprintf(arg, QF_KEPT_DEVICE_SIZE, "%.*s", (int)size, (const char *)data);
    return 0;
}

/* A journal that is none is told of when it is gone on from. */
static void find_device(struct qf_passed *passed)
{
    qf_journal *journal = NULL;
    int fd = fcntl(passed->journal_fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 || qf_journal_open(fd, &journal) != 0 ||
        qf_journal_each(journal, QF_JOURNAL_DEVICE, copy_device, passed->device) != 0)
        passed->device[0] = '\0';
    qf_journal_close(journal);
}

void qf_daemon_passed(const struct qf_mount_options *options, struct qf_passed *out)
{
    *out = (struct qf_passed){-1, -1, ""};
    if (options->restart == QF_RESTART_OFF)
        return;
    out->fuse_fd = qf_notify_passed(QF_NOTIFY_FUSE);
    out->journal_fd = qf_notify_passed(QF_NOTIFY_JOURNAL);
    if (out->journal_fd < 0 || !qf_kept_is_alive(out->fuse_fd))
        qf_passed_close(out); /* unmounted meanwhile, or none was left for us */
    else
        find_device(out);
}

void qf_passed_close(struct qf_passed *passed)
{
    if (passed->fuse_fd >= 0)
        close(passed->fuse_fd);
    if (passed->journal_fd >= 0)
        close(passed->journal_fd);
    *passed = (struct qf_passed){-1, -1, ""};
}

/* Whoever has our descriptors lets them go. */
static void forget_kept(qf_daemon *daemon)
{
    if (!daemon->kept)
        return;
    daemon->kept = false;
    qf_kept_forget(daemon->mountpoint);
}

/* Leaves the mount with the manager, before the kernel is answered anything. */
static int keep(qf_daemon *daemon, struct qf_err *err)
{
    int rc = qf_journal_new(&daemon->context.journal);
    if (rc == 0)
        rc = qf_tree_keep(daemon->context.tree, daemon->context.journal, false);
    daemon->kept = daemon->one_fd = true;
    if (rc == 0) {
        qf_journal_set(daemon->context.journal, QF_JOURNAL_DEVICE, 0, daemon->device,
                       strlen(daemon->device));
        rc = qf_notify_store(QF_NOTIFY_JOURNAL, qf_journal_fd(daemon->context.journal));
    }
    if (rc == 0)
        rc = qf_notify_store(QF_NOTIFY_FUSE, fuse_session_fd(daemon->session));
    if (rc != 0)
        return qf_err_set(err, rc,
                          "restart=systemd: nobody takes the mount's descriptor: %s "
                          "(start it by a unit with Type=notify)",
                          strerror(-rc));
    return 0;
}

/* Of what has just been mounted. */
static void note_device(qf_daemon *daemon)
{
    struct qf_mountpoint mount;
    if (qf_mountpoint_find(daemon->mountpoint, &mount))
        snprintf(daemon->device, sizeof daemon->device, "%s", mount.device);
}

/* Over a descriptor that is mounted already. */
static int adopt(qf_daemon *daemon, int fd, struct qf_err *err)
{
    char path[32];
    snprintf(path, sizeof path, "/dev/fd/%d", fd);
    if (fuse_session_mount(daemon->session, path) != 0)
        return qf_err_set(err, -EBADF, "%s: %s", path, fuse_message);
    return 0;
}

static int resume(qf_daemon *daemon, struct qf_passed *passed, struct qf_err *err)
{
    daemon->kept = daemon->mounted = daemon->resumed = daemon->one_fd = true;
    memcpy(daemon->device, passed->device, sizeof daemon->device);
    int rc = adopt(daemon, passed->fuse_fd, err);
    if (rc != 0)
        return rc;
    passed->fuse_fd = -1; /* the session's */
    hook_io(daemon);
    rc = qf_journal_open(passed->journal_fd, &daemon->context.journal);
    passed->journal_fd = -1;
    if (rc == 0)
        rc = new_handles(daemon);
    if (rc == 0)
        rc = qf_fuse_resume(&daemon->context, daemon->session);
    if (rc != 0)
        return qf_err_set(
            err, rc, "%s: what the daemon before has left cannot be gone on from: %s",
            daemon->mountpoint, strerror(-rc));
    return 0;
}

static int mount_anew(qf_daemon *daemon, const struct qf_mount_options *options,
                      struct qf_err *err)
{
    int fd;
    char end;
    if (sscanf(daemon->mountpoint, "/dev/fd/%d%c", &fd, &end) == 1) {
        int rc = adopt(daemon, fd, err);
        if (rc != 0)
            return rc;
    } else if (fuse_session_mount(daemon->session, daemon->mountpoint) != 0) {
        return qf_err_set(err, -EIO, "mounting on %s: %s", daemon->mountpoint,
                          fuse_message[0] != '\0' ? fuse_message
                                                  : "refused (is /dev/fuse there?)");
    } else {
        daemon->mounted = true;
        note_device(daemon);
    }
    hook_io(daemon);
    int rc = options->restart != QF_RESTART_OFF ? keep(daemon, err) : 0;
    return rc == 0 ? new_handles(daemon) : rc;
}

static char *absolute(const char *mountpoint)
{
    bool is_fd = strncmp(mountpoint, "/dev/fd/", 8) == 0;
    return is_fd ? strdup(mountpoint) : realpath(mountpoint, NULL);
}

int qf_daemon_mount(const struct qf_mount_options *options, qf_tree *tree,
                    qf_passthrough *passthrough, const char *store_path,
                    const char *mountpoint, struct qf_passed *passed, qf_daemon **out,
                    struct qf_err *err)
{
    qf_daemon *daemon = calloc(1, sizeof *daemon);
    char *words = mount_words(options, store_path);
    bool resuming = passed->fuse_fd >= 0;
    int rc = -ENOMEM;
    if (daemon == NULL || words == NULL)
        goto out;
    daemon->context = (struct qf_fuse_context){.tree = tree,
                                               .attr_ttl_s = options->attr_ttl_s,
                                               .passthrough = passthrough};
    daemon->read_ahead_kb = options->read_ahead_kb;
    /* Nobody serves what we go on with: a look at it would wait for ever. */
    daemon->mountpoint = resuming ? strdup(mountpoint) : absolute(mountpoint);
    if (daemon->mountpoint == NULL) {
        rc = qf_err_set(err, -errno, "%s: %s", mountpoint, strerror(errno));
        goto out;
    }
    fuse_set_log_func(catch_fuse_log);
    atomic_store(&catching, true);
    rc = new_session(daemon, words, err);
    if (rc != 0)
        goto out;
    rc = resuming ? resume(daemon, passed, err) : mount_anew(daemon, options, err);
    catch_wake_signal();
out:
    atomic_store(&catching, false);
    free(words);
    qf_passed_close(passed);
    if (rc != 0) {
        qf_daemon_close(daemon);
        return rc;
    }
    *out = daemon;
    return 0;
}

void qf_daemon_stop(qf_daemon *daemon)
{
    fuse_session_exit(daemon->session);
    if (atomic_load(&daemon->serving))
        pthread_kill(daemon->thread, SIGRTMIN);
}

const char *qf_daemon_mountpoint(const qf_daemon *daemon)
{
    return daemon->mountpoint;
}

int qf_daemon_detach(qf_daemon *daemon)
{
    forget_kept(daemon);
    if (!daemon->mounted)
        return 0;
    daemon->mounted = false;
    return qf_kept_unmount(daemon->mountpoint, daemon->device,
                           fuse_session_fd(daemon->session));
}

int qf_daemon_hand_over(qf_daemon *daemon, struct qf_kept *out)
{
    if (!daemon->kept)
        return -ENOTCONN;
    int rc = qf_kept_init(out, daemon->mountpoint, daemon->device,
                          fuse_session_fd(daemon->session));
    if (rc == 0)
        daemon->mounted = daemon->kept = false;
    return rc;
}

int qf_daemon_serve(qf_daemon *daemon)
{
    if (daemon->resumed) { /* read-ahead is the mount's: it was raised before */
        int rc = qf_fuse_resend(fuse_session_fd(daemon->session));
        if (rc != 0)
            return rc;
    } else {
        raise_read_ahead(daemon); /* if libfuse has answered INIT while mounting */
    }
    daemon->thread = pthread_self();
    atomic_store(&daemon->serving, true);
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (config == NULL)
        return -ENOMEM;
    unsigned threads = 2 * qf_cpu_count();
    if (threads < SERVE_THREADS_MIN)
        threads = SERVE_THREADS_MIN;
    /* What was read by a clone and not answered is lost with the clone. */
    fuse_loop_cfg_set_clone_fd(config, daemon->one_fd ? 0 : 1);
    fuse_loop_cfg_set_max_threads(config, threads);
    fuse_loop_cfg_set_idle_threads(config, threads);
    int rc = fuse_session_loop_mt(daemon->session, config);
    fuse_loop_cfg_destroy(config);
    atomic_store(&daemon->serving, false);
    /* The end of a connection that we have let go is no error, whichever the kernel
     * calls it; nor is a signal that ends us. */
    if (rc == -ECONNABORTED && !daemon->mounted)
        return 0;
    return rc < 0 ? rc : 0;
}

/* libfuse unmounts what it has mounted, and closes the descriptor first: who then looks
 * at the mount gets an error instead of no answer. */
static int unmount(qf_daemon *daemon)
{
    int fd = fuse_session_fd(daemon->session);
    if (daemon->resumed)
        return qf_kept_unmount(daemon->mountpoint, daemon->device, fd);
    int rc = qf_kept_is_there(daemon->mountpoint, daemon->device, fd);
    if (rc == 1)
        fuse_session_unmount(daemon->session);
    return rc < 0 ? rc : 0;
}

void qf_daemon_close(qf_daemon *daemon)
{
    if (daemon == NULL)
        return;
    forget_kept(daemon);
    int rc = daemon->mounted ? unmount(daemon) : 0;
    if (rc != 0)
        qf_log(QF_LOG_WARN, "%s cannot be unmounted: %s", daemon->mountpoint,
               strerror(-rc));
    if (daemon->session != NULL)
        fuse_session_destroy(daemon->session);
    qf_handles_free(daemon->context.handles);
    qf_tree_keep_nothing(daemon->context.tree);
    qf_journal_close(daemon->context.journal);
    free(daemon->mountpoint);
    free(daemon);
}
