/* SPDX-License-Identifier: Apache-2.0 */
/* All is opened after the fork: an error is seen at the prompt all the same, for the
 * parent waits for it. */
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/serve.h"
#include "cli/stack.h"
#include "fs/daemon.h"
#include "fs/keeper.h"
#include "fs/mountpoint.h"
#include "fs/opts.h"
#include "fs/process.h"
#include "fs/signals.h"

struct mount {
    struct qf_mount_options options;
    const char *store_path;
    const char *mountpoint;
    bool foreground;
    bool dry_run;
    bool resuming;                    /* from a daemon before this one */
    char lists[4 * QF_OPT_TEXT_SIZE]; /* of -o, joined */
    struct qf_stack stack;
    qf_daemon *daemon;
    qf_serve *serve;
};

/* True: the next daemon is to go on. */
static bool close_all(struct mount *m)
{
    qf_daemon_close(m->daemon);
    qf_stack_close(&m->stack);
    return qf_serve_end(m->serve);
}

/* Says why it will not come up; who goes on from another daemon has no prompt. */
static int failed(struct mount *m, struct qf_process *process, int code,
                  const char *sentence)
{
    if (m->resuming)
        qf_log(QF_LOG_ERROR, "%s", sentence);
    else
        qf_process_failed(process, code, sentence);
    close_all(m);
    return code;
}

static bool is_descriptor(const char *mountpoint)
{
    return strncmp(mountpoint, "/dev/fd/", 8) == 0;
}

static int open_all(struct mount *m, struct qf_passed *passed, int *code,
                    struct qf_err *err)
{
    bool look = !m->resuming && !is_descriptor(m->mountpoint);
    const struct qf_stack_options options = {
        .mount = &m->options,
        .store_path = m->store_path,
        .mountpoint = look ? m->mountpoint : NULL,
    };
    struct qf_stack *stack = &m->stack;
    *code = QF_EXIT_SYSTEM;
    struct qf_kept kept = QF_KEPT_NONE;
    int rc = 0;
    if (m->resuming)
        rc = qf_kept_init(&kept, m->mountpoint, passed->device, passed->fuse_fd);
    if (rc == 0)
        rc = qf_serve_begin(stack, &kept, &m->serve);
    if (rc == 0 && look)
        rc = qf_mountpoint_clear(m->mountpoint, err);
    if (rc == 0)
        rc = qf_stack_open(stack, &options, err);
    if (rc != 0)
        return rc;
    *code = QF_EXIT_MOUNT;
    return qf_daemon_mount(&m->options, stack->tree, stack->passthrough,
                           qf_root_path(stack->root), m->mountpoint, passed, &m->daemon,
                           err);
}

static int run(struct mount *m)
{
    struct qf_err err = {""};
    struct qf_process process;
    struct qf_passed passed;
    int code = QF_EXIT_SYSTEM;
    int rc = qf_process_start(m->foreground, &process, &err);
    if (rc != 0) {
        fprintf(stderr, "quantfs: %s\n", err.text);
        return code;
    }
    qf_daemon_passed(&m->options, &passed);
    m->resuming = passed.fuse_fd >= 0;
    if (m->resuming && m->options.log_syslog)
        qf_log_to_syslog();
    rc = open_all(m, &passed, &code, &err);
    if (rc != 0)
        return failed(m, &process, code,
                      err.text[0] != '\0' ? err.text : strerror(-rc));
    qf_process_ready(&process); /* from here on the log is the system's */
    if (m->foreground && m->options.log_syslog)
        qf_process_detach();
    qf_log(QF_LOG_INFO, "%s on %s: %sencoding with %s, cache %s", m->store_path,
           m->mountpoint, m->resuming ? "going on, " : "",
           qf_stack_backend_name(&m->stack), m->stack.store->ops->name);
    rc = qf_serve_run(m->serve, m->daemon);
    if (rc != 0)
        qf_log(QF_LOG_ERROR, "serving ended: %s", strerror(-rc));
    return close_all(m) ? QF_EXIT_RESTART : rc == 0 ? QF_EXIT_OK : QF_EXIT_SYSTEM;
}

