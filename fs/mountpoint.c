/* SPDX-License-Identifier: Apache-2.0 */
/* What is mounted is found out from mountinfo: asking the mount itself would wait for
 * its daemon, which may be us, or dead. */
#include "fs/mountpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* mountinfo writes blanks and backslashes of a path as \\ooo. */
static void unescape_octal(char *text)
{
    char *to = text;
    for (const char *from = text; *from != '\0'; to++) {
        unsigned value;
        if (from[0] == '\\' && sscanf(from + 1, "%3o", &value) == 1) {
            *to = (char)value;
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

/* How many lie there, the last one of them on top; *lies_there: one has this device. */
static size_t look(const char *mountpoint, struct qf_mountpoint *top,
                   const char *device, bool *lies_there)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    if (file == NULL)
        return 0;
    char *line = NULL;
    size_t capacity = 0, count = 0;
    while (getline(&line, &capacity, file) > 0) {
        struct qf_mountpoint mount = {.source = ""};
        char point[PATH_MAX];
        const char *rest = strstr(line, " - ");
        if (rest == NULL ||
            sscanf(line, "%*s %*s %31s %*s %4095s", mount.device, point) != 2 ||
            sscanf(rest, " - %63s %4095s", mount.type, mount.source) < 1)
            continue;
        unescape_octal(point);
        unescape_octal(mount.source);
        if (strcmp(point, mountpoint) == 0) {
            count++;
            *top = mount;
            *lies_there |= strcmp(mount.device, device) == 0;
        }
    }
    free(line);
    fclose(file);
    return count;
}

bool qf_mountpoint_find(const char *mountpoint, struct qf_mountpoint *out)
{
    bool lies_there = false;
    return look(mountpoint, out, "", &lies_there) > 0;
}

int qf_mountpoint_holds(const char *mountpoint, const char *device)
{
    struct qf_mountpoint top;
    bool lies_there = false;
    size_t count = look(mountpoint, &top, device, &lies_there);
    if (count > 0 && strcmp(top.device, device) == 0)
        return 1;
    return lies_there ? -EBUSY : 0;
}

/* realpath, but for the last component: a dead mount has none. Returns owned, or NULL.
 */
static char *path_of_dead(const char *mountpoint)
{
    char *copy = strdup(mountpoint);
    if (copy == NULL)
        return NULL;
    size_t n = strlen(copy);
    while (n > 1 && copy[n - 1] == '/')
        copy[--n] = '\0';
    char *slash = strrchr(copy, '/');
    const char *name = slash != NULL ? slash + 1 : copy;
    if (slash != NULL)
        *slash = '\0';
    char *dir = realpath(slash == NULL ? "." : slash == copy ? "/" : copy, NULL);
    char *path = NULL;
    if (dir != NULL &&
        asprintf(&path, "%s/%s", strcmp(dir, "/") == 0 ? "" : dir, name) < 0)
        path = NULL;
    free(dir);
    free(copy);
    return path;
}

/* The kernel may still know the root's attributes: only an open asks. */
static bool is_dead(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOTCONN;
    close(fd);
    return false;
}

int qf_mountpoint_clear(const char *mountpoint, struct qf_err *err)
{
    struct qf_mountpoint dead;
    char *path = path_of_dead(mountpoint);
    int rc = 0;
    if (path != NULL && qf_mountpoint_find(path, &dead) &&
        strcmp(dead.type, "fuse.quantfs") == 0 && is_dead(path)) {
        rc = qf_mountpoint_unmount(path, true);
        if (rc != 0)
            rc = qf_err_set(err, rc,
                            "mountpoint %s: a dead mount that cannot be unmounted: %s",
                            mountpoint, strerror(-rc));
    }
    free(path);
    return rc;
}

int qf_mountpoint_check(const char *mountpoint, const char *store_path,
                        struct qf_err *err)
{
    char real[PATH_MAX];
    struct stat st;
    if (stat(mountpoint, &st) != 0 || realpath(mountpoint, real) == NULL) {
        int error = errno;
        const char *hint = error == ENOENT     ? " (make it first)"
                           : error == ENOTCONN ? " (a dead mount: unmount it first)"
                                               : "";
        return qf_err_set(err, -error, "mountpoint %s: %s%s", mountpoint,
                          strerror(error), hint);
    }
    if (!S_ISDIR(st.st_mode))
        return qf_err_set(err, -ENOTDIR, "mountpoint %s: not a directory", mountpoint);
    struct qf_mountpoint other;
    if (qf_mountpoint_find(real, &other) && strcmp(other.type, "fuse.quantfs") == 0)
        return qf_err_set(err, -EBUSY,
                          "mountpoint %s: %.200s is mounted on it already (quantfs "
                          "umount %s first)",
                          mountpoint, other.source, mountpoint);
    size_t n = strlen(store_path);
    if (strncmp(real, store_path, n) == 0 &&
        (real[n] == '/' || real[n] == '\0' || strcmp(store_path, "/") == 0))
        return qf_err_set(err, -EINVAL,
                          "mountpoint %s lies in the store %s: the mount would show "
                          "itself; choose one outside",
                          mountpoint, store_path);
    return 0;
}

/* Without the right to unmount, fusermount3 does it for the mount's owner. It says
 * itself what is wrong. */
static int run_fusermount(const char *mountpoint, bool lazy)
{
    pid_t pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        execlp("fusermount3", "fusermount3", lazy ? "-uz" : "-u", "--", mountpoint,
               (char *)NULL);
        _exit(127);
    }
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EPERM;
}

int qf_mountpoint_unmount(const char *mountpoint, bool lazy)
{
    if (umount2(mountpoint, lazy ? MNT_DETACH : 0) == 0)
        return 0;
    return errno == EPERM ? run_fusermount(mountpoint, lazy) : -errno;
}
