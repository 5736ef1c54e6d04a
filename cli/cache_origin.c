/* SPDX-License-Identifier: Apache-2.0 */
/* What the subcommands of `quantfs cache` share: which model an origin stands for. */
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cache.h"
#include "cli/cli.h"
#include "view/names.h"

int qf_cache_failed(const struct qf_cache_args *args, int rc)
{
    fprintf(stderr, "quantfs %s: cache %s: %s\n", args->command, args->dir,
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
