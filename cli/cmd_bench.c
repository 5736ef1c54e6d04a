/* SPDX-License-Identifier: Apache-2.0 */
/* Everything that it writes lies in one directory of its own, which is removed whatever
 * happens. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "cli/bench.h"
#include "cli/cli.h"
#include "cli/warm.h"
#include "view/reshard.h"

#define SIZE_DEFAULT ((uint64_t)256 << 20)

struct command {
    struct qf_bench bench;
    const char *cache;
    bool json;
    bool quiet;
};

static int take_size(struct command *c, const char *value)
{
    uint64_t *size = &c->bench.size;
    if ((qf_parse_size(value, size) == 0 || qf_parse_shard_size(value, size) == 0) &&
        *size >= QF_BENCH_SIZE_MIN && *size <= QF_BENCH_SIZE_MAX)
        return 0;
    return qf_cli_usage_error("bench", "--size %s: not a size from %uM to %lluG", value,
                              QF_BENCH_SIZE_MIN >> 20,
                              (unsigned long long)(QF_BENCH_SIZE_MAX >> 30));
}

static int take_options(struct qf_bench *bench, const char *value)
{
    struct qf_err err = {""};
    if (bench->list_count == QF_BENCH_LISTS_MAX)
        return qf_cli_usage_error("bench", "-o: more than %u of them",
                                  QF_BENCH_LISTS_MAX);
    bench->lists[bench->list_count++] = value;
    if (qf_mount_options_parse(&bench->options, value, &err) != 0)
        return qf_cli_usage_error("bench", "%s", err.text);
    return 0;
}

static int take(void *arg, char id, const char *value)
{
    struct command *c = arg;
    if (id == 's')
        return take_size(c, value);
    if (id == 'o')
        return take_options(&c->bench, value);
    if (id == 'c')
        c->cache = value;
    else if (id == 'j')
        c->json = true;
    else
        c->quiet = true;
    return 0;
}

static int parse(struct command *c, const struct qf_cli_command *self, int argc,
                 char **argv)
{
    struct qf_cli_line line;
    struct qf_err err = {""};
    qf_mount_options_init(&c->bench.options);
    c->bench.size = SIZE_DEFAULT;
    c->bench.jobs = QF_WARM_JOBS_DEFAULT;
    int code = qf_cli_parse(self, argc, argv, take, c, &line);
    if (code >= 0)
        return code;
    if (c->cache == NULL && c->bench.options.cache[0] != '\0')
        c->cache = c->bench.options.cache;
    if (strcmp(c->bench.options.cache, "none") == 0)
        return qf_cli_usage_error("bench", "cache=none: there is no cache to measure");
    if (qf_stack_default_views(&c->bench.options, &err) != 0)
        return qf_cli_usage_error("bench", "%s", err.text);
    return -1;
}

static void show_stage(const struct qf_bench *bench, const char *what,
                       const char *detail)
{
    if (bench->shows_progress)
        fprintf(stderr, "\r\033[Kquantfs bench: %s %s", what, detail);
}

static int measure(struct command *c, struct qf_err *err)
{
    struct qf_bench *b = &c->bench;
    int64_t start_ms = qf_clock_ms();
    int rc = qf_bench_make_dir(b, c->cache, err);
    if (rc == 0)
        rc = qf_bench_run_kernels(b, err);
    if (rc == 0)
        rc = qf_bench_write_model(b, err);
    if (rc == 0)
        rc = qf_bench_run_engine(b, err);
    if (rc == 0)
        rc = qf_bench_run_mount(b, err);
    if (b->dir[0] != '\0')
        qf_bench_remove(b->dir);
    if (b->shows_progress)
        fputs("\r\033[K", stderr);
    b->seconds = (double)(qf_clock_ms() - start_ms) / 1000;
    return rc;
}

static int run(const struct qf_cli_command *self, int argc, char **argv)
{
    static struct command c; /* kilobytes of options and rows */
    struct qf_err err = {""};
    int code = parse(&c, self, argc, argv);
    if (code >= 0)
        return code;
    qf_log_set_level(c.bench.options.debug ? QF_LOG_DEBUG : QF_LOG_WARN);
    c.bench.stop = qf_cli_catch_signals();
    c.bench.stage = show_stage;
    c.bench.shows_progress = !c.quiet && isatty(STDERR_FILENO);
    int rc = measure(&c, &err);
    int number = atomic_load(c.bench.stop);
    if (number != 0) {
        fputs("quantfs bench: ended early; its files are gone\n", stderr);
        return 128 + number;
    }
    if (rc != 0) {
        fprintf(stderr, "quantfs bench: %s\n",
                err.text[0] != '\0' ? err.text : strerror(-rc));
        return QF_CLI_FAILED;
    }
    struct qf_buf text = {0};
    if (c.json)
        qf_bench_json(&c.bench, &text);
    else
        qf_bench_text(&c.bench, &text);
    return qf_cli_print(&text);
}

static const struct qf_cli_option options[] = {
    {.id = 'c',
     .name = "cache",
     .value = "DIR",
     .help = "measure on the filesystem of this directory, not the default cache's"},
    {.id = 's',
     .name = "size",
     .value = "SIZE",
     .help = "bytes of the model that is made for it (256M)"},
    {.id = 'j', .name = "json", .help = "one JSON document"},
    {.id = 'o',
     .letter = true,
     .name = "options",
     .value = "LIST",
     .repeats = true,
     .help = "options of quantfs mount: views, device, threads, …"},
    {.id = 'q', .letter = true, .name = "quiet", .help = "no progress"},
    {0},
};

const struct qf_cli_command qf_cmd_bench = {
    .name = "bench",
    .summary = "measure what a mount will do on this machine",
    .about =
        "Measures, in less than a minute, each kernel on one thread, beside memcpy; a "
        "random model encoded into a cache on all processors, and read from it once "
        "more; and the same through a mount, where one can be made. With -o device=, "
        "on the GPU as well as on the CPU.\n"
        "What it writes lies in a directory of its own on the cache's filesystem and "
        "is removed at the end, also after Ctrl-C. The cache is not touched. It needs "
        "about twice the room of SIZE.",
    .options = options,
    .exits = (const struct qf_cli_exit[]){{"0", "measured"},
                                          {"1", "usage"},
                                          {"2", "could not be measured"},
                                          {"128 + N", "ended by signal N"},
                                          {0}},
    .run = run,
};
