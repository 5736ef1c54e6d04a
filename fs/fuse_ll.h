/* SPDX-License-Identifier: Apache-2.0 */
/* libfuse's low-level operations over a tree, and passthrough: translation only. One of
 * the two files that know libfuse. */
#ifndef QF_FS_FUSE_LL_H
#define QF_FS_FUSE_LL_H

#include <sys/types.h>
#include <sys/uio.h>

#include "fs/handles.h"
#include "fs/journal.h"
#include "fs/passthrough.h"
#include "fs/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

struct fuse_custom_io;
struct fuse_lowlevel_ops;
struct fuse_session;

/* The session's userdata. */
struct qf_fuse_context {
    qf_tree *tree;       /* borrowed */
    qf_handles *handles; /* the same */
    qf_journal *journal; /* the same; NULL: none */
    double attr_ttl_s;   /* how long the kernel may trust names and attributes */
    qf_passthrough *passthrough; /* borrowed; NULL: none */
    struct qf_passthrough_device device;
    int replay_error; /* of qf_fuse_resume */
    /* Called by qf_fuse_io when the kernel has taken the answer to INIT; NULL: nothing.
     */
    void (*started)(void *arg);
    void *started_arg;
    /* What qf_fuse_io reads and writes with; NULL: read(2) and writev(2). */
    ssize_t (*read)(int fd, void *buf, size_t size);
    ssize_t (*writev)(int fd, const struct iovec *iov, int count);
};

const struct fuse_lowlevel_ops *qf_fuse_ops(void);
/* For fuse_session_custom_io: puts what passthrough needs into libfuse's replies,
 * counts requests, and tells when the session has begun. A session works without it. */
const struct fuse_custom_io *qf_fuse_io(void);

/* Goes on where the daemon was that has written the journal: nodes, handles, and what
 * was negotiated. Before the session's loop, which finds it initialized. */
int qf_fuse_resume(struct qf_fuse_context *context,
                   struct fuse_session *session) QF_MUST_CHECK;
/* Has the kernel send again what that daemon did not answer. */
int qf_fuse_resend(int fd) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
