/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"

static int read_all(int fd, char *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = read(fd, data + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

int qf_cli_read_file(const char *path, size_t size_max, char **data, size_t *size,
                     struct qf_err *err)
{
    struct stat st;
    char *text = NULL;
    int rc = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0)
        rc = qf_err_set(err, -errno, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > size_max)
        rc = qf_err_set(err, -EFBIG, "%s: not a regular file, or too large", path);
    if (rc != 0)
        goto out;
    text = malloc((size_t)st.st_size + 1);
    rc = text != NULL ? read_all(fd, text, (size_t)st.st_size) : -ENOMEM;
    if (rc != 0) {
        qf_err_set(err, rc, "%s: %s", path, strerror(-rc));
        goto out;
    }
    text[st.st_size] = '\0';
    *data = text;
    *size = (size_t)st.st_size;
    text = NULL;
out:
    free(text);
    if (fd >= 0)
        close(fd);
    return rc;
}
