/* SPDX-License-Identifier: Apache-2.0 */
/* A mount from beginning to end: the libfuse session of one tree. */
#ifndef QF_FS_DAEMON_H
#define QF_FS_DAEMON_H

#include "base/err.h"
#include "fs/opts.h"
#include "fs/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_daemon qf_daemon;

const char *qf_daemon_libfuse_version(void);

/* Mounts. options, tree, passthrough and mountpoint are borrowed. */
int qf_daemon_mount(const struct qf_mount_options *options, qf_tree *tree,
                    qf_passthrough *passthrough, const char *store_path,
                    const char *mountpoint, qf_daemon **out,
                    struct qf_err *err) QF_MUST_CHECK;
/* Serves until it is unmounted or stopped; then what has been read from the kernel is
 * answered. */
int qf_daemon_serve(qf_daemon *daemon) QF_MUST_CHECK;
/* Stops it, from another thread. The call can come to nothing while that thread is on
 * its way into its wait: repeat it until qf_daemon_serve has returned. */
void qf_daemon_stop(qf_daemon *daemon);
/* Absolute; borrowed. */
const char *qf_daemon_mountpoint(const qf_daemon *daemon);
/* Unmounts if need be. NULL is allowed. */
void qf_daemon_close(qf_daemon *daemon);

#ifdef __cplusplus
}
#endif
#endif
