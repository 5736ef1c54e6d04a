/* SPDX-License-Identifier: Apache-2.0 */
/* Source files under the root of a store. The root is a jail: names are resolved inside
 * it, symbolic links are followed as long as they stay in it, and a file that changes
 * after it was opened is an error, never a mix of two versions. */
#ifndef QF_CKPT_SRCFILE_H
#define QF_CKPT_SRCFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_root qf_root;
typedef struct qf_srcfile qf_srcfile;

/* Which version of which file. Compare with qf_ident_eq only. */
struct qf_ident {
    uint64_t dev;
    uint64_t ino;
    uint64_t size; /* bytes */
    int64_t mtime_ns;
    int64_t ctime_ns;
};

struct qf_ident qf_ident_of(const struct stat *st);
bool qf_ident_eq(const struct qf_ident *a, const struct qf_ident *b);

/* Waits until a further change would show in the times: they move in steps of a few
 * milliseconds (some filesystems': seconds), and a second change within the step of the
 * first leaves no trace. Returns at once unless the last change was just now. Look at
 * the attributes again afterwards. A clock that is not ours (a file server's) may make
 * a change look older than it is; one step is waited for at most. */
void qf_stat_settle(const struct stat *st);

/* Opens the store's directory. -ENOTDIR, -ENOENT, … with err written. */
int qf_root_open(const char *path, qf_root **out, struct qf_err *err) QF_MUST_CHECK;
void qf_root_close(qf_root *root);
/* The absolute path without symbolic links. Borrowed. */
const char *qf_root_path(const qf_root *root);

/* Paths below are relative to the root, without leading or trailing '/', "" is the root
 * itself; no component is "." or "..". */

/* Resolves all symbolic links: *real becomes a path relative to the root without links
 * (returns owned; free()), *st its attributes. -EXDEV when a link leaves the store,
 * -ELOOP, -ENOENT. real may be NULL. */
int qf_root_resolve(const qf_root *root, const char *path, char **real,
                    struct stat *st) QF_MUST_CHECK;
/* Opens a directory for reading its names. Returns a descriptor (owned) or -errno. */
int qf_root_opendir(const qf_root *root, const char *path) QF_MUST_CHECK;
/* Reads a small file whole (at most size_max bytes, else -EFBIG). *data is owned, ended
 * by a NUL that *size does not count. ident may be NULL. -ESTALE if it changed while it
 * was read. */
int qf_root_read_file(const qf_root *root, const char *path, size_t size_max,
                      char **data, size_t *size, struct qf_ident *ident,
                      struct qf_err *err) QF_MUST_CHECK;

/* Opens a regular file. -EISDIR, -EXDEV, … */
int qf_srcfile_open(const qf_root *root, const char *path, qf_srcfile **out,
                    struct qf_err *err) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_srcfile_close(qf_srcfile *file);
/* The identity at the time of opening. */
const struct qf_ident *qf_srcfile_ident(const qf_srcfile *file);
int qf_srcfile_fd(const qf_srcfile *file);
/* Exactly `size` bytes at `off`: 0, -ESTALE when the file ends before (it shrank), or
 * the error of pread. Does not check the identity: see qf_srcfile_check. */
int qf_srcfile_read(const qf_srcfile *file, void *buf, size_t size,
                    uint64_t off) QF_MUST_CHECK;
/* 0 while the open file is what it was when it was opened; -ESTALE when it has been
 * written, truncated, touched. Call after reading and before the bytes are used. */
int qf_srcfile_check(const qf_srcfile *file) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
