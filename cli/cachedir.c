/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/cli.h"

int qf_cli_cache_dir(char *out, size_t size, struct qf_err *err)
{
    const char *base = getenv("XDG_CACHE_HOME");
    const char *middle = "";
    if (base == NULL || base[0] != '/') {
        base = getenv("HOME");
        middle = "/.cache";
        if (geteuid() == 0) {
            base = "/var/cache";
            middle = "";
        }
    }
    if (base == NULL || base[0] != '/')
        return qf_err_set(err, -ENOENT,
                          "no directory for the cache: set HOME or -o cache=DIR");
    int n = snprintf(out, size, "%s%s/quantfs", base, middle);
    if (n < 0 || (size_t)n >= size)
        return qf_err_set(err, -ENAMETOOLONG, "cache directory: path too long");
    return 0;
}
