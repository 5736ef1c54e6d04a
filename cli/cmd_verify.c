/* SPDX-License-Identifier: Apache-2.0 */
/* Directories are compared one after the other, each with a stack whose one view has
 * the settings that the directory has: components of a pipeline may differ. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/path.h"
#include "ckpt/printable.h"
#include "cli/cli.h"
#include "cli/mounted.h"
#include "cli/verify.h"

#define CLI_DIFFERENT 3
#define DEPTH_MAX     64

struct paths {
    size_t count;
    char **all; /* owned */
    uint64_t bytes;
};

struct command {
    struct qf_mount_options options;
    struct qf_view views[QF_VIEWS_MAX];
    size_t view_count;
    const char *against;
    bool json, quiet;
    char dir[PATH_MAX], source[PATH_MAX]; /* absolute, without links */
    struct paths paths, source_paths;     /* of directories with weights, below them */
    struct qf_verify verify;
};

/* ---- arguments ---- */

static int set_view(struct command *c, const char *text)
{
    struct qf_err err = {""};
    if (qf_view_parse_list(text, c->views, &c->view_count, &err) != 0)
        return qf_cli_usage_error("verify", "%s", err.text);
    if (c->view_count != 1)
        return qf_cli_usage_error("verify", "--view %s: one view at a time", text);
    if (qf_codec_info(c->views[0].codec)->family == QF_FAMILY_GGUF)
        return qf_cli_usage_error("verify", "--view %s: GGUF files are not compared",
                                  text);
    c->verify.view = &c->views[0];
    return 0;
}

static int take(void *arg, char id, const char *value)
{
    struct command *c = arg;
    struct qf_err err = {""};
    if (id == 'v')
        return set_view(c, value);
    if (id == 'n')
        return qf_cli_number("verify", "--jobs", value, QF_VERIFY_JOBS_MAX,
                             &c->verify.jobs);
    if (id == 'o' && qf_mount_options_parse(&c->options, value, &err) != 0)
        return qf_cli_usage_error("verify", "%s", err.text);
    if (id == 'a')
        c->against = value;
    else if (id == 'j')
        c->json = true;
    else if (id == 'q')
        c->quiet = true;
    return 0;
}

static int parse(struct command *c, const struct qf_cli_command *self, int argc,
                 char **argv, struct qf_cli_line *line)
{
    qf_mount_options_init(&c->options);
    int code = qf_cli_parse(self, argc, argv, take, c, line);
    if (code >= 0)
        return code;
    if (c->against == NULL)
        return qf_cli_usage_error("verify", "--against is needed");
    if (c->options.policy[0] != '\0')
        return qf_cli_usage_error("verify",
                                  "-o policy: the checkpoint has its settings");
    return -1;
}

/* ---- what there is ---- */

static int add_path(struct paths *paths, const char *path)
{
    char **more = realloc(paths->all, (paths->count + 1) * sizeof *more);
    if (more == NULL)
        return -ENOMEM;
    paths->all = more;
    more[paths->count] = strdup(path);
    return more[paths->count++] != NULL ? 0 : -ENOMEM;
}

static void paths_fini(struct paths *paths)
{
    for (size_t i = 0; i < paths->count; i++)
        free(paths->all[i]);
    free(paths->all);
}

/* Directories with weights, at and below `path` of `top`. */
static int walk(struct paths *paths, const char *top, const char *path, unsigned depth,
                struct qf_err *err)
{
    char whole[PATH_MAX];
    struct dirent **names;
    bool weights = false;
    int n =
        snprintf(whole, sizeof whole, "%s%s%s", top, path[0] != '\0' ? "/" : "", path);
    int count = n > 0 && n < PATH_MAX && depth < DEPTH_MAX
                    ? scandir(whole, &names, NULL, alphasort)
                    : -1;
    if (count < 0)
        return qf_err_set(err, -errno, "%s: %s", whole, strerror(errno));
    int rc = 0;
    for (int i = 0; i < count; i++) {
        const char *name = names[i]->d_name;
        char *below = qf_path_join(path, name), *full = qf_path_join(whole, name);
        struct stat st;
        if (below == NULL || full == NULL)
            rc = -ENOMEM;
        else if (rc == 0 && name[0] != '.' && stat(full, &st) == 0) {
            if (S_ISDIR(st.st_mode)) {
                rc = walk(paths, top, below, depth + 1, err);
            } else if (qf_path_ends_with(name, ".safetensors")) {
                weights = true;
                paths->bytes += (uint64_t)st.st_size;
            }
        }
        free(below);
        free(full);
        free(names[i]);
    }
    free(names);
    return rc == 0 && weights ? add_path(paths, path) : rc;
}

