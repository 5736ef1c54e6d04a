/* SPDX-License-Identifier: Apache-2.0 */
/* Unmounting returns before the daemon has written what it still holds to the cache;
 * this command waits for it, so that a mount right afterwards finds everything. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "fs/mountpoint.h"
#include "fs/process.h"

#define WAIT_MS       60000
#define ANSWER_WAIT_S 2

/* A descriptor of the daemon's process, or -1. */
static int daemon_pidfd(const char *mountpoint)
{
    char path[4096], text[4096];
    int n = snprintf(path, sizeof path, "%s/.quantfs/status", mountpoint);
    if (n < 0 || (size_t)n >= sizeof path)
        return -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0)
        return -1;
    text[size] = '\0';
    const char *line = strstr(text, "\npid=");
    return line != NULL ? (int)syscall(SYS_pidfd_open, atoi(line + 5), 0) : -1;
}

struct find_daemon {
    const char *mountpoint;
    int pidfd;
};

static void *find_daemon(void *arg)
{
    struct find_daemon *find = arg;
    find->pidfd = daemon_pidfd(find->mountpoint);
    return NULL;
}

/* The same, but a daemon that hangs does not hang us. */
static int daemon_pidfd_in_time(const char *mountpoint)
{
    static struct find_daemon find; /* outlives us when the thread does */
    find = (struct find_daemon){mountpoint, -1};
    pthread_t thread;
    if (pthread_create(&thread, NULL, find_daemon, &find) != 0)
        return -1;
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += ANSWER_WAIT_S;
    if (pthread_timedjoin_np(thread, NULL, &deadline) == 0)
        return find.pidfd;
    fprintf(stderr,
            "quantfs umount: %s: its daemon does not answer; unmounting all the same "
            "(-l if that waits too)\n",
            mountpoint);
    return -1;
}

static int unmount(const char *mountpoint, bool lazy)
{
    int rc = qf_mountpoint_unmount(mountpoint, lazy);
    if (rc != 0 && rc != -EPERM)
        fprintf(stderr, "quantfs umount: %s: %s%s\n", mountpoint, strerror(-rc),
                rc == -EBUSY    ? " (files of it are open; -l unmounts all the same)"
                : rc == -EINVAL ? " (not a mountpoint)"
                                : "");
    return rc;
}

static int take_lazy(void *lazy, char id, const char *value)
{
    (void)id;
    (void)value;
    *(bool *)lazy = true;
    return 0;
}

static int run(const struct qf_cli_command *self, int argc, char **argv)
{
    bool lazy = false;
    struct qf_cli_line line;
    int code = qf_cli_parse(self, argc, argv, take_lazy, &lazy, &line);
    if (code >= 0)
        return code;
    const char *mountpoint = line.operands[0];
    int pidfd = lazy ? -1 : daemon_pidfd_in_time(mountpoint);
    if (unmount(mountpoint, lazy) != 0)
        return QF_EXIT_MOUNT;
    if (pidfd < 0)
        return QF_EXIT_OK;
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    int n;
    while ((n = poll(&ended, 1, WAIT_MS)) < 0 && errno == EINTR)
        ;
    close(pidfd);
    if (n == 1)
        return QF_EXIT_OK;
    fprintf(stderr,
            "quantfs umount: %s is unmounted, but its daemon has not ended yet\n",
            mountpoint);
    return QF_EXIT_SYSTEM;
}

static const struct qf_cli_option options[] = {
    {.id = 'l',
     .letter = true,
     .name = "lazy",
     .help = "also while files are open: the mount goes when they do"},
    {0},
};

const struct qf_cli_command qf_cmd_umount = {
    .name = "umount",
    .summary = "unmount MNT and wait until its daemon has ended",
    .about = "Unmounts MNT and waits until its daemon has ended.",
    .options = options,
    .operands = (const struct qf_cli_operand[]){{.word = "MNT"}, {0}},
    .exits = (const struct qf_cli_exit[]){{"0", "unmounted"},
                                          {"1", "usage"},
                                          {"2", "the daemon did not end"},
                                          {"32", "not unmounted"},
                                          {0}},
    .run = run,
};
