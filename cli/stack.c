/* SPDX-License-Identifier: Apache-2.0 */
/* The composition root: everything is opened in the order in which it depends on each
 * other. LMDB and CUDA do not survive a fork. */
#include "cli/stack.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/limits.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cuda/cuda_backend.h"
#include "fs/mountpoint.h"
#include "view/overrides.h"

/* Without a cache directory the engine's own memory is the only cache. */
#define NO_CACHE             "none"
#define MALLOC_MMAP_SIZE_MIN (8 << 20)  /* more than any record */
#define MALLOC_KEPT_SIZE     (32 << 20) /* some transactions of the cache's writer */

static int open_lmdb(struct qf_stack *stack, struct qf_err *err)
{
    const struct qf_mount_options *o = stack->options;
    int rc = 0;
    if (o->cache[0] != '\0')
        memcpy(stack->cache, o->cache, sizeof stack->cache);
    else
        rc = qf_cli_cache_dir(stack->cache, sizeof stack->cache, err);
    if (rc != 0)
        return rc;
    struct qf_store_lmdb_options lmdb = {.dir = stack->cache,
                                         .bytes_limit = stack->cache_size,
                                         .min_free = stack->cache_min_free};
    return qf_store_lmdb_open(&lmdb, &stack->store, err);
}

/* A cache that cannot be had makes a slower mount, not none. */
static int open_store(struct qf_stack *stack, bool cache_only, struct qf_err *err)
{
    bool none = strcmp(stack->options->cache, NO_CACHE) == 0;
    if (none && cache_only)
        return qf_err_set(err, -EINVAL, "cache=none: there is no cache to fill");
    if (none)
        return qf_store_mem_open(stack->cache_size, &stack->store);
    int rc = open_lmdb(stack, err);
    if (rc == 0 || cache_only)
        return rc;
    stack->cache[0] = '\0';
    qf_log(QF_LOG_WARN, "%s; going on without a cache on disk", err->text);
    return qf_store_mem_open(0, &stack->store); /* cache_size meant the disk */
}

/* The CPU is always there: it does what a GPU cannot. It is the default, for a context
 * takes hundreds of megabytes of the card just while a model is put there; who asks for
 * "auto" gets a GPU that may be shared, or the CPU. */
static int open_backends(struct qf_stack *stack, struct qf_err *err)
{
    const char *device = stack->options->device;
    const char *isa = stack->options->isa[0] != '\0' ? stack->options->isa : NULL;
    int rc = qf_cpu_backend_open(isa, &stack->cpu, err);
    if (rc != 0 || device[0] == '\0' || strcmp(device, "cpu") == 0)
        return rc;
    struct qf_cuda_options cuda = {.no_waiting = true,
                                   .shared_only = strcmp(device, "auto") == 0};
    if (strncmp(device, "cuda:", 5) == 0)
        cuda.device = atoi(device + 5);
    rc = qf_cuda_backend_open(&cuda, stack->cpu, &stack->gpu, err);
    if (rc != 0 && cuda.shared_only) {
        qf_log(QF_LOG_DEBUG, "%s; encoding on the CPU", err->text);
        rc = 0;
    }
    return rc;
}

static qf_backend *backend_of(const struct qf_stack *stack)
{
    return stack->gpu != NULL ? stack->gpu : stack->cpu;
}

static int read_policy(const struct qf_stack *stack, const char *overrides, char **text,
                       size_t *size, struct qf_err *err)
{
    *text = NULL;
    *size = 0;
    if (overrides == NULL)
        return stack->options->policy[0] != '\0'
                   ? qf_cli_read_file(stack->options->policy, QF_CONFIG_SIZE_MAX, text,
                                      size, err)
                   : 0;
    *text = strdup(overrides);
    *size = strlen(overrides);
    return *text != NULL ? 0 : qf_err_set(err, -ENOMEM, "out of memory");
}

static void free_views(struct qf_view *views, size_t count)
{
    while (count > 0)
        qf_view_fini(&views[--count]);
}

/* The views of the options with the overrides for all models, all or none. */
static int make_views(const struct qf_mount_options *o, const char *policy, size_t size,
                      struct qf_view views[QF_VIEWS_MAX], struct qf_err *err)
{
    size_t count = 0;
    int rc = 0;
    while (rc == 0 && count < o->view_count) {
        rc = qf_overrides_apply(&o->views[count], policy, size, &views[count], err);
        if (rc == 0)
            count++;
    }
    if (rc != 0) {
        qf_err_prefix(err, "%s", o->policy);
        free_views(views, count);
    }
    return rc;
}

static int apply_policy(struct qf_stack *stack, const char *overrides,
                        struct qf_err *err)
{
    int rc = read_policy(stack, overrides, &stack->policy, &stack->policy_size, err);
    if (rc == 0)
        rc = make_views(stack->options, stack->policy, stack->policy_size, stack->views,
                        err);
    if (rc == 0)
        stack->view_count = stack->options->view_count;
    return rc;
}

static bool same_text(const char *a, size_t a_size, const char *b, size_t b_size)
{
    return a_size == b_size && (a_size == 0 || memcmp(a, b, a_size) == 0);
}

static int reload_policy(struct qf_stack *stack, struct qf_err *err)
{
    char *text;
    size_t size;
    struct qf_view *views = calloc(QF_VIEWS_MAX, sizeof *views);
    if (views == NULL)
        return qf_err_set(err, -ENOMEM, "no memory");
    int rc = read_policy(stack, NULL, &text, &size, err);
    if (rc == 0)
        rc = make_views(stack->options, text, size, views, err);
    if (rc == 0) {
        free_views(views, stack->options->view_count);
        if (!same_text(text, size, stack->policy, stack->policy_size)) {
            char *old = stack->policy;
            qf_tree_set_policy(stack->tree, text, size);
            stack->policy = text;
            stack->policy_size = size;
            text = old;
        }
    }
    free(text);
    free(views);
    return rc;
}

