/* SPDX-License-Identifier: Apache-2.0 */
/* All is opened after the fork: an error is seen at the prompt all the same, for the
 * parent waits for it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/stack.h"
#include "fs/daemon.h"
#include "fs/opts.h"
#include "fs/process.h"

struct mount {
    struct qf_mount_options options;
    const char *store_path;
    const char *mountpoint;
    bool foreground;
    bool dry_run;
    struct qf_stack stack;
    qf_daemon *daemon;
};

static void close_all(struct mount *m)
{
    qf_daemon_close(m->daemon);
    qf_stack_close(&m->stack);
}

static int run(struct mount *m)
{
    struct qf_err err = {""};
    struct qf_process process;
    int code = QF_EXIT_SYSTEM;
    int rc = qf_process_start(m->foreground, &process, &err);
    if (rc != 0) {
        fprintf(stderr, "quantfs: %s\n", err.text);
        return code;
    }
    const struct qf_stack_options options = {
        .mount = &m->options,
        .store_path = m->store_path,
        .mountpoint = m->mountpoint,
    };
    struct qf_stack *stack = &m->stack;
    rc = qf_stack_open(stack, &options, &err);
    if (rc == 0) {
        code = QF_EXIT_MOUNT;
        rc =
            qf_daemon_mount(&m->options, stack->tree, stack->passthrough,
                            qf_root_path(stack->root), m->mountpoint, &m->daemon, &err);
    }
    if (rc != 0) {
        qf_process_failed(&process, code,
                          err.text[0] != '\0' ? err.text : strerror(-rc));
        close_all(m);
        return code;
    }
    qf_process_ready(&process); /* from here on the log is the system's */
    qf_log(QF_LOG_INFO, "%s on %s: encoding with %s, cache %s", m->store_path,
           m->mountpoint, qf_stack_backend_name(stack), stack->store->ops->name);
    rc = qf_daemon_serve(m->daemon);
    if (rc != 0)
        qf_log(QF_LOG_ERROR, "serving ended: %s", strerror(-rc));
    close_all(m);
    return rc == 0 ? QF_EXIT_OK : QF_EXIT_SYSTEM;
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
    else if (qf_mount_options_parse(&m->options, value, &err) != 0)
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
    if (qf_stack_default_views(&m.options, &err) != 0)
        return qf_cli_usage_error("mount", "%s", err.text);
    if (m.dry_run)
        return dry_run(&m);
    if (m.options.debug)
        qf_log_set_level(QF_LOG_DEBUG);
    return run(&m);
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
             "(docs/SETTINGS.md).",
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
