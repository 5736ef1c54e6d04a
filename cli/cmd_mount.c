/* SPDX-License-Identifier: Apache-2.0 */
/* The composition root of a mount: everything is opened here, in the order in which it
 * depends on each other, after the fork (LMDB and CUDA do not survive one). */
#include <getopt.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "cache/store.h"
#include "cli/cli.h"
#include "cuda/cuda_backend.h"
#include "engine/engine.h"
#include "fs/daemon.h"
#include "fs/opts.h"
#include "fs/process.h"
#include "fs/tree.h"
#include "view/overrides.h"

/* Without a cache directory the engine's own memory is the only cache. */
#define NO_CACHE "none"

struct mount {
    struct qf_mount_options options;
    const char *store_path;
    const char *mountpoint;
    bool foreground;
    struct qf_view views[QF_VIEWS_MAX]; /* those of the options, with the policy file's
                                         * overrides */
    size_t view_count;
    qf_root *root;
    qf_backend *cpu;
    qf_backend *gpu; /* NULL: none is used */
    qf_store *store;
    qf_engine *engine;
    qf_tree *tree;
    qf_daemon *daemon;
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
        "exit codes: 0 mounted, 1 usage, 2 the system said no, 32 not mounted\n",
        text != NULL ? text : "");
    free(text);
}

/* $XDG_CACHE_HOME/quantfs, ~/.cache/quantfs; /var/cache/quantfs for root. */
static int default_cache_dir(char *out, size_t size, struct qf_err *err)
{
    const char *base = getenv("XDG_CACHE_HOME");
    const char *middle = "";
    if (base == NULL || base[0] != '/') {
        base = getenv("HOME");
        middle = "/.cache";
        if (geteuid() == 0) {
            base = "/var/cache";
            middle = "";
        }
    }
    if (base == NULL || base[0] != '/')
        return qf_err_set(err, -ENOENT,
                          "no directory for the cache: set HOME or -o cache=DIR");
    int n = snprintf(out, size, "%s%s", base, middle);
    if (n < 0 || (size_t)n + sizeof "/quantfs" > size)
        return qf_err_set(err, -ENAMETOOLONG, "cache directory: path too long");
    (void)mkdir(out, 0700); /* the store says what is wrong if this matters */
    strcat(out, "/quantfs");
    return 0;
}

/* A cache that cannot be had makes a slower mount, not none. */
static int open_store(struct mount *m, struct qf_err *err)
{
    if (strcmp(m->options.cache, NO_CACHE) != 0) {
        int rc =
            m->options.cache[0] != '\0'
                ? 0
                : default_cache_dir(m->options.cache, sizeof m->options.cache, err);
        if (rc == 0) {
            struct qf_store_lmdb_options lmdb = {.dir = m->options.cache,
                                                 .bytes_limit = m->options.cache_size};
            rc = qf_store_lmdb_open(&lmdb, &m->store, err);
        }
        if (rc == 0)
            return 0;
        qf_log(QF_LOG_WARN, "%s; going on without a cache on disk", err->text);
        return qf_store_mem_open(0, &m->store); /* cache_size meant the disk */
    }
    return qf_store_mem_open(m->options.cache_size, &m->store);
}

/* The CPU is always there: it does what a GPU cannot. */
static int open_backends(struct mount *m, struct qf_err *err)
{
    const char *device = m->options.device;
    const char *isa = m->options.isa[0] != '\0' ? m->options.isa : NULL;
    int rc = qf_cpu_backend_open(isa, &m->cpu, err);
    if (rc != 0 || device[0] == '\0' || strcmp(device, "cpu") == 0)
        return rc;
    struct qf_cuda_options cuda = {0};
    if (strncmp(device, "cuda:", 5) == 0)
        cuda.device = atoi(device + 5);
    rc = qf_cuda_backend_open(&cuda, m->cpu, &m->gpu, err);
    if (rc != 0 && strcmp(device, "auto") == 0) {
        qf_log(QF_LOG_DEBUG, "%s; encoding on the CPU", err->text);
        rc = 0;
    }
    return rc;
}

static qf_backend *backend_of(const struct mount *m)
{
    return m->gpu != NULL ? m->gpu : m->cpu;
}

/* Puts the overrides of the policy file into every view. */
static int apply_policy(struct mount *m, struct qf_err *err)
{
    char *text = NULL;
    size_t size = 0;
    int rc =
        m->options.policy[0] != '\0'
            ? qf_cli_read_file(m->options.policy, QF_CONFIG_SIZE_MAX, &text, &size, err)
            : 0;
    while (rc == 0 && m->view_count < m->options.view_count) {
        rc = qf_overrides_apply(&m->options.views[m->view_count], text, size,
                                &m->views[m->view_count], err);
        if (rc == 0)
            m->view_count++;
        else
            qf_err_prefix(err, "%s", m->options.policy);
    }
    free(text);
    return rc;
}

/* Every open file of a view holds a descriptor of its source. */
static void raise_open_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        qf_log(QF_LOG_DEBUG, "limit of open files: %s", strerror(errno));
}

static int open_all(struct mount *m, struct qf_err *err)
{
    raise_open_files();
    int rc = apply_policy(m, err);
    if (rc == 0)
        rc = qf_root_open(m->store_path, &m->root, err);
    if (rc == 0)
        rc = qf_daemon_check_mountpoint(m->mountpoint, qf_root_path(m->root), err);
    if (rc == 0)
        rc = open_backends(m, err);
    if (rc == 0)
        rc = open_store(m, err);
    if (rc != 0)
        return rc;
    struct qf_engine_options engine = {
        .backend = backend_of(m),
        .store = m->store,
        .thread_count = m->options.threads,
        .memory_limit = m->options.memory,
    };
    rc = qf_engine_new(&engine, &m->engine);
    if (rc != 0)
        return qf_err_set(err, rc, "starting the engine: %s", strerror(-rc));
    struct qf_tree_options tree = {
        .root = m->root,
        .views = m->views,
        .view_count = m->view_count,
        .engine = m->engine,
        .store = m->store,
    };
    rc = qf_tree_new(&tree, &m->tree);
    return rc == 0 ? 0 : qf_err_set(err, rc, "starting: %s", strerror(-rc));
}

static void close_all(struct mount *m)
{
    qf_daemon_close(m->daemon);
    qf_tree_free(m->tree);
    qf_engine_free(m->engine);
    qf_store_close(m->store);
    qf_backend_close(m->gpu);
    qf_backend_close(m->cpu);
    qf_root_close(m->root);
    while (m->view_count > 0)
        qf_view_fini(&m->views[--m->view_count]);
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
    rc = open_all(m, &err);
    if (rc == 0) {
        code = QF_EXIT_MOUNT;
        rc = qf_daemon_mount(&m->options, m->tree, qf_root_path(m->root), m->mountpoint,
                             &m->daemon, &err);
    }
    if (rc != 0) {
        qf_process_failed(&process, code,
                          err.text[0] != '\0' ? err.text : strerror(-rc));
        close_all(m);
        return code;
    }
    qf_process_ready(&process); /* from here on the log is the system's */
    qf_log(QF_LOG_INFO, "%s on %s: encoding with %s, cache %s", m->store_path,
           m->mountpoint, qf_backend_name(backend_of(m)), m->store->ops->name);
    rc = qf_daemon_serve(m->daemon);
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
    if (m->options.view_count == 0 &&
        qf_view_parse_list(qf_view_default_list, m->options.views,
                           &m->options.view_count, &err) != 0)
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
    return run(&m);
}
