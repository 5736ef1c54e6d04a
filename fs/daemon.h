/* SPDX-License-Identifier: Apache-2.0 */
/* A mount from beginning to end: the libfuse session of one tree. */
#ifndef QF_FS_DAEMON_H
#define QF_FS_DAEMON_H

#include <stdbool.h>

#include "base/err.h"
#include "fs/kept.h"
#include "fs/opts.h"
#include "fs/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_daemon qf_daemon;

const char *qf_daemon_libfuse_version(void);

/* A mount that a daemon before this one has left with the service manager: its
 * descriptor and its journal, or -1 and -1. device: "" when the journal has none. */
struct qf_passed {
    int fuse_fd, journal_fd;
    char device[QF_KEPT_DEVICE_SIZE];
};
void qf_daemon_passed(const struct qf_mount_options *options, struct qf_passed *out);
void qf_passed_close(struct qf_passed *passed);

/* Mounts, on a directory or over a descriptor that is mounted already ("/dev/fd/N"), or
 * goes on with what was passed (taken over, also on failure; the mountpoint must then
 * be absolute). options, tree, passthrough and mountpoint are borrowed. */
int qf_daemon_mount(const struct qf_mount_options *options, qf_tree *tree,
                    qf_passthrough *passthrough, const char *store_path,
                    const char *mountpoint, struct qf_passed *passed, qf_daemon **out,
                    struct qf_err *err) QF_MUST_CHECK;
/* Unmounts lazily, before the end: who has files open is served on. -EBUSY: something
 * else is mounted over it. What somebody else has mounted in its place stays. */
int qf_daemon_detach(qf_daemon *daemon) QF_MUST_CHECK;
/* Closing it will leave the mount to the next daemon; `out` is what it takes to end it
 * all the same (qf_kept_end). -ENOTCONN: there will be no next one. */
int qf_daemon_hand_over(qf_daemon *daemon, struct qf_kept *out) QF_MUST_CHECK;
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
