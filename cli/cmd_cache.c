/* SPDX-License-Identifier: Apache-2.0 */
/* The commands open the cache as a daemon does, beside daemons that have it open, and
 * never change what is there without being asked: no limit, no setting aside. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "cli/cache.h"
#include "cli/cli.h"

/* "12h" in seconds. */
static bool parse_age(const char *text, uint64_t *out)
{
    static const char units[] = "smhdw";
    static const uint64_t seconds[] = {1, 60, 3600, 86400, 604800};
    char *end;
    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    uint64_t n = strtoull(text, &end, 10);
    const char *unit = *end != '\0' ? strchr(units, *end) : NULL;
    if (errno != 0 || n == 0 || unit == NULL || end[1] != '\0' ||
        n > UINT64_MAX / 604800)
        return false;
    *out = n * seconds[unit - units];
    return true;
}

static int take(void *arg, char id, const char *value)
{
    struct qf_cache_args *args = arg;
    switch (id) {
    case 'c':
        args->dir = value;
        break;
    case 'm':
        args->model = value;
        break;
    case 'v':
        args->view = value;
        break;
    case 'o':
        if (!parse_age(value, &args->older_s))
            return qf_cli_usage_error(
                args->command, "--older-than %s: not an age (90s, 30m, 12h, 30d, 2w)",
                value);
        break;
    case 'g':
        args->gone = true;
        break;
    case 'j':
        args->json = true;
        break;
    case 'n':
        args->dry_run = true;
        break;
    case 'd':
        args->deep = true;
        break;
    default:
        assert(false);
    }
    return 0;
}

#define SPARE_MIN (UINT64_C(8) << 20)

/* After much was removed: data.mdb is made smaller, unless somebody uses it. */
static void give_back(const struct qf_cache_args *args)
{
    struct qf_store_stats stats;
    qf_store *store;
    qf_store_stats(args->store, &stats);
    qf_store_close(args->store);
    uint64_t size = qf_cache_data_size(args->dir);
    uint64_t used = stats.bytes - stats.file_bytes;
    if (used >= size / 2 || size - used < SPARE_MIN)
        return;
    const struct qf_store_lmdb_options options = {.dir = args->dir,
                                                  .existing = true,
                                                  .compact = true};
    if (qf_store_lmdb_open(&options, &store, NULL) == 0)
        qf_store_close(store);
    else
        fputs(
            "data.mdb keeps its size while mounts use it; quantfs cache compact makes "
            "it smaller\n",
            stderr);
}

typedef int cache_work(const struct qf_cache_args *args);

static int open_and_work(cache_work *work, struct qf_cache_args *args)
{
    char dir[4096];
    struct qf_err err = {""};
    int rc = args->dir != NULL ? 0 : qf_cli_cache_dir(dir, sizeof dir, &err);
    if (rc == 0) {
        args->dir = args->dir != NULL ? args->dir : dir;
        args->data_before = qf_cache_data_size(args->dir);
        const struct qf_store_lmdb_options options = {.dir = args->dir,
                                                      .existing = true,
                                                      .compact =
                                                          work == qf_cache_compact};
        rc = qf_store_lmdb_open(&options, &args->store, &err);
    }
    if (rc != 0) {
        fprintf(stderr, "quantfs %s: %s\n", args->command,
                err.text[0] != '\0' ? err.text : strerror(-rc));
        return QF_CLI_FAILED;
    }
    int code = work(args);
    if (!args->dry_run && (work == qf_cache_prune || work == qf_cache_clear))
        give_back(args);
    else
        qf_store_close(args->store);
    return code;
}

/* ---- the table ---- */

#define CACHE_ROW                                                                      \
    {                                                                                  \
        .id = 'c', .name = "cache", .value = "DIR",                                    \
        .help = "the cache (as of a mount without -o cache=DIR)"                       \
    }
#define JSON_ROW                                                                       \
    {                                                                                  \
        .id = 'j', .name = "json", .help = "one JSON document"                         \
    }
#define MODEL_ROW                                                                      \
    {                                                                                  \
        .id = 'm', .name = "model", .value = "PATTERN",                                \
        .help = "of models whose directory, or whose path in the store, matches (*, "  \
                "?, [...])"                                                            \
    }
#define VIEW_ROW                                                                       \
    {                                                                                  \
        .id = 'v', .name = "view", .value = "VIEW", .help = "of this view"             \
    }
#define DRY_RUN_ROW                                                                    \
    {                                                                                  \
        .id = 'n', .name = "dry-run", .help = "tell, and remove nothing"               \
    }

static const struct qf_cli_option stat_options[] = {CACHE_ROW, JSON_ROW, {0}};
static const struct qf_cli_option list_options[] = {
    CACHE_ROW, JSON_ROW, MODEL_ROW, VIEW_ROW, {0}};
