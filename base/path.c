/* SPDX-License-Identifier: Apache-2.0 */
#include "base/path.h"

#include <stdlib.h>
#include <string.h>

char *qf_path_join(const char *a, const char *b)
{
    size_t na = strlen(a), nb = strlen(b);
    char *path = malloc(na + nb + 2);
    if (path == NULL)
        return NULL;
    memcpy(path, a, na);
    if (na > 0 && nb > 0)
        path[na++] = '/';
    memcpy(path + na, b, nb + 1);
    return path;
}

char *qf_path_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    return strndup(path, slash != NULL ? (size_t)(slash - path) : 0);
}

const char *qf_path_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

bool qf_path_ends_with(const char *path, const char *end)
{
    size_t n = strlen(path), k = strlen(end);
    return n >= k && memcmp(path + n - k, end, k) == 0;
}
