/* SPDX-License-Identifier: Apache-2.0 */
/* The jail is a descriptor of the root, not a path: every open starts there and follows
 * no link (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, or the same by hand
 * where a kernel or a seccomp filter lacks it), so whoever swaps a directory for a link
 * at the wrong moment gets an error and nothing else. Links are followed by us: the
 * path is rewritten component by component until an open finds no link any more. It
 * also works when something is mounted over the store's path.
 *
 * An absolute link stays in the store when it begins with the store's path, as it was
 * given or as it is without links; a relative one must not climb out on its way. */
#include "ckpt/root.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/path.h"

#define LINKS_MAX 40 /* of one path, as in the kernel */
#define RACES_MAX 16 /* a path that changes at every try is given up */

struct qf_root {
    int fd;
    bool has_openat2;
    char *path;  /* without links */
    char *given; /* absolute, as the user wrote it */
};

/* ---- opening below the root ---- */

static int openat2_beneath(int dir, const char *path, int flags)
{
    struct open_how how = {.flags = (unsigned)flags,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
                                      RESOLVE_NO_MAGICLINKS};
    long fd;
    do {
        fd = syscall(SYS_openat2, dir, path, &how, sizeof how);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : (int)fd;
}

static int openat_retry(int dir, const char *name, int flags)
{
    int fd;
    do {
        fd = openat(dir, name, flags);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

static int fstat_errno(int fd, struct stat *st)
{
    return fstat(fd, st) != 0 ? -errno : 0;
}

/* Opens one name, never a link unless flags have O_NOFOLLOW. The kind is looked at
 * first because O_DIRECTORY reports a link as ENOTDIR. */
static int open_name(int dir, const char *name, int flags)
{
    struct stat st;
    int fd = openat_retry(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    int rc = fd >= 0 ? fstat_errno(fd, &st) : fd;
    if (rc == 0 && S_ISLNK(st.st_mode) && (flags & O_NOFOLLOW) == 0)
        rc = -ELOOP;
    if (rc == 0 && (flags & ~(O_NOFOLLOW | O_CLOEXEC)) == O_PATH)
        return fd;
    if (fd >= 0)
        close(fd);
    return rc != 0 ? rc : openat_retry(dir, name, flags | O_NOFOLLOW);
}

/* What openat2 does, a component at a time. */
static int walk_beneath(int root, const char *path, int flags)
{
    int dir = root;
    for (;;) {
        size_t n = strcspn(path, "/");
        char name[NAME_MAX + 1];
        int fd = -ENAMETOOLONG;
        bool last = path[n] == '\0';
        if (n <= NAME_MAX) {
            memcpy(name, path, n);
            name[n] = '\0';
            fd = open_name(dir, name, last ? flags : O_PATH | O_CLOEXEC);
        }
        if (dir != root)
            close(dir);
        if (last || fd < 0)
            return fd;
        dir = fd;
        path += n + 1;
    }
}

/* Opens a path that must hold no link; -ELOOP if it does. With O_PATH | O_NOFOLLOW the
 * last component may be a link, and the descriptor is that of the link. */
static int open_beneath(const qf_root *root, const char *path, int flags)
{
    flags |= O_CLOEXEC;
    if (*path == '\0')
        path = ".";
    return root->has_openat2 ? openat2_beneath(root->fd, path, flags)
                             : walk_beneath(root->fd, path, flags);
}

/* ---- resolving links ---- */

/* A path that is being resolved: done is known to hold no link, rest is still to go.
 * Both are relative, without '/' at either end. */
struct resolving {
    char *done; /* owned */
    char *rest; /* owned */
};

/* What is left of an absolute path below prefix, or NULL when it is not below it. */
static const char *below(const char *path, const char *prefix)
{
    size_t n = strlen(prefix);
    if (n == 1) /* the store is "/" */
        return path;
    if (strncmp(path, prefix, n) != 0 || (path[n] != '/' && path[n] != '\0'))
        return NULL;
    return path + n;
}

/* Takes off the last component; -EXDEV when there is none. */
static int climb(char *done)
{
    if (*done == '\0')
        return -EXDEV;
    char *slash = strrchr(done, '/');
    *(slash != NULL ? slash : done) = '\0';
    return 0;
}

/* Replaces the link at the head of rest (name, of size bytes) by its target. */
static int follow(const qf_root *root, struct resolving *r, int link, size_t size)
{
    char target[PATH_MAX];
    ssize_t n = readlinkat(link, "", target, sizeof target - 1);
    if (n < 0)
        return -errno;
    target[n] = '\0';
    const char *to = target;
    if (*to == '/') {
        to = below(target, root->path);
        if (to == NULL)
            to = below(target, root->given);
        if (to == NULL)
            return -EXDEV;
        *r->done = '\0';
    }
    const char *rest = r->rest + size;
    char *joined = qf_path_join(to, rest + strspn(rest, "/"));
    if (joined == NULL)
        return -ENOMEM;
    free(r->rest);
    r->rest = joined;
    return 0;
}

/* Moves the head of rest, which is no link, to done. */
static int advance(struct resolving *r, const char *name, const char *rest)
{
    char *done = qf_path_join(r->done, name);
    if (done == NULL)
        return -ENOMEM;
    free(r->done);
    r->done = done;
    memmove(r->rest, rest, strlen(rest) + 1);
    return 0;
}

/* One component of rest. *links counts the links followed. */
static int resolve_step(const qf_root *root, struct resolving *r, int *links)
{
    char name[NAME_MAX + 1];
    size_t skip = strspn(r->rest, "/");
    size_t size = strcspn(r->rest + skip, "/");
    if (size > NAME_MAX)
        return -ENAMETOOLONG;
    memcpy(name, r->rest + skip, size);
    name[size] = '\0';
    const char *rest = r->rest + skip + size;
    if (size == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        int rc = strcmp(name, "..") == 0 ? climb(r->done) : 0;
        memmove(r->rest, rest, strlen(rest) + 1);
        return rc;
    }
    char *path = qf_path_join(r->done, name);
    if (path == NULL)
        return -ENOMEM;
    int fd = open_beneath(root, path, O_PATH | O_NOFOLLOW);
    free(path);
    if (fd < 0)
        return fd;
    struct stat st;
    int rc = fstat_errno(fd, &st);
    if (rc == 0 && S_ISLNK(st.st_mode))
        rc = ++*links > LINKS_MAX ? -ELOOP : follow(root, r, fd, skip + size);
    else if (rc == 0 && *rest != '\0' && !S_ISDIR(st.st_mode))
        rc = -ENOTDIR;
    else if (rc == 0)
        rc = advance(r, name, rest);
    close(fd);
    return rc;
}

/* *real is the path without links. It may change before it is opened: see
 * qf_root_openat. */
static int resolve_links(const qf_root *root, const char *path, char **real)
{
    struct resolving r = {.done = strdup(""), .rest = strdup(path)};
    int links = 0;
    int rc = r.done == NULL || r.rest == NULL ? -ENOMEM : 0;
    while (rc == 0 && *r.rest != '\0')
        rc = resolve_step(root, &r, &links);
    if (rc == 0)
        *real = r.done;
    else
        free(r.done);
    free(r.rest);
    return rc;
}

/* A path without links, the usual case, costs one openat2. */
int qf_root_openat(const qf_root *root, const char *path, int flags, char **real)
{
    char *plain = strdup(path);
    if (plain == NULL)
        return -ENOMEM;
    int fd = open_beneath(root, plain, flags);
    for (int i = 0; fd == -ELOOP && i < RACES_MAX; i++) {
        free(plain);
        plain = NULL;
        int rc = resolve_links(root, path, &plain);
        if (rc != 0)
            return rc;
        fd = open_beneath(root, plain, flags);
    }
    if (fd >= 0 && real != NULL)
        *real = plain;
    else
        free(plain);
    return fd;
}

/* ---- root ---- */

static int open_root(qf_root *root, const char *path)
{
    char cwd[PATH_MAX];
    root->path = realpath(path, NULL);
    if (root->path == NULL)
        return -errno;
    if (*path != '/' && getcwd(cwd, sizeof cwd) == NULL)
        return -errno;
    root->given = *path == '/' ? strdup(path) : qf_path_join(cwd, path);
    if (root->given == NULL)
        return -ENOMEM;
    size_t n = strlen(root->given);
    while (n > 1 && root->given[n - 1] == '/')
        root->given[--n] = '\0';
    root->fd = openat_retry(AT_FDCWD, root->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root->fd < 0)
        return root->fd;
    int probe = openat2_beneath(root->fd, ".", O_PATH | O_CLOEXEC);
    root->has_openat2 = probe >= 0;
    if (probe >= 0)
        close(probe);
    return 0;
}

int qf_root_open(const char *path, qf_root **out, struct qf_err *err)
{
    qf_root *root = calloc(1, sizeof *root);
    if (root == NULL)
        return qf_err_set(err, -ENOMEM, "%s: out of memory", path);
    root->fd = -1;
    int rc = open_root(root, path);
    if (rc != 0) {
        qf_root_close(root);
        return qf_err_set(err, rc, "%s: %s", path, strerror(-rc));
    }
    *out = root;
    return 0;
}

void qf_root_close(qf_root *root)
{
    if (root == NULL)
        return;
    if (root->fd >= 0)
        close(root->fd);
    free(root->path);
    free(root->given);
    free(root);
}

const char *qf_root_path(const qf_root *root)
{
    return root->path;
}

int qf_root_resolve(const qf_root *root, const char *path, char **real, struct stat *st)
{
    char *plain = NULL;
    int fd = qf_root_openat(root, path, O_PATH, &plain);
    if (fd < 0)
        return fd;
    int rc = fstat_errno(fd, st);
    close(fd);
    if (rc == 0 && real != NULL)
        *real = plain;
    else
        free(plain);
    return rc;
}

int qf_root_opendir(const qf_root *root, const char *path)
{
    return qf_root_openat(root, path, O_RDONLY | O_DIRECTORY, NULL);
}
