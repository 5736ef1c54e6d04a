/* SPDX-License-Identifier: Apache-2.0 */
/* The service manager's protocol (sd_notify(3), sd_listen_fds(3)): telling it how we
 * are, and leaving descriptors with it that outlive us. The manager is systemd, or our
 * own keeper (fs/keeper.h). Without one (no NOTIFY_SOCKET) nothing happens. */
#ifndef QF_BASE_NOTIFY_H
#define QF_BASE_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_NOTIFY_SIZE_MAX 4096
/* What we leave there. */
#define QF_NOTIFY_FUSE    "quantfs-fuse"    /* the mount's /dev/fuse */
#define QF_NOTIFY_JOURNAL "quantfs-journal" /* fs/journal.h */

/* Whether somebody listens. */
bool qf_notify_wanted(void);
/* Assignments, one a line: "READY=1", "STATUS=…", "STOPPING=1", "WATCHDOG=1". 0 also
 * when nobody listens. */
int qf_notify(const char *fmt, ...) QF_PRINTF(1, 2) QF_MUST_CHECK;
/* Leaves a duplicate of `fd` with the manager, under a name; whoever is started next
 * finds it. 0 only when it has been taken into the manager's socket. -ENOTCONN: there
 * is none. */
int qf_notify_store(const char *name, int fd) QF_MUST_CHECK;
/* The manager closes what it has under that name. */
int qf_notify_remove(const char *name) QF_MUST_CHECK;
/* The descriptor of this name that the manager has passed to this process, now
 * close-on-exec; -1: there is none. The caller owns it; ask once for each name. */
int qf_notify_passed(const char *name);
/* How often "WATCHDOG=1" is expected, in milliseconds; 0: it is not. */
int64_t qf_notify_watchdog_ms(void);

#ifdef __cplusplus
}
#endif
#endif