static int open_paths(struct command *c, const char *dir, struct qf_err *err)
{
    struct stat st;
    if (realpath(dir, c->dir) == NULL || stat(c->dir, &st) != 0)
        return qf_err_set(err, -errno, "%s: %s", dir, strerror(errno));
    if (realpath(c->against, c->source) == NULL)
        return qf_err_set(err, -errno, "%s: %s", c->against, strerror(errno));
    qf_mounted_source(c->source);
    int rc = walk(&c->paths, c->dir, "", 0, err);
    if (rc == 0 && c->paths.count == 0)
        rc = qf_err_set(err, -ENOENT, "%s: no .safetensors file is in it or below it",
                        dir);
    return rc == 0 ? walk(&c->source_paths, c->source, "", 0, err) : rc;
}

/* ---- comparing ---- */

static void add_view_name(struct qf_verify *verify, const char *name)
{
    size_t n = strlen(verify->views);
    if (strstr(verify->views, name) == NULL &&
        n + strlen(name) + 2 < sizeof verify->views)
        sprintf(verify->views + n, "%s%s", n != 0 ? ":" : "", name);
}

static int compare_dir(struct command *c, const char *path, struct qf_err *err)
{
    struct qf_verify *verify = &c->verify;
    struct qf_verify_dir *dir = calloc(1, sizeof *dir);
    if (dir == NULL)
        return -ENOMEM;
    verify->dir = dir;
    dir->path = qf_path_join(c->dir + 1, path);
    dir->source = qf_path_join(c->source + 1, path);
    int rc = dir->path != NULL && dir->source != NULL ? 0 : -ENOMEM;
    if (rc == 0)
        rc = qf_verify_dir_open(verify, dir, err);
    if (rc == 0) {
        const char *name =
            verify->view != NULL ? verify->view->name : qf_codec_name(dir->view.codec);
        add_view_name(verify, dir->variant->reason[0] == '\0' ? name : "unchanged");
        rc = qf_verify_compare(verify, err);
    }
    free(verify->units);
    verify->units = NULL;
    qf_verify_dir_close(dir);
    free(dir);
    verify->dir_count++;
    return rc;
}

/* Without a component a pipeline is not whole. Of other directories of the source
 * (another model, a head that another library adds) the checkpoint need not have any;
 * that they were not looked at is said. */
static void tell_absent(struct command *c)
{
    char index[PATH_MAX + 32];
    snprintf(index, sizeof index, "%s/model_index.json", c->source);
    bool pipeline = access(index, F_OK) == 0;
    for (size_t i = 0; i < c->source_paths.count; i++) {
        const char *path = c->source_paths.all[i];
        size_t k = 0;
        while (k < c->paths.count && strcmp(c->paths.all[k], path) != 0)
            k++;
        if (k < c->paths.count)
            continue;
        const char *name = path[0] != '\0' ? path : ".";
        if (pipeline)
            qf_verify_note(&c->verify, QF_VERIFY_MISSING, name, UINT64_MAX, "", "");
        else
            fprintf(stderr,
                    "quantfs verify: not compared, it is in the source only: %s\n",
                    qf_printable(name).text);
    }
}

static int work(struct command *c, const char *name, struct qf_err *err)
{
    int rc = open_paths(c, name, err);
    if (rc != 0)
        return rc;
    qf_progress_start(&c->verify.progress, c->quiet ? NULL : stderr, "verifying",
                      c->paths.bytes);
    for (size_t i = 0; i < c->paths.count && rc == 0; i++)
        rc = compare_dir(c, c->paths.all[i], err);
    qf_progress_end(&c->verify.progress,
                    rc == 0 ? c->paths.bytes : atomic_load(&c->verify.bytes));
    if (rc == 0)
        tell_absent(c);
    return rc;
}