static const struct qf_cli_option verify_options[] = {
    CACHE_ROW,
    JSON_ROW,
    {.id = 'd',
     .name = "deep",
     .help = "also encode a sample of each model that is there anew, and compare"},
    {0},
};
static const struct qf_cli_option prune_options[] = {
    CACHE_ROW,
    JSON_ROW,
    MODEL_ROW,
    VIEW_ROW,
    {.id = 'o',
     .name = "older-than",
     .value = "AGE",
     .help = "not used for so long: 90s, 30m, 12h, 30d, 2w"},
    {.id = 'g', .name = "gone", .help = "of models that are no longer there"},
    DRY_RUN_ROW,
    {0},
};
static const struct qf_cli_option clear_options[] = {CACHE_ROW,
                                                     JSON_ROW,
                                                     DRY_RUN_ROW,
                                                     {0}};
static const struct qf_cli_option pin_options[] = {CACHE_ROW, JSON_ROW, VIEW_ROW, {0}};
static const struct qf_cli_operand model_operand[] = {{.word = "MODEL"}, {0}};
static const struct qf_cli_exit exits[] = {{"0", "done"},
                                           {"1", "usage"},
                                           {"2", "failed"},
                                           {0}};

/* As subcommands[], which follows. */
static cache_work *const works[] = {
    qf_cache_stat,  qf_cache_list,    qf_cache_verify, qf_cache_prune,
    qf_cache_clear, qf_cache_compact, qf_cache_pin,    qf_cache_unpin,
};

static int run(const struct qf_cli_command *self, int argc, char **argv)
{
    cache_work *work = works[self - qf_cmd_cache.subcommands];
    struct qf_cache_args args = {.command = self->name};
    struct qf_cli_line line;
    int code = qf_cli_parse(self, argc, argv, take, &args, &line);
    if (code >= 0)
        return code;
    if (line.count != 0)
        args.model = line.operands[0];
    if (work == qf_cache_prune && args.model == NULL && args.view == NULL &&
        args.older_s == 0 && !args.gone)
        return qf_cli_usage_error(self->name, "what? (--model, --view, --older-than or "
                                              "--gone; clear removes everything)");
    return open_and_work(work, &args);
}

static const struct qf_cli_command subcommands[] = {
    {.name = "cache stat",
     .summary = "what it holds, by model and view: bytes, values, uses",
     .about = "Tells what a cache holds, by model and view: bytes, values, uses.",
     .options = stat_options,
     .exits = exits,
     .run = run},
    {.name = "cache list",
     .summary = "the same, one line each",
     .about = "Tells what a cache holds, one line for each model and view, fields "
              "separated by tabs: view, bytes, values, flat files, hits, last use "
              "(seconds since 1970), pinned, model.",
     .options = list_options,
     .exits = exits,
     .run = run},
    {.name = "cache verify",
     .summary = "compare all there is with its checksums",
     .about = "Compares all there is with its checksums; what is damaged is told and "
              "removed.",
     .options = verify_options,
     .exits = (const struct qf_cli_exit[]){{"0", "all is well"},
                                           {"1", "usage"},
                                           {"2", "failed, or something was damaged"},
                                           {0}},
     .run = run},
    {.name = "cache prune",
     .summary = "remove what the options name",
     .about = "Removes what all the options given name, but nothing pinned.",
     .options = prune_options,
     .exits = exits,
     .run = run},
    {.name = "cache clear",
     .summary = "remove everything, pinned or not",
     .about = "Removes everything, pinned or not.",
     .options = clear_options,
     .exits = exits,
     .run = run},
    {.name = "cache compact",
     .summary = "make data.mdb as small as what it holds",
     .about = "Makes data.mdb as small as what it holds; not while mounts use it.",
     .options = stat_options,
     .exits = exits,
     .run = run},
    {.name = "cache pin",
     .summary = "keep a model: it is not evicted for others, nor pruned",
     .about = "Keeps MODEL: it is not evicted for others, nor pruned. MODEL is a "
              "pattern, matched with models' directories and their paths in the store.",
     .options = pin_options,
     .operands = model_operand,
     .exits = exits,
     .run = run},
    {.name = "cache unpin",
     .summary = "no longer keep it",
     .about = "Undoes what quantfs cache pin did.",
     .options = pin_options,
     .operands = model_operand,
     .exits = exits,
     .run = run},
    {0},
};

const struct qf_cli_command qf_cmd_cache = {
    .name = "cache",
    .summary = "see and steer a cache: stat, verify, prune, pin",
    .about = "Looks after a cache, also while mounts use it.",
    .subcommands = subcommands,
    .run = qf_cli_run_subcommand,
};