/* What the options say, and above that the limits file. */
static int read_limits(struct qf_stack *stack, struct qf_err *err)
{
    const struct qf_mount_options *o = stack->options;
    struct qf_mount_options *copy = malloc(sizeof *copy);
    char *text = NULL;
    size_t size;
    int rc = copy != NULL ? 0 : qf_err_set(err, -ENOMEM, "no memory");
    if (rc == 0) {
        *copy = *o;
        if (o->limits[0] != '\0')
            rc = qf_cli_read_file(o->limits, QF_CONFIG_SIZE_MAX, &text, &size, err);
    }
    if (rc == 0 && text != NULL) {
        rc = qf_mount_options_parse_limits(copy, text, err);
        if (rc != 0)
            qf_err_prefix(err, "%s", o->limits);
    }
    if (rc == 0) {
        stack->cache_size = copy->cache_size;
        stack->cache_min_free = copy->cache_min_free;
    }
    free(text);
    free(copy);
    return rc;
}

int qf_stack_reload(struct qf_stack *stack, struct qf_err *err)
{
    struct qf_err limits_err = {""};
    int rc = reload_policy(stack, err);
    int limits_rc = read_limits(stack, &limits_err);
    if (limits_rc == 0)
        qf_store_set_limits(stack->store, stack->cache_size, stack->cache_min_free);
    else if (rc == 0)
        qf_err_set(err, limits_rc, "%s", limits_err.text);
    else
        qf_err_prefix(err, "%s; and", limits_err.text);
    return rc != 0 ? rc : limits_rc;
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

/* Shards are sealed for passthrough's sake: without it their records serve as well. */
static void passthrough_switched(void *arg, bool on)
{
    const struct qf_stack *stack = arg;
    qf_engine_set_sealing(stack->engine, on);
}

static int open_passthrough(struct qf_stack *stack)
{
    int rc = qf_passthrough_new(passthrough_switched, stack, &stack->passthrough);
    if (rc != 0)
        return rc;
    if (stack->options->no_passthrough)
        qf_passthrough_off(stack->passthrough, "by option");
    else if (stack->store->ops->file_begin == NULL)
        qf_passthrough_off(stack->passthrough, "the cache keeps no files");
    return 0;
}

static int open_engine(struct qf_stack *stack, bool cache_only, struct qf_err *err)
{
    struct qf_engine_options engine = {
        .backend = backend_of(stack),
        .store = stack->store,
        .thread_count = stack->options->threads,
        .memory_limit = stack->options->memory,
        .storing_first = cache_only,
    };
    int rc = qf_engine_new(&engine, &stack->engine);
    return rc == 0 ? 0 : qf_err_set(err, rc, "starting the engine: %s", strerror(-rc));
}

static int open_tree(struct qf_stack *stack, struct qf_err *err)
{
    struct qf_tree_options tree = {
        .root = stack->root,
        .views = stack->views,
        .view_count = stack->view_count,
        .policy = stack->policy,
        .policy_size = stack->policy_size,
        .alias_bnb = stack->options->alias_bnb,
        .engine = stack->engine,
        .store = stack->store,
        .passthrough = stack->passthrough,
    };
    int rc = qf_tree_new(&tree, &stack->tree);
    return rc == 0 ? 0 : qf_err_set(err, rc, "starting: %s", strerror(-rc));
}

/* LMDB allocates every value of a transaction anew, and by itself malloc would give
 * most of them back to the kernel each time: a fault a page. */
static void keep_freed_pages(void)
{
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, MALLOC_MMAP_SIZE_MIN);
    mallopt(M_TRIM_THRESHOLD, MALLOC_KEPT_SIZE);
#endif
}

int qf_stack_open(struct qf_stack *stack, const struct qf_stack_options *options,
                  struct qf_err *err)
{
    stack->options = options->mount;
    raise_open_files();
    keep_freed_pages();
    int rc = apply_policy(stack, options->overrides, err);
    if (rc == 0)
        rc = read_limits(stack, err);
    if (rc == 0)
        rc = qf_root_open(options->store_path, &stack->root, err);
    if (rc == 0 && options->mountpoint != NULL)
        rc = qf_mountpoint_check(options->mountpoint, qf_root_path(stack->root), err);
    if (rc == 0)
        rc = open_backends(stack, err);
    if (rc == 0)
        rc = open_store(stack, options->cache_only, err);
    if (rc == 0)
        rc = open_engine(stack, options->cache_only, err);
    if (rc == 0 && !options->cache_only) {
        rc = open_passthrough(stack);
        if (rc != 0)
            qf_err_set(err, rc, "starting: %s", strerror(-rc));
    }
    return rc == 0 ? open_tree(stack, err) : rc;
}

void qf_stack_close(struct qf_stack *stack)
{
    qf_tree_free(stack->tree);
    qf_passthrough_free(stack->passthrough);
    qf_engine_free(stack->engine);
    qf_store_close(stack->store);
    qf_backend_close(stack->gpu);
    qf_backend_close(stack->cpu);
    qf_root_close(stack->root);
    free_views(stack->views, stack->view_count);
    stack->view_count = 0;
    free(stack->policy);
    stack->policy = NULL;
}

const char *qf_stack_backend_name(const struct qf_stack *stack)
{
    return qf_backend_name(backend_of(stack));
}

int qf_stack_default_views(struct qf_mount_options *options, struct qf_err *err)
{
    return options->view_count != 0
               ? 0
               : qf_view_parse_list(qf_view_default_list, options->views,
                                    &options->view_count, err);
}