static void report(const struct command *c, const char *dir, double seconds)
{
    struct qf_buf out = {0};
    if (c->json)
        qf_verify_json(&c->verify, dir, c->against, seconds, &out);
    else if (!c->quiet)
        qf_verify_text(&c->verify, &out);
    if (out.size != 0 && !out.failed)
        fwrite(out.data, 1, out.size, stdout);
    qf_buf_fini(&out);
}

static bool is_equal(const struct qf_verify *verify)
{
    for (int i = 0; i < QF_VERIFY_PROBLEM_COUNT; i++)
        if (verify->problems[i] != 0)
            return false;
    return true;
}

static int run(const struct qf_cli_command *self, int argc, char **argv)
{
    static struct command c; /* kilobytes of options */
    struct qf_cli_line line;
    struct qf_err err = {""};
    c.verify.jobs = QF_VERIFY_JOBS_DEFAULT;
    c.verify.options = &c.options;
    int code = parse(&c, self, argc, argv, &line);
    if (code >= 0)
        return code;
    pthread_mutex_init(&c.verify.lock, NULL);
    c.verify.stop = qf_cli_catch_signals();
    qf_log_set_level(c.options.debug ? QF_LOG_DEBUG : QF_LOG_WARN);
    int64_t start_ms = qf_clock_ms();
    int rc = work(&c, line.operands[0], &err);
    int number = rc != 0 ? atomic_load(c.verify.stop) : 0;
    if (number != 0)
        fputs("quantfs verify: ended early\n", stderr);
    else if (rc != 0)
        fprintf(stderr, "quantfs verify: %s\n",
                err.text[0] != '\0' ? err.text : strerror(-rc));
    else
        report(&c, line.operands[0], (double)(qf_clock_ms() - start_ms) / 1000);
    paths_fini(&c.paths);
    paths_fini(&c.source_paths);
    for (size_t i = 0; i < c.verify.told_count; i++)
        free(c.verify.told[i].tensor);
    pthread_mutex_destroy(&c.verify.lock);
    if (rc != 0)
        return number != 0 ? 128 + number : QF_CLI_FAILED;
    return is_equal(&c.verify) ? QF_CLI_OK : CLI_DIFFERENT;
}

static const struct qf_cli_option options[] = {
    {.id = 'a',
     .name = "against",
     .value = "PATH",
     .help = "the model that was quantized (needed)"},
    {.id = 'v',
     .name = "view",
     .value = "VIEW",
     .help = "compare with this view, whatever DIR says it is"},
    {.id = 'o',
     .letter = true,
     .name = "options",
     .value = "LIST",
     .repeats = true,
     .help = "options of quantfs mount"},
    {.id = 'n', .name = "jobs", .value = "N", .help = "readers (4)"},
    {.id = 'j', .name = "json", .help = "one JSON document at the end"},
    {.id = 'q',
     .letter = true,
     .name = "quiet",
     .help = "no progress, and without --json no output"},
    {0},
};

const struct qf_cli_command qf_cmd_verify = {
    .name = "verify",
    .summary = "compare a quantized checkpoint with its source",
    .about =
        "Tells whether the quantized checkpoint in DIR (of quantfs export, or saved by "
        "anybody's bitsandbytes) holds what a view of the model in --against PATH "
        "holds: every code, absmax, SCB, quant_state and kept tensor, in whatever "
        "shards they are. PATH is a model in a store, or lies in a mount. Settings are "
        "read from DIR.\n"
        "Where bitsandbytes' own kernels are known to differ from each other, a "
        "difference is a known tie: named, counted, and equal. Every other one is "
        "told: tensor, element, both values.",
    .options = options,
    .operands = (const struct qf_cli_operand[]){{.word = "DIR"}, {0}},
    .exits = (const struct qf_cli_exit[]){{"0", "equal, but for known ties"},
                                          {"1", "usage"},
                                          {"2", "could not be compared"},
                                          {"3", "different"},
                                          {"128 + N", "ended by signal N"},
                                          {0}},
    .run = run,
};
