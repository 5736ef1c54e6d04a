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

/* Refuses a mountpoint that is no directory, or that lies in the store (the mount would
 * show itself). */
int qf_daemon_check_mountpoint(const char *mountpoint, const char *store_path,
                               struct qf_err *err) QF_MUST_CHECK;
/* Mounts. options, tree, passthrough and mountpoint are borrowed. */
int qf_daemon_mount(const struct qf_mount_options *options, qf_tree *tree,
                    qf_passthrough *passthrough, const char *store_path,
                    const char *mountpoint, qf_daemon **out,
                    struct qf_err *err) QF_MUST_CHECK;
/* Serves until unmounted or told to end by SIGTERM, SIGINT or SIGHUP. */
int qf_daemon_serve(qf_daemon *daemon) QF_MUST_CHECK;
/* Unmounts if need be. NULL is allowed. */
void qf_daemon_close(qf_daemon *daemon);

#ifdef __cplusplus
}
#endif
#endif
