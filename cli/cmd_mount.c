/* SPDX-License-Identifier: Apache-2.0 */
/* All is opened after the fork: an error is seen at the prompt all the same, for the
 * parent waits for it. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/serve.h"
#include "cli/stack.h"
#include "fs/daemon.h"
#include "fs/opts.h"
#include "fs/process.h"

struct mount {
    struct qf_mount_options options;
    const char *store_path;
    const char *mountpoint;
    bool foreground;
    struct qf_stack stack;
    qf_daemon *daemon;
    qf_serve *serve;
};

static void print_help(void)
{
    struct qf_buf options = {0};
    qf_mount_options_help(&options);
    char *text = qf_buf_take(&options, NULL);
    printf(
        "usage: quantfs mount [-f] [-o OPTION[,OPTION…]]… STORE MNT\n"
        "\n"
        "Mounts the views of the models in directory STORE on directory MNT and goes\n"
        "into the background when the mount is up.\n"
        "\n"
        "  -f, --foreground       stay in the foreground, log to stderr\n"
        "  -o, --options LIST     mount options, separated by commas:\n"
        "\n%s\n"
        "The usual options of mount(8) and fstab are taken too.\n"
        "\n"
        "SIGTERM and SIGINT unmount: nobody new comes in, who reads is served for "
        "half\n"
        "of drain_timeout, and what is under way is finished in the other half; sent\n"
        "again, they end it at once. SIGHUP reads the policy file and the limits file\n"
        "again: an open after it sees the new views, open files stay what they were.\n"
        "SIGUSR1 logs the status. The log goes to stderr in the foreground (with\n"
        "priorities when that is the journal), else to syslog.\n"
        "\n"
        "exit codes: 0 mounted, 1 usage, 2 the system said no, 32 not mounted\n",
        text != NULL ? text : "");
    free(text);
}

static void close_all(struct mount *m)
{
    qf_daemon_close(m->daemon);
    qf_stack_close(&m->stack);
    qf_serve_end(m->serve);
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
    rc = qf_serve_begin(stack, &m->serve);
    if (rc == 0)
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
    rc = qf_serve_run(m->serve, m->daemon);
    if (rc != 0)
        qf_log(QF_LOG_ERROR, "serving ended: %s", strerror(-rc));
    close_all(m);
    return rc == 0 ? QF_EXIT_OK : QF_EXIT_SYSTEM;
}

static int parse(struct mount *m, int argc, char **argv, bool *help)
{
    static const struct option long_options[] = {
        {"foreground", no_argument, NULL, 'f'},
        {"options", required_argument, NULL, 'o'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct qf_err err = {""};
    qf_mount_options_init(&m->options);
    int c;
    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "fo:h", long_options, NULL)) != -1) {
        if (c == 'f')
            m->foreground = true;
        else if (c == 'h')
            *help = true;
        else if (c != 'o')
            return qf_cli_usage_error("mount", "unknown or incomplete option '%s'",
                                      argv[optind - 1]);
        else if (qf_mount_options_parse(&m->options, optarg, &err) != 0)
            return qf_cli_usage_error("mount", "%s", err.text);
    }
    if (*help)
        return 0;
    if (argc - optind != 2)
        return qf_cli_usage_error("mount", "a store and a mountpoint are needed");
    m->store_path = argv[optind];
    m->mountpoint = argv[optind + 1];
    if (qf_stack_default_views(&m->options, &err) != 0)
        return qf_cli_usage_error("mount", "%s", err.text);
    return 0;
}

int qf_cmd_mount(int argc, char **argv)
{
    /* Options are kilobytes: not for the stack of a main that forks. */
    static struct mount m;
    bool help = false;
    int code = parse(&m, argc, argv, &help);
    if (code != 0)
        return code;
    if (help) {
        print_help();
        return QF_EXIT_OK;
    }
    if (m.options.debug)
        qf_log_set_level(QF_LOG_DEBUG);
    qf_log_set_json(m.options.log_json);
    qf_log_to_journal();
    return run(&m);
}
