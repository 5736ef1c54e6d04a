/* SPDX-License-Identifier: Apache-2.0 */
/* Mountpoints: what is mounted on them, whether we may, and how it ends. */
#ifndef QF_FS_MOUNTPOINT_H
#define QF_FS_MOUNTPOINT_H

#include <limits.h>
#include <stdbool.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_mountpoint {
    char device[32]; /* MAJOR:MINOR */
    char type[64];
    char source[PATH_MAX];
};

/* What is mounted there (an absolute path without links). False: nothing. */
bool qf_mountpoint_find(const char *mountpoint, struct qf_mountpoint *out);
/* Whether it is the mount of this device that lies there. 1: yes, on top; 0: no;
 * -EBUSY: something else is mounted over it. The kernel gives the number of a mount
 * that has ended to another one: ask about one that is alive. */
int qf_mountpoint_holds(const char *mountpoint, const char *device) QF_MUST_CHECK;
/* Unmounts a mount of ours whose daemon has died. Nothing is done to anything else. */
int qf_mountpoint_clear(const char *mountpoint, struct qf_err *err) QF_MUST_CHECK;
/* Refuses a mountpoint that is no directory, that has a mount of ours on it, or that
 * lies in the store (the mount would show itself). */
int qf_mountpoint_check(const char *mountpoint, const char *store_path,
                        struct qf_err *err) QF_MUST_CHECK;
/* As umount(8) does; lazy: at once for whoever comes, and for whoever is there when
 * they leave. -EPERM when fusermount3 was asked and has said why not. */
int qf_mountpoint_unmount(const char *mountpoint, bool lazy) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
