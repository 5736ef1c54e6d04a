/* SPDX-License-Identifier: Apache-2.0 */
/* Which mount is ended: ours, and nothing that has its name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/log.h"
#include "fs/kept.h"
#include "fs/mountpoint.h"
#include "support/mounts.h"
#include "support/tmpdir.h"

static void mount_there(const char *dir, char device[QF_KEPT_DEVICE_SIZE])
{
    struct qf_mountpoint found;
    assert_int_equal(mount("none", dir, "tmpfs", 0, "size=1m"), 0);
    assert_true(qf_mountpoint_find(dir, &found));
    assert_string_equal(found.type, "tmpfs");
    snprintf(device, QF_KEPT_DEVICE_SIZE, "%s", found.device);
}

static void test_holds(void **state)
{
    (void)state;
    char first[QF_KEPT_DEVICE_SIZE], second[QF_KEPT_DEVICE_SIZE];
    if (!own_mounts())
        skip();
    char *dir = tmpdir_make();
    assert_int_equal(qf_mountpoint_holds(dir, "0:1"), 0);
    mount_there(dir, first);
    assert_int_equal(qf_mountpoint_holds(dir, first), 1);
    assert_int_equal(qf_mountpoint_holds(dir, "0:1"), 0);
    mount_there(dir, second);
    assert_string_not_equal(first, second);
    assert_int_equal(qf_mountpoint_holds(dir, second), 1);
    assert_int_equal(qf_mountpoint_holds(dir, first), -EBUSY);
    assert_int_equal(umount(dir), 0);
    assert_int_equal(qf_mountpoint_holds(dir, first), 1);
    assert_int_equal(umount(dir), 0);
    assert_int_equal(qf_mountpoint_holds(dir, first), 0);
    tmpdir_remove(dir);
}

static void test_unmount(void **state)
{
    (void)state;
    char first[QF_KEPT_DEVICE_SIZE], second[QF_KEPT_DEVICE_SIZE];
    struct qf_mountpoint found;
    int alive[2];
    if (!own_mounts())
        skip();
    char *dir = tmpdir_make();
    assert_int_equal(pipe(alive), 0);
    mount_there(dir, first);
    mount_there(dir, second);
    assert_int_equal(qf_kept_unmount(dir, first, alive[0]), -EBUSY);
    assert_int_equal(qf_kept_unmount(dir, "0:1", alive[0]), 0);
    assert_true(qf_mountpoint_find(dir, &found));
    assert_string_equal(found.device, second);
    assert_int_equal(qf_kept_unmount(dir, second, alive[0]), 0);
    assert_int_equal(qf_mountpoint_holds(dir, first), 1);
    /* of a mount that has ended nothing is known */
    assert_int_equal(qf_kept_unmount(dir, first, -1), 0);
    assert_int_equal(qf_mountpoint_holds(dir, first), 1);
    /* the name has to do */
    assert_int_equal(qf_kept_unmount(dir, "", alive[0]), 0);
    assert_false(qf_mountpoint_find(dir, &found));
    assert_int_equal(qf_kept_unmount(dir, "", alive[0]), -EINVAL);
    close(alive[0]);
    close(alive[1]);
    tmpdir_remove(dir);
}

static void test_end(void **state)
{
    (void)state;
    char device[QF_KEPT_DEVICE_SIZE];
    struct qf_mountpoint found;
    struct qf_kept kept = QF_KEPT_NONE;
    int alive[2];
    qf_log_set_level(QF_LOG_ERROR);
    unsetenv("NOTIFY_SOCKET");
    qf_kept_end(&kept); /* there is none */
    assert_int_equal(qf_kept_init(&kept, "/nowhere", "0:1", -1), -EBADF);
    assert_null(kept.mountpoint);
    assert_int_equal(kept.fuse_fd, -1);
    if (!own_mounts())
        skip();
    char *dir = tmpdir_make();
    assert_int_equal(pipe(alive), 0);
    mount_there(dir, device);
    assert_int_equal(qf_kept_init(&kept, dir, device, alive[0]), 0);
    assert_int_not_equal(kept.fuse_fd, alive[0]);
    qf_kept_fini(&kept); /* does nothing to the mount */
    assert_int_equal(qf_mountpoint_holds(dir, device), 1);
    assert_int_equal(qf_kept_init(&kept, dir, device, alive[0]), 0);
    qf_kept_end(&kept);
    assert_int_equal(kept.fuse_fd, -1);
    assert_false(qf_mountpoint_find(dir, &found));
    close(alive[0]);
    close(alive[1]);
    tmpdir_remove(dir);
}

/* A descriptor whose other end is gone, as /dev/fuse after the unmount. */
static void test_is_alive(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_true(qf_kept_is_alive(ends[1]));
    close(ends[0]);
    assert_false(qf_kept_is_alive(ends[1]));
    assert_false(qf_kept_is_alive(-1));
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_holds),
        cmocka_unit_test(test_unmount),
        cmocka_unit_test(test_end),
        cmocka_unit_test(test_is_alive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
