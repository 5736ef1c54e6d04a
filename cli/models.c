/* SPDX-License-Identifier: Apache-2.0 */
/* PATH may be a model, a directory with models somewhere below it, or a path in a
 * mount: that one stands for its source. Links may lead anywhere here (a snapshot of a
 * hub cache points to blobs beside it), so the whole filesystem is the root. */
#include "cli/models.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/mounted.h"

#define DEPTH_MAX 64

int qf_models_path(const char *name, char out[PATH_MAX])
{
    if (realpath(name, out) == NULL)
        return -errno;
    struct stat st;
    char *slash = strrchr(out, '/');
    if (stat(out, &st) == 0 && !S_ISDIR(st.st_mode) && slash > out)
        *slash = '\0';
    qf_mounted_source(out);
    return 0;
}

static void walk(const qf_root *root, const char *path,
                 const struct qf_models_visitor *visitor, unsigned depth)
{
    struct qf_model *model;
    struct qf_err err = {""};
    int rc = qf_model_load_whole(root, path + 1, &model, &err);
    if (rc != 0) {
        visitor->failed(visitor->arg, path, rc, &err);
        return;
    }
    if (model->kind != QF_MODEL_NONE || model->reason[0] != '\0')
        visitor->model(visitor->arg, path, model);
    else
        qf_model_free(model);
    struct dirent **names;
    int count = depth < DEPTH_MAX ? scandir(path, &names, NULL, alphasort) : 0;
    for (int i = 0; i < count; i++) {
        char child[PATH_MAX];
        int n = snprintf(child, sizeof child, "%s/%s", path, names[i]->d_name);
        if (names[i]->d_type == DT_DIR && strcmp(names[i]->d_name, ".") != 0 &&
            strcmp(names[i]->d_name, "..") != 0 && n > 0 && (size_t)n < sizeof child)
            walk(root, child, visitor, depth + 1);
        free(names[i]);
    }
    if (count > 0)
        free(names);
}

void qf_models_walk(const qf_root *root, const char *path,
                    const struct qf_models_visitor *visitor)
{
    walk(root, path, visitor, 0);
}
