/* SPDX-License-Identifier: Apache-2.0 */
/* Open files. A file is one of four kinds: text (config.json, an index, the files
 * of the control directory), a source file passed through, or a view shard. */
#ifndef QF_FS_FILE_H
#define QF_FS_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "fs/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_file qf_file;

/* -EISDIR, -ENOENT, …; -ESTALE when the contents are no longer those of the generation
 * told last (the kernel looks the name up again and comes back). */
int qf_file_open(qf_tree *tree, uint64_t id, qf_file **out) QF_MUST_CHECK;
/* The same, of contents that were opened as this generation; -ESTALE when they are
 * others now. */
int qf_file_reopen(qf_tree *tree, uint64_t id, uint64_t generation,
                   qf_file **out) QF_MUST_CHECK;
/* One more reference. */
void qf_file_hold(qf_file *file);
/* Gives one back; the last one closes. NULL is allowed. */
void qf_file_close(qf_file *file);
/* Of its contents. */
uint64_t qf_file_generation(const qf_file *file);
/* Contents that change from open to open and have no size before they are read. */
bool qf_file_is_dynamic(const qf_file *file);
/* These contents, borrowed; and a file with such contents of another daemon's. */
const char *qf_file_dynamic_text(const qf_file *file, size_t *size);
int qf_file_open_text(qf_tree *tree, const char *text, size_t size,
                      qf_file **out) QF_MUST_CHECK;
/* For a view shard (false: it is none): its sealed file (-1: none), borrowed from
 * `file`. */
bool qf_file_sealed(const qf_file *file, int *fd);

/* XXH3-64 of all bytes, if it is known without reading weights: of texts and of shards
 * with a sealed file. -ENODATA. */
int qf_file_digest(const qf_file *file, uint64_t *out) QF_MUST_CHECK;

/* Bytes read, valid until qf_file_read_done. */
struct qf_file_read {
    const struct iovec *pieces;
    size_t piece_count;
    size_t size;
    struct qf_read *engine_read; /* private, as is all below */
    struct iovec piece;
    qf_engine *engine;
    void *buffer;
    size_t buffer_size;
    qf_file *file; /* a reference: pieces point into it */
};

/* Reads up to `size` bytes, fewer only at the end of the file (and past
 * QF_FUSE_READ_SIZE_MAX). -ESTALE when the source has changed since the open. */
int qf_file_read(qf_file *file, uint64_t off, size_t size,
                 struct qf_file_read *out) QF_MUST_CHECK;
void qf_file_read_done(struct qf_file_read *read);

#ifdef __cplusplus
}
#endif
#endif
