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
    unsigned read_ahead_kb;
    bool mounted;
    pthread_t thread; /* that serves */
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

/* libfuse has mounted; only its reading and writing is replaced. A libfuse that has
 * talked to the kernel before this (a synchronous INIT) leaves passthrough off. */
static void hook_io(qf_daemon *daemon)
{
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

int qf_daemon_mount(const struct qf_mount_options *options, qf_tree *tree,
                    qf_passthrough *passthrough, const char *store_path,
                    const char *mountpoint, qf_daemon **out, struct qf_err *err)
{
    qf_daemon *daemon = calloc(1, sizeof *daemon);
    char *words = mount_words(options, store_path);
    int rc = -ENOMEM;
    if (daemon == NULL || words == NULL)
        goto out;
    daemon->context = (struct qf_fuse_context){.tree = tree,
                                               .attr_ttl_s = options->attr_ttl_s,
                                               .passthrough = passthrough};
    daemon->read_ahead_kb = options->read_ahead_kb;
    daemon->mountpoint = realpath(mountpoint, NULL);
    if (daemon->mountpoint == NULL) {
        rc = qf_err_set(err, -errno, "%s: %s", mountpoint, strerror(errno));
        goto out;
    }
    fuse_set_log_func(catch_fuse_log);
    atomic_store(&catching, true);
    rc = new_session(daemon, words, err);
    if (rc != 0)
        goto out;
    if (fuse_session_mount(daemon->session, daemon->mountpoint) != 0) {
        rc = qf_err_set(err, -EIO, "mounting on %s: %s", mountpoint,
                        fuse_message[0] != '\0' ? fuse_message
                                                : "refused (is /dev/fuse there?)");
        goto out;
    }
    daemon->mounted = true;
    hook_io(daemon);
    catch_wake_signal();
out:
    atomic_store(&catching, false);
    free(words);
    if (rc != 0) {
        qf_daemon_close(daemon);
        return rc;
    }
    *out = daemon;
    return 0;
}

/* INIT cannot raise read-ahead above 128 KiB; root can, here. Without it a memcpy from
 * a mapping makes requests of 128 KiB one at a time. */
static void raise_read_ahead(const qf_daemon *daemon)
{
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

int qf_daemon_serve(qf_daemon *daemon)
{
    raise_read_ahead(daemon);
    daemon->thread = pthread_self();
    atomic_store(&daemon->serving, true);
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (config == NULL)
        return -ENOMEM;
    unsigned threads = 2 * qf_cpu_count();
    if (threads < SERVE_THREADS_MIN)
        threads = SERVE_THREADS_MIN;
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, threads);
    fuse_loop_cfg_set_idle_threads(config, threads);
    int rc = fuse_session_loop_mt(daemon->session, config);
    fuse_loop_cfg_destroy(config);
    atomic_store(&daemon->serving, false);
    /* A signal that ends us is a way to stop, not an error. */
    return rc < 0 ? rc : 0;
}

void qf_daemon_close(qf_daemon *daemon)
{
    if (daemon == NULL)
        return;
    if (daemon->mounted)
        fuse_session_unmount(daemon->session);
    if (daemon->session != NULL)
        fuse_session_destroy(daemon->session);
    free(daemon->mountpoint);
    free(daemon);
}
