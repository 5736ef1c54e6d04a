/* SPDX-License-Identifier: Apache-2.0 */
/* The commands open the cache as a daemon does, beside daemons that have it open, and
 * never change what is there without being asked: no limit, no setting aside. */
#include <fnmatch.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "cli/cache.h"
#include "cli/cli.h"
#include "view/names.h"

enum {
    OPT_MODEL = 1 << 0,
    OPT_VIEW = 1 << 1,
    OPT_OLDER = 1 << 2,
    OPT_GONE = 1 << 3,
    OPT_JSON = 1 << 4,
    OPT_DRY_RUN = 1 << 5,
    OPT_DEEP = 1 << 6,
    OPT_CACHE = 1 << 7,
    OPT_HELP = 1 << 8,
    ARG_MODEL = 1 << 9, /* an argument, not an option */
};

static const struct sub {
    const char *name;
    int takes;
    int (*run)(const struct qf_cache_args *args);
} subs[] = {
    {"stat", OPT_JSON, qf_cache_stat},
    {"list", OPT_JSON | OPT_MODEL | OPT_VIEW, qf_cache_list},
    {"verify", OPT_JSON | OPT_DEEP, qf_cache_verify},
    {"prune", OPT_JSON | OPT_MODEL | OPT_VIEW | OPT_OLDER | OPT_GONE | OPT_DRY_RUN,
     qf_cache_prune},
    {"clear", OPT_JSON | OPT_DRY_RUN, qf_cache_clear},
    {"compact", OPT_JSON, qf_cache_compact},
    {"pin", OPT_JSON | OPT_VIEW | ARG_MODEL, qf_cache_pin},
    {"unpin", OPT_JSON | OPT_VIEW | ARG_MODEL, qf_cache_unpin},
};

static void print_help(void)
{
    puts("usage: quantfs cache stat   [--cache DIR] [--json]\n"
         "       quantfs cache list   [--cache DIR] [--json] [--model PATTERN]\n"
         "                            [--view NAME]\n"
         "       quantfs cache verify [--cache DIR] [--json] [--deep]\n"
         "       quantfs cache prune  [--cache DIR] [--json] [--model PATTERN]\n"
         "                            [--view NAME] [--older-than AGE] [--gone]\n"
         "                            [--dry-run]\n"
         "       quantfs cache clear  [--cache DIR] [--json] [--dry-run]\n"
         "       quantfs cache compact [--cache DIR] [--json]\n"
         "       quantfs cache pin    [--cache DIR] [--json] [--view NAME] MODEL\n"
         "       quantfs cache unpin  [--cache DIR] [--json] [--view NAME] MODEL\n"
         "\n"
         "Looks after a cache, also while mounts use it.\n"
         "\n"
         "  stat    what it holds, by model and view: bytes, values, uses\n"
         "  list    the same, one line each, fields separated by tabs: view, bytes,\n"
         "          values, flat files, hits, last use (seconds since 1970), pinned,\n"
         "          model\n"
         "  verify  compares all there is with its checksums; what is damaged is told\n"
         "          and removed\n"
         "  prune   removes what all the options given name, but nothing pinned\n"
         "  clear   removes everything, pinned or not\n"
         "  compact makes data.mdb as small as what it holds; not while mounts use it\n"
         "  pin     keeps MODEL: it is not evicted for others, nor pruned\n"
         "  unpin   no longer\n"
         "\n"
         "      --cache DIR        the cache (as of a mount without -o cache=DIR)\n"
         "      --model PATTERN    of models whose directory, or whose path in the "
         "store,\n"
         "                         matches (*, ?, [...]); MODEL is such a pattern too\n"
         "      --view NAME        of this view\n"
         "      --older-than AGE   not used for so long: 90s, 30m, 12h, 30d, 2w\n"
         "      --gone             of models that are no longer there\n"
         "      --deep             also encodes a sample of each model that is there\n"
         "                         anew, and compares\n"
         "      --dry-run          tells, and removes nothing\n"
         "      --json             one JSON document\n"
         "\n"
         "exit codes: 0 done, 1 usage, 2 failed, or something was damaged");
}

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

static const struct option long_options[] = {
    {"cache", required_argument, NULL, OPT_CACHE},
    {"model", required_argument, NULL, OPT_MODEL},
    {"view", required_argument, NULL, OPT_VIEW},
    {"older-than", required_argument, NULL, OPT_OLDER},
    {"gone", no_argument, NULL, OPT_GONE},
    {"json", no_argument, NULL, OPT_JSON},
    {"dry-run", no_argument, NULL, OPT_DRY_RUN},
    {"deep", no_argument, NULL, OPT_DEEP},
    {"help", no_argument, NULL, OPT_HELP},
    {0},
};

static bool take_option(struct qf_cache_args *args, int option)
{
    switch (option) {
    case OPT_CACHE:
        args->dir = optarg;
        return true;
    case OPT_MODEL:
        args->model = optarg;
        return true;
    case OPT_VIEW:
        args->view = optarg;
        return true;
    case OPT_OLDER:
        return parse_age(optarg, &args->older_s);
    case OPT_GONE:
        args->gone = true;
        return true;
    case OPT_JSON:
        args->json = true;
        return true;
    case OPT_DRY_RUN:
        args->dry_run = true;
        return true;
    case OPT_DEEP:
        args->deep = true;
        return true;
    default:
        return false;
    }
}

