/* SPDX-License-Identifier: Apache-2.0 */
/* A name says little: somebody may have unmounted ours (lazily: its readers read on,
 * and so do we) and mounted another file system there. A device number says it, as long
 * as the mount is alive; later the kernel gives it to another one. */
#include "fs/kept.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/notify.h"
#include "fs/mountpoint.h"

int qf_kept_init(struct qf_kept *kept, const char *mountpoint, const char *device,
                 int fuse_fd)
{
    *kept = QF_KEPT_NONE;
    kept->mountpoint = strdup(mountpoint);
    if (kept->mountpoint == NULL)
        return -ENOMEM;
    kept->fuse_fd = fcntl(fuse_fd, F_DUPFD_CLOEXEC, 0);
    if (kept->fuse_fd < 0) {
        int rc = -errno;
        qf_kept_fini(kept);
        return rc;
    }
    snprintf(kept->device, sizeof kept->device, "%s", device);
    return 0;
}

void qf_kept_fini(struct qf_kept *kept)
{
    if (kept->fuse_fd >= 0)
        close(kept->fuse_fd);
    free(kept->mountpoint);
    *kept = QF_KEPT_NONE;
}

void qf_kept_forget(const char *mountpoint)
{
    if (qf_notify_remove(QF_NOTIFY_FUSE) != 0 ||
        qf_notify_remove(QF_NOTIFY_JOURNAL) != 0)
        qf_log(QF_LOG_WARN, "the descriptors of %s are still with the service manager",
               mountpoint);
}

bool qf_kept_is_alive(int fuse_fd)
{
    struct pollfd fuse = {.fd = fuse_fd};
    return fuse_fd >= 0 && !(poll(&fuse, 1, 0) == 1 && (fuse.revents & POLLERR) != 0);
}

int qf_kept_is_there(const char *mountpoint, const char *device, int fuse_fd)
{
    if (!qf_kept_is_alive(fuse_fd))
        return 0;
    /* Without a number (no /proc when it was mounted) the name has to do. */
    return device[0] != '\0' ? qf_mountpoint_holds(mountpoint, device) : 1;
}

int qf_kept_unmount(const char *mountpoint, const char *device, int fuse_fd)
{
    int rc = qf_kept_is_there(mountpoint, device, fuse_fd);
    return rc == 1 ? qf_mountpoint_unmount(mountpoint, true) : rc;
}

void qf_kept_end(struct qf_kept *kept)
{
    if (kept->fuse_fd < 0)
        return;
    qf_kept_forget(kept->mountpoint);
    int rc = qf_kept_unmount(kept->mountpoint, kept->device, kept->fuse_fd);
    if (rc != 0)
        qf_log(QF_LOG_WARN, "%s cannot be unmounted: %s", kept->mountpoint,
               strerror(-rc));
    qf_kept_fini(kept);
}
