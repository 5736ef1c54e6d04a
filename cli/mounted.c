/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/mounted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "fs/tree.h"

char *qf_mounted_status(const char *top)
{
    char path[PATH_MAX + 32], block[4096];
    snprintf(path, sizeof path, "%s/" QF_CONTROL_DIR "/status", top);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return NULL;
    struct qf_buf text = {0};
    for (size_t n; (n = fread(block, 1, sizeof block, file)) > 0;)
        qf_buf_append(&text, block, n);
    fclose(file);
    return qf_buf_take(&text, NULL);
}

bool qf_mounted_value(const char *status, const char *key, char *out, size_t size)
{
    size_t n = strlen(key);
    for (const char *line = status; line != NULL && *line != '\0';) {
        size_t length = strcspn(line, "\n");
        if (strncmp(line, key, n) == 0 && line[n] == '=') {
            if (length - n - 1 >= size)
                return false;
            memcpy(out, line + n + 1, length - n - 1);
            out[length - n - 1] = '\0';
            return true;
        }
        line += length + (line[length] == '\n');
    }
    return false;
}

uint64_t qf_mounted_number(const char *status, const char *key)
{
    char text[32];
    return qf_mounted_value(status, key, text, sizeof text) ? strtoull(text, NULL, 10)
                                                            : 0;
}

bool qf_mounted_find(const char *path, char top[PATH_MAX])
{
    if ((size_t)snprintf(top, PATH_MAX, "%s", path) >= PATH_MAX)
        return false;
    for (char *end = top + strlen(top); end != NULL; end = strrchr(top, '/')) {
        *end = '\0';
        char *status = top[0] != '\0' ? qf_mounted_status(top) : NULL;
        char store[PATH_MAX];
        bool found =
            status != NULL && qf_mounted_value(status, "store", store, sizeof store);
        free(status);
        if (found)
            return true;
    }
    return false;
}

void qf_mounted_source(char path[PATH_MAX])
{
    char top[PATH_MAX], store[PATH_MAX], whole[2 * PATH_MAX];
    if (!qf_mounted_find(path, top))
        return;
    char *status = qf_mounted_status(top);
    if (status != NULL && qf_mounted_value(status, "store", store, sizeof store)) {
        const char *view = path + strlen(top);
        const char *rest = view[0] == '/' ? strchr(view + 1, '/') : NULL;
        int n = snprintf(whole, sizeof whole, "%s%s", store, rest != NULL ? rest : "");
        if (n > 0 && n < PATH_MAX)
            strcpy(path, whole);
    }
    free(status);
}
