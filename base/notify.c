/* SPDX-License-Identifier: Apache-2.0 */
/* libsystemd has the sending half of this in a library of a megabyte; its manual page
 * gives the protocol as an interface of its own, which does not change. The receiving
 * half, which the keeper needs, it does not have. */
#include "base/notify.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LISTEN_FDS_START 3

bool qf_notify_wanted(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    return path != NULL && (path[0] == '/' || path[0] == '@') && path[1] != '\0';
}

static int send_message(const char *text, int fd)
{
    if (!qf_notify_wanted())
        return -ENOTCONN;
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t size = strlen(path);
    if (size >= sizeof to.sun_path)
        return -ENAMETOOLONG;
    memcpy(to.sun_path, path, size);
    if (path[0] == '@')
        to.sun_path[0] = '\0';
    struct iovec piece = {(void *)(uintptr_t)text, strlen(text)};
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.space = {0}};
    struct msghdr message = {
        .msg_name = &to,
        .msg_namelen = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size),
        .msg_iov = &piece,
        .msg_iovlen = 1,
    };
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control.space;
        control.head = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
                                        .cmsg_type = SCM_RIGHTS,
                                        .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    }
    int to_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (to_fd < 0)
        return -errno;
    int rc = sendmsg(to_fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
    close(to_fd);
    return rc;
}

int qf_notify(const char *fmt, ...)
{
    char text[QF_NOTIFY_SIZE_MAX];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text)
        return -EMSGSIZE;
    int rc = send_message(text, -1);
    return rc == -ENOTCONN && !qf_notify_wanted() ? 0 : rc;
}

int qf_notify_store(const char *name, int fd)
{
    char text[256];
    snprintf(text, sizeof text, "FDSTORE=1\nFDNAME=%s", name);
    return send_message(text, fd);
}

int qf_notify_remove(const char *name)
{
    return qf_notify("FDSTOREREMOVE=1\nFDNAME=%s", name);
}

/* A number of the environment; 0: there is none. */
static uint64_t number(const char *variable)
{
    const char *text = getenv(variable);
    return text != NULL ? strtoull(text, NULL, 10) : 0;
}

int qf_notify_passed(const char *name)
{
    const char *names = getenv("LISTEN_FDNAMES");
    uint64_t count = number("LISTEN_FDS");
    if (names == NULL || number("LISTEN_PID") != (uint64_t)getpid())
        return -1;
    for (uint64_t i = 0; i < count; i++) {
        size_t n = strcspn(names, ":");
        int fd = LISTEN_FDS_START + (int)i;
        if (n == strlen(name) && memcmp(names, name, n) == 0 &&
            fcntl(fd, F_SETFD, FD_CLOEXEC) == 0)
            return fd;
        names += n + (names[n] == ':');
    }
    return -1;
}

int64_t qf_notify_watchdog_ms(void)
{
    uint64_t pid = number("WATCHDOG_PID");
    if (!qf_notify_wanted() || (pid != 0 && pid != (uint64_t)getpid()))
        return 0;
    return (int64_t)(number("WATCHDOG_USEC") / 1000);
}