static int parse(const struct sub *sub, struct qf_cache_args *args, int argc,
                 char **argv, bool *help)
{
    int takes = sub->takes | OPT_CACHE, c;
    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
        if (c == OPT_HELP || c == 'h') {
            *help = true;
            return QF_CLI_OK;
        }
        if (c == '?')
            return qf_cli_usage_error("cache", "unknown or incomplete option '%s'",
                                      argv[optind - 1]);
        if ((c & takes) == 0)
            return qf_cli_usage_error("cache", "%s takes no such option: '%s'",
                                      sub->name, argv[optind - 1]);
        if (!take_option(args, c))
            return qf_cli_usage_error("cache",
                                      "--older-than %s: not an age (90s, 30m, "
                                      "12h, 30d, 2w)",
                                      optarg);
    }
    bool wanted = (sub->takes & ARG_MODEL) != 0;
    if (argc - optind != (wanted ? 1 : 0))
        return qf_cli_usage_error("cache", "%s takes %s", sub->name,
                                  wanted ? "one MODEL" : "no argument");
    if (wanted)
        args->model = argv[optind];
    if (sub->run == qf_cache_prune && args->model == NULL && args->view == NULL &&
        args->older_s == 0 && !args->gone)
        return qf_cli_usage_error("cache", "prune what? (--model, --view, --older-than "
                                           "or --gone; clear removes everything)");
    return QF_CLI_OK;
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

static int open_and_run(const struct sub *sub, struct qf_cache_args *args)
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
                                                          sub->run == qf_cache_compact};
        rc = qf_store_lmdb_open(&options, &args->store, &err);
    }
    if (rc != 0) {
        fprintf(stderr, "quantfs cache %s: %s\n", sub->name,
                err.text[0] != '\0' ? err.text : strerror(-rc));
        return QF_CLI_FAILED;
    }
    int code = sub->run(args);
    if (!args->dry_run && (sub->run == qf_cache_prune || sub->run == qf_cache_clear))
        give_back(args);
    else
        qf_store_close(args->store);
    return code;
}

int qf_cmd_cache(int argc, char **argv)
{
    struct qf_cache_args args = {0};
    bool help = false;
    if (argc < 2)
        return qf_cli_usage_error("cache", "which of stat, list, verify, prune, clear, "
                                           "pin and unpin?");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help();
        return QF_CLI_OK;
    }
    for (size_t i = 0; i < sizeof subs / sizeof *subs; i++) {
        if (strcmp(subs[i].name, argv[1]) != 0)
            continue;
        args.name = subs[i].name;
        int code = parse(&subs[i], &args, argc - 1, argv + 1, &help);
        if (code != QF_CLI_OK)
            return code;
        if (help) {
            print_help();
            return QF_CLI_OK;
        }
        return open_and_run(&subs[i], &args);
    }
    return qf_cli_usage_error("cache", "unknown command '%s'", argv[1]);
}

/* ---- what they share ---- */

int qf_cache_failed(const struct qf_cache_args *args, int rc)
{
    fprintf(stderr, "quantfs cache %s: cache %s: %s\n", args->name, args->dir,
            rc == -EIO ? "its database failed" : strerror(-rc));
    return QF_CLI_FAILED;
}

bool qf_cache_load(const struct qf_cache_args *args, struct qf_admin_list *list)
{
    int rc = qf_admin_list(args->store, list);
    if (rc != 0)
        qf_cache_failed(args, rc);
    return rc == 0;
}

char *qf_cache_path(const struct qf_admin_origin *origin)
{
    struct qf_buf path = {0};
    qf_buf_append_str(&path, origin->store);
    if (origin->model[0] != '\0') {
        qf_buf_append_str(&path, strcmp(origin->store, "/") != 0 ? "/" : "");
        qf_buf_append_str(&path, origin->model);
    }
    return qf_buf_take(&path, NULL);
}

/* The whole path, or what follows one of its '/': where a store began is not known of
 * what `quantfs warm` put without a mount. */
static bool matches(const char *pattern, const char *path)
{
    while (fnmatch(pattern, path, 0) != 0) {
        path = strchr(path, '/');
        if (path == NULL)
            return false;
        path++;
    }
    return true;
}

bool qf_cache_named(const struct qf_cache_args *args,
                    const struct qf_admin_origin *origin)
{
    struct qf_view view; /* by the name that all its spellings have */
    const char *wanted = args->view;
    if (wanted != NULL && qf_view_parse(wanted, strlen(wanted), &view, NULL) == 0)
        wanted = view.name;
    if (wanted != NULL && strcmp(wanted, origin->view) != 0)
        return false;
    if (args->model == NULL)
        return true;
    if (origin->id == 0)
        return false;
    char *path = qf_cache_path(origin);
    char *real = realpath(args->model, NULL);
    bool named = path != NULL && (matches(args->model, path) ||
                                  (real != NULL && strcmp(real, path) == 0));
    free(real);
    free(path);
    return named;
}
