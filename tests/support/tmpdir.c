/* SPDX-License-Identifier: Apache-2.0 */
#include "support/tmpdir.h"

#include <assert.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *tmpdir_make(void)
{
    const char *base = getenv("TMPDIR");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/quantfs-test-XXXXXX", base != NULL ? base : "/tmp");
    assert(mkdtemp(path) != NULL);
    char *copy = strdup(path);
    assert(copy != NULL);
    return copy;
}

static int remove_entry(const char *path, const struct stat *st, int type,
                        struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void tmpdir_remove(char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(path);
}

void tmpdir_write(const char *dir, const char *path, const void *data, size_t size)
{
    char full[PATH_MAX];
    int n = snprintf(full, sizeof full, "%s/%s", dir, path);
    assert(n > 0 && (size_t)n < sizeof full);
    for (char *p = full + strlen(dir) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        mkdir(full, 0777);
        *p = '/';
    }
    FILE *file = fopen(full, "wb");
    assert(file != NULL);
    assert(fwrite(data, 1, size, file) == size);
    assert(fclose(file) == 0);
}

void tmpdir_write_text(const char *dir, const char *path, const char *text)
{
    tmpdir_write(dir, path, text, strlen(text));
}