/* ---- with a keeper ---- */

static void keeper_ready(void *arg)
{
    qf_process_ready(arg);
}

/* The daemon is started as systemd would: with the same options, later ones prevail. */
static char *daemon_options(const struct mount *m)
{
    struct qf_buf list = {0};
    qf_buf_append_str(&list, m->lists);
    qf_buf_append_str(&list, ",restart=systemd");
    if (!m->foreground)
        qf_buf_append_str(&list, ",log=syslog");
    static const struct {
        const char *name;
        size_t off;
    } paths[] = {{"cache", offsetof(struct qf_mount_options, cache)},
                 {"policy", offsetof(struct qf_mount_options, policy)},
                 {"limits", offsetof(struct qf_mount_options, limits)}};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        const char *path = (const char *)&m->options + paths[i].off;
        if (path[0] == '/')
            qf_buf_appendf(&list, ",%s=%s", paths[i].name, path);
    }
    return qf_buf_take(&list, NULL);
}

static int keep(struct mount *m)
{
    struct qf_err err = {""};
    struct qf_process process;
    static char program[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    char *list = daemon_options(m);
    char *store = realpath(m->store_path, NULL);
    char *mountpoint = NULL;
    int rc = n > 0 && list != NULL ? 0 : qf_err_set(&err, -ENOMEM, "no memory");
    if (rc == 0 && !is_descriptor(m->mountpoint)) {
        rc = qf_mountpoint_clear(m->mountpoint, &err);
        mountpoint = realpath(m->mountpoint, NULL);
    }
    if (rc == 0)
        rc = qf_process_start(m->foreground, &process, &err);
    if (rc != 0) {
        fprintf(stderr, "quantfs: %s\n", err.text);
        return QF_EXIT_SYSTEM;
    }
    /* What cannot be resolved the daemon refuses with a sentence. */
    char *argv[] = {(char *)"quantfs",
                    (char *)"mount",
                    (char *)"-f",
                    (char *)"-o",
                    list,
                    store != NULL ? store : (char *)(uintptr_t)m->store_path,
                    mountpoint != NULL ? mountpoint : (char *)(uintptr_t)m->mountpoint,
                    NULL};
    const struct qf_keeper_options options = {.program = program,
                                              .argv = argv,
                                              .mountpoint = argv[6],
                                              .ready = keeper_ready,
                                              .arg = &process};
    qf_signals_block();
    int code = qf_keeper_run(&options);
    if (process.status_fd >= 0) /* the daemon has said why itself */
        qf_process_failed(&process, code, "");
    free(list);
    free(store);
    free(mountpoint);
    return code;
}

/* ---- */

/* A daemon's directory is "/", and SIGHUP reads these files again. */
static void make_absolute(char *path, size_t size)
{
    char cwd[PATH_MAX], text[2 * PATH_MAX];
    if (path[0] == '\0' || path[0] == '/' || getcwd(cwd, sizeof cwd) == NULL)
        return;
    int n = snprintf(text, sizeof text, "%s/%s", cwd, path);
    if (n > 0 && (size_t)n < size && (size_t)n < sizeof text)
        memcpy(path, text, (size_t)n + 1);
}

/* More of a list for -o. */
static int add_list(struct mount *m, const char *list, struct qf_err *err)
{
    size_t used = strlen(m->lists);
    int n = snprintf(m->lists + used, sizeof m->lists - used, "%s%s",
                     used != 0 ? "," : "", list);
    if (n < 0 || (size_t)n >= sizeof m->lists - used)
        return qf_err_set(err, -EINVAL, "too many mount options");
    return qf_mount_options_parse(&m->options, list, err);
}

/* What `mount -f` (fake) wants to know. */
static int dry_run(const struct mount *m)
{
    const char *const paths[] = {m->store_path, m->mountpoint};
    for (size_t i = 0; i < 2; i++) {
        struct stat st;
        int error = stat(paths[i], &st) != 0 ? errno
                    : S_ISDIR(st.st_mode)    ? 0
                                             : ENOTDIR;
        if (error == 0)
            continue;
        fprintf(stderr, "quantfs: %s: %s\n", paths[i], strerror(error));
        return QF_EXIT_SYSTEM;
    }
    return QF_EXIT_OK;
}

static int take(void *arg, char id, const char *value)
{
    struct mount *m = arg;
    struct qf_err err = {""};
    if (id == 'f')
        m->foreground = true;
    else if (id == 'n')
        m->dry_run = true;
    else if (add_list(m, value, &err) != 0)
        return qf_cli_usage_error("mount", "%s", err.text);
    return 0;
}

static int mount_command(const struct qf_cli_command *self, int argc, char **argv)
{
    /* Options are kilobytes: not for the stack of a main that forks. */
    static struct mount m;
    struct qf_cli_line line;
    struct qf_err err = {""};
    qf_mount_options_init(&m.options);
    int code = qf_cli_parse(self, argc, argv, take, &m, &line);
    if (code >= 0)
        return code;
    m.store_path = line.operands[0];
    m.mountpoint = line.operands[1];
    if (m.options.restart != QF_RESTART_OFF &&
        strstr(m.options.kernel, "auto_unmount") != NULL)
        return qf_cli_usage_error("mount", "auto_unmount unmounts when the daemon "
                                           "dies, restart= does not: choose one");
    make_absolute(m.options.policy, sizeof m.options.policy);
    make_absolute(m.options.limits, sizeof m.options.limits);
    if (strcmp(m.options.cache, "none") != 0)
        make_absolute(m.options.cache, sizeof m.options.cache);
    if (qf_stack_default_views(&m.options, &err) != 0)
        return qf_cli_usage_error("mount", "%s", err.text);
    if (m.dry_run)
        return dry_run(&m);
    if (m.options.debug)
        qf_log_set_level(QF_LOG_DEBUG);
    qf_log_set_json(m.options.log_json);
    qf_log_to_journal();
    return m.options.restart == QF_RESTART_KEEPER ? keep(&m) : run(&m);
}

static const struct qf_cli_option options[] = {
    {.id = 'f',
     .letter = true,
     .name = "foreground",
     .help = "stay in the foreground, log to stderr"},
    {.id = 'n',
     .name = "dry-run",
     .help = "look at the options and whether both directories are there; mount "
             "nothing"},
    {.id = 'o',
     .letter = true,
     .name = "options",
     .value = "LIST",
     .repeats = true,
     .help = "mount options, separated by commas"},
    {0},
};

const struct qf_cli_command qf_cmd_mount = {
    .name = "mount",
    .summary = "mount STORE on MNT, its views as directories",
    .about = "Mounts the views of the models in directory STORE on directory MNT and "
             "goes into the background when the mount is up. Views with settings, as "
             "MNT/nf4+dtype=bfloat16+skip=lm_head, are there when they are looked up "
             "(docs/SETTINGS.md), and so are those of TorchAO, fp8 and "
             "compressed-tensors: MNT/ao-int8wo, MNT/fp8 (docs/SCALED.md).\n"
             "SIGTERM and SIGINT unmount: nobody new comes in, who reads is served for "
             "half of drain_timeout, and what is under way is finished in the other "
             "half; sent again, they end it at once. SIGHUP reads the policy file and "
             "the limits file again: an open after it sees the new views, open files "
             "stay what they were. SIGUSR1 logs the status. With restart=, SIGUSR2 "
             "hands the mount over to a new daemon, of the program as it then is "
             "(docs/RESTART.md). The log goes to stderr in the foreground (with "
             "priorities when that is the journal), else to syslog.",
    .options = options,
    .operands =
        (const struct qf_cli_operand[]){{.word = "STORE"}, {.word = "MNT"}, {0}},
    .exits = (const struct qf_cli_exit[]){{"0", "mounted"},
                                          {"1", "usage"},
                                          {"2", "the system said no"},
                                          {"32", "not mounted"},
                                          {0}},
    .tells_mount_options = true,
    .run = mount_command,
};
