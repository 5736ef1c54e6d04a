/* SPDX-License-Identifier: Apache-2.0 */
/* A mount by what outlives its daemon: where it is, which one it is, a descriptor.
 * Enough to end it from a process that does not serve it yet, or no longer. */
#ifndef QF_FS_KEPT_H
#define QF_FS_KEPT_H

#include <stdbool.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_KEPT_DEVICE_SIZE 32

struct qf_kept {
    char *mountpoint;                 /* absolute */
    char device[QF_KEPT_DEVICE_SIZE]; /* MAJOR:MINOR; "": not known */
    int fuse_fd;                      /* -1: there is no mount */
};

#define QF_KEPT_NONE ((struct qf_kept){NULL, "", -1})

/* Of a mount whose descriptor is duplicated; mountpoint and device are copied. */
int qf_kept_init(struct qf_kept *kept, const char *mountpoint, const char *device,
                 int fuse_fd) QF_MUST_CHECK;
/* Does nothing to the mount. */
void qf_kept_fini(struct qf_kept *kept);
/* The service manager lets its descriptors go, and the mount is unmounted lazily. It is
 * QF_KEPT_NONE afterwards. */
void qf_kept_end(struct qf_kept *kept);

/* The parts of it, for whoever has the mount in another way. */
void qf_kept_forget(const char *mountpoint);
bool qf_kept_is_alive(int fuse_fd);
/* Whether it is still this mount that is there. 1: yes; 0: no; -EBUSY: something else
 * is mounted over it. */
int qf_kept_is_there(const char *mountpoint, const char *device,
                     int fuse_fd) QF_MUST_CHECK;
/* Unmounts lazily if it is still this mount that is there: -EBUSY as above, 0 also when
 * somebody else has unmounted it before. */
int qf_kept_unmount(const char *mountpoint, const char *device,
                    int fuse_fd) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
