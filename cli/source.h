/* SPDX-License-Identifier: Apache-2.0 */
/* Files of views, wherever they are served: through a mount, or from a stack of our
 * own, which reads them as the daemon would. Private to cli/. */
#ifndef QF_CLI_SOURCE_H
#define QF_CLI_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/err.h"
#include "cli/stack.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sums since the server was started. */
struct qf_source_counts {
    uint64_t chunks_encoded;
    uint64_t cache_hits; /* records found in the cache */
    uint64_t evictions;
    uint64_t dropped; /* records that the cache did not keep */
};

/* A file that is open. */
struct qf_source_file {
    uint64_t size;
    struct stat st; /* as the view shows it */
    bool shard;     /* a view shard (of a mount also a JSON file that the view changes):
                     * what is read of it is encoded */
    bool sealed;    /* the cache has the shard whole: reading it would do nothing */
    int fd;
    uint64_t id;
    struct qf_file *file;
};

/* Calls are thread-safe. */
struct qf_views_source {
    const struct qf_source_ops *ops;
    const struct qf_stack *stack; /* of ours (paths begin with the view); NULL: */
    const char *top;              /* of a mount (paths are the kernel's) */
};

struct qf_source_ops {
    /* Calls `each` for every entry until it returns non-zero, which is returned.
     * -ENOTDIR for a file. */
    int (*list)(const struct qf_views_source *source, const char *path,
                int (*each)(void *arg, const char *name, bool is_dir), void *arg);
    /* Any file. */
    int (*open)(const struct qf_views_source *source, const char *path,
                struct qf_source_file *out);
    /* Bytes read, 0 at the end. buf must hold them, but they need not come to lie in
     * it when `drop` is set. */
    ssize_t (*read)(struct qf_source_file *file, void *buf, size_t size, uint64_t off,
                    bool drop);
    /* Appends the value of user.quantfs.key, which decides the bytes. -ENODATA: a file
     * that passes through. */
    int (*key)(const struct qf_views_source *source, const struct qf_source_file *file,
               struct qf_buf *out);
    void (*close)(const struct qf_views_source *source, struct qf_source_file *file);
    /* Waits until what was encoded is in the cache. */
    void (*settle)(const struct qf_views_source *source);
    void (*counts)(const struct qf_views_source *source, struct qf_source_counts *out);
};

extern const struct qf_source_ops qf_source_mount_ops;
extern const struct qf_source_ops qf_source_stack_ops;

/* Exactly `size` bytes; -ESTALE when the file ends before. */
int qf_source_read_all(const struct qf_views_source *source,
                       struct qf_source_file *file, void *buf, size_t size,
                       uint64_t off) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
