/* SPDX-License-Identifier: Apache-2.0 */
/* One thread, one poll: signals, what the daemon says, whether it lives, whether the
 * mount does. Whatever can fail for want of memory or of a file is done before the
 * first daemon is started.
 *
 * A daemon that is killed (SIGKILL: somebody, or the kernel out of memory) is started
 * again however often; one that fails by itself soon after its start, for example
 * because a request that is sent again kills it again, is given up after a few. */
#include "fs/keeper.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/notify.h"
#include "fs/kept.h"
#include "fs/mountpoint.h"
#include "fs/process.h"
#include "fs/signals.h"

#define FDS_MAX      4
#define FDS_START    3 /* where a daemon expects them */
#define DELAY_MIN_MS 100
#define DELAY_MAX_MS 5000
#define EXEC_FAILED  127
/* Messages that can lie before a daemon's last one (net.unix.max_dgram_qlen is far
 * less). Others may send, too, and as fast as we read. */
#define QUEUE_MAX 4096

struct kept_fd {
    char name[64]; /* "": none */
    int fd;
};

struct keeper {
    const struct qf_keeper_options *options;
    int signal_fd;
    int socket_fd;
    char socket_name[64]; /* as NOTIFY_SOCKET has it */
    struct kept_fd fds[FDS_MAX];
    char device[QF_KEPT_DEVICE_SIZE]; /* the mount's, from when its descriptor came */
    pid_t pid;                        /* 0: no daemon is running */
    bool up;                          /* it has said so */
    bool was_up;                      /* some daemon has */
    bool ending;                      /* told to */
    int64_t up_ms;
    int64_t next_ms; /* when to start the next one */
    unsigned failures;
};

int qf_keeper_delay_ms(unsigned failures)
{
    int delay_ms = failures == 0 ? 0 : DELAY_MIN_MS;
    for (unsigned i = 1; i < failures && delay_ms < DELAY_MAX_MS; i++)
        delay_ms *= 2;
    return delay_ms < DELAY_MAX_MS ? delay_ms : DELAY_MAX_MS;
}

/* ---- descriptors ---- */

static struct kept_fd *find_fd(struct keeper *keeper, const char *name)
{
    for (size_t i = 0; i < FDS_MAX; i++)
        if (strcmp(keeper->fds[i].name, name) == 0)
            return &keeper->fds[i];
    return NULL;
}

static void drop_fd(struct kept_fd *kept)
{
    if (kept->name[0] != '\0')
        close(kept->fd);
    *kept = (struct kept_fd){"", -1};
}

static void drop_fds(struct keeper *keeper)
{
    for (size_t i = 0; i < FDS_MAX; i++)
        drop_fd(&keeper->fds[i]);
}

/* Takes fd. */
static void keep_fd(struct keeper *keeper, const char *name, int fd)
{
    struct kept_fd *kept = find_fd(keeper, name);
    if (kept == NULL)
        kept = find_fd(keeper, "");
    /* Above those that a child gets at FDS_START and up. */
    int high = fcntl(fd, F_DUPFD_CLOEXEC, FDS_START + FDS_MAX);
    close(fd);
    if (kept == NULL || high < 0) {
        qf_log(QF_LOG_ERROR, "keeper: %s cannot be kept: %s", name, strerror(errno));
        if (high >= 0)
            close(high);
        return;
    }
    drop_fd(kept);
    snprintf(kept->name, sizeof kept->name, "%s", name);
    kept->fd = high;
}

static int fuse_fd(struct keeper *keeper)
{
    const struct kept_fd *kept = find_fd(keeper, QF_NOTIFY_FUSE);
    return kept != NULL ? kept->fd : -1;
}

/* It has come just now. */
static void note_device(struct keeper *keeper)
{
    struct qf_mountpoint mount;
    if (qf_mountpoint_find(keeper->options->mountpoint, &mount))
        snprintf(keeper->device, sizeof keeper->device, "%s", mount.device);
}

/* ---- what the daemon says ---- */

/* The value of "NAME=value" in a message of lines; "" if there is none. */
static const char *value_of(const char *text, const char *name, char *out, size_t size)
{
    size_t n = strlen(name);
    out[0] = '\0';
    for (const char *line = text; *line != '\0';) {
        size_t length = strcspn(line, "\n");
        if (length > n && strncmp(line, name, n) == 0 && line[n] == '=' &&
            length - n <= size) {
            memcpy(out, line + n + 1, length - n - 1);
            out[length - n - 1] = '\0';
        }
        line += length + (line[length] == '\n');
    }
    return out;
}

static void daemon_is_up(struct keeper *keeper)
{
    keeper->up = true;
    keeper->up_ms = qf_clock_ms();
    if (!keeper->was_up)
        keeper->options->ready(keeper->options->arg);
    keeper->was_up = true;
}

static void take_message(struct keeper *keeper, const char *text, int fd)
{
    char value[64], name[64];
    bool store = strcmp(value_of(text, "FDSTORE", value, sizeof value), "1") == 0;
    bool drop = strcmp(value_of(text, "FDSTOREREMOVE", value, sizeof value), "1") == 0;
    value_of(text, "FDNAME", name, sizeof name);
    if (store && fd >= 0 && name[0] != '\0') {
        keep_fd(keeper, name, fd);
        if (strcmp(name, QF_NOTIFY_FUSE) == 0)
            note_device(keeper);
        return;
    }
    if (fd >= 0)
        close(fd);
    struct kept_fd *kept = drop && name[0] != '\0' ? find_fd(keeper, name) : NULL;
    if (kept != NULL)
        drop_fd(kept);
    if (store || drop)
        return;
    if (strcmp(value_of(text, "READY", value, sizeof value), "1") == 0 && !keeper->up)
        daemon_is_up(keeper);
    /* Who watches over the keeper is told all of it. */
    int rc = qf_notify("%s", text);
    if (rc != 0)
        qf_log(QF_LOG_DEBUG, "keeper: %s", strerror(-rc));
}

/* 1: the daemon has sent the next message, 0: somebody else, -1: there is none. The
 * socket's name is no secret, and with no room for descriptors none is taken: closing
 * somebody's could wait for as long as he likes. */
static int is_next_the_daemons(const struct keeper *keeper)
{
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(struct ucred))];
    } control;
    char first;
    struct iovec piece = {&first, 1};
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control.space};
    struct ucred from = {0};
    if (recvmsg(keeper->socket_fd, &message, MSG_DONTWAIT | MSG_PEEK) < 0)
        return -1;
    const struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS)
        memcpy(&from, CMSG_DATA(c), sizeof from);
    return keeper->pid != 0 && from.pid == keeper->pid;
}

/* The first descriptor of a message, -1: none; the others are closed. */
static int take_fd(const struct cmsghdr *c)
{
    size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    int fd = -1;
    for (size_t i = 0; i < count; i++) {
        int one;
        memcpy(&one, CMSG_DATA(c) + i * sizeof one, sizeof one);
        if (i == 0)
            fd = one;
        else
            close(one);
    }
    return fd;
}

static void receive(struct keeper *keeper)
{
    char text[QF_NOTIFY_SIZE_MAX + 1];
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec piece = {text, sizeof text - 1};
    int sender = is_next_the_daemons(keeper);
    bool daemons = sender == 1;
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = daemons ? &control : NULL,
                             .msg_controllen = daemons ? sizeof control.space : 0};
    if (sender < 0)
        return;
    ssize_t n = recvmsg(keeper->socket_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0 || !daemons)
        return;
    text[n] = '\0';
    int fd = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c != NULL;
         c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            fd = take_fd(c);
    take_message(keeper, text, fd);
}

static int open_socket(struct keeper *keeper)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    socklen_t size = sizeof at;
    int on = 1;
    keeper->socket_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    /* Without a name the kernel chooses one that is free, in the abstract namespace. */
    if (keeper->socket_fd < 0 ||
        bind(keeper->socket_fd, (struct sockaddr *)&at, sizeof at.sun_family) != 0 ||
        setsockopt(keeper->socket_fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0 ||
        getsockname(keeper->socket_fd, (struct sockaddr *)&at, &size) != 0)
        return -errno;
    size_t length = size - offsetof(struct sockaddr_un, sun_path);
    snprintf(keeper->socket_name, sizeof keeper->socket_name, "@%.*s", (int)length - 1,
             at.sun_path + 1);
    return 0;
}

/* ---- daemons ---- */

static void set_number(const char *name, uint64_t number)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, number);
    setenv(name, text, 1);
}

/* In the child. */
static void pass_fds(const struct keeper *keeper)
{
    char names[FDS_MAX * sizeof keeper->fds[0].name] = "";
    int count = 0;
    for (size_t i = 0; i < FDS_MAX; i++) {
        if (keeper->fds[i].name[0] == '\0')
            continue;
        if (dup2(keeper->fds[i].fd, FDS_START + count) < 0)
            _exit(EXEC_FAILED);
        if (count++ > 0)
            strcat(names, ":");
        strcat(names, keeper->fds[i].name);
    }
    if (count == 0)
        return;
    set_number("LISTEN_FDS", (uint64_t)count);
    set_number("LISTEN_PID", (uint64_t)getpid());
    setenv("LISTEN_FDNAMES", names, 1);
}

static _Noreturn void become_daemon(const struct keeper *keeper)
{
    const char *watched = getenv("WATCHDOG_PID");
    if (watched != NULL && strtoull(watched, NULL, 10) == (uint64_t)getppid())
        set_number("WATCHDOG_PID", (uint64_t)getpid());
    setenv("NOTIFY_SOCKET", keeper->socket_name, 1);
    /* Ctrl-C is the keeper's, which hands it on: twice would be "at once". */
    setpgid(0, 0);
    /* Signals stay blocked until it takes them: none finds it without a rule. */
    pass_fds(keeper);
    execv(keeper->options->program, keeper->options->argv);
    fprintf(stderr, "quantfs: %s: %s\n", keeper->options->program, strerror(errno));
    _exit(EXEC_FAILED);
}

static void start_daemon(struct keeper *keeper)
{
    keeper->up = false;
    keeper->pid = fork();
    if (keeper->pid == 0)
        become_daemon(keeper);
    if (keeper->pid < 0) {
        qf_log(QF_LOG_ERROR, "keeper: fork: %s", strerror(errno));
        keeper->pid = 0;
        keeper->next_ms = qf_clock_ms() + qf_keeper_delay_ms(++keeper->failures);
    }
}

static void describe_end(int status, char *out, size_t size)
{
    if (WIFSIGNALED(status))
        snprintf(out, size, "was killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(out, size, "ended with status %d", WEXITSTATUS(status));
}

static int exit_code(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : QF_EXIT_SYSTEM;
}

static bool mount_has_ended(struct keeper *keeper)
{
    return !qf_kept_is_alive(fuse_fd(keeper));
}

/* It takes these signals, but for its start, and hands over by that code. */
static bool has_done_as_told(int status)
{
    if (WIFEXITED(status))
        return WEXITSTATUS(status) == QF_EXIT_RESTART;
    return WTERMSIG(status) == SIGTERM || WTERMSIG(status) == SIGINT;
}

/* A daemon that is starting may be told directly; one that hands over may not know yet
 * that the keeper was told. */
static bool is_the_end(struct keeper *keeper, int status)
{
    bool killed = WIFSIGNALED(status) && has_done_as_told(status);
    return keeper->ending || killed || !keeper->was_up || mount_has_ended(keeper);
}

static int end_code(const struct keeper *keeper, int status)
{
    bool good = keeper->was_up && has_done_as_told(status);
    return good ? QF_EXIT_OK : exit_code(status);
}

/* Whether it failed by itself, and soon. */
static bool is_failure(const struct keeper *keeper, int status)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == QF_EXIT_RESTART)
        return false;
    if (!keeper->up)
        return true;
    return qf_clock_ms() - keeper->up_ms < QF_KEEPER_QUICK_MS &&
           !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* -1: there will be another one; else the code to end with. */
static int daemon_has_ended(struct keeper *keeper, int status)
{
    char how[128];
    describe_end(status, how, sizeof how);
    keeper->pid = 0;
    if (is_the_end(keeper, status))
        return end_code(keeper, status);
    bool failure = is_failure(keeper, status);
    keeper->failures = failure ? keeper->failures + 1 : 0;
    if (keeper->failures >= QF_KEEPER_FAILURES_MAX) {
        qf_log(QF_LOG_ERROR,
               "keeper: the daemon %s, %u times in a row; %s is unmounted", how,
               keeper->failures, keeper->options->mountpoint);
        return exit_code(status) != 0 ? exit_code(status) : QF_EXIT_SYSTEM;
    }
    int delay_ms = qf_keeper_delay_ms(keeper->failures);
    keeper->next_ms = qf_clock_ms() + delay_ms;
    qf_log(QF_LOG_WARN, "keeper: the daemon %s; starting another one in %d ms", how,
           delay_ms);
    return -1;
}

static int reap(struct keeper *keeper)
{
    int status, code = -1;
    pid_t pid;
    /* All that it said before it died comes first. */
    struct pollfd said = {.fd = keeper->socket_fd, .events = POLLIN};
    for (int i = 0; i < QUEUE_MAX && poll(&said, 1, 0) == 1; i++)
        receive(keeper);
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == keeper->pid)
            code = daemon_has_ended(keeper, status);
    return code;
}

/* ---- */

static int take_signal(struct keeper *keeper)
{
    struct signalfd_siginfo info;
    if (read(keeper->signal_fd, &info, sizeof info) != (ssize_t)sizeof info)
        return -1;
    int signo = (int)info.ssi_signo;
    if (signo == SIGCHLD)
        return reap(keeper);
    bool end = signo == SIGTERM || signo == SIGINT;
    keeper->ending |= end;
    if (keeper->pid != 0)
        kill(keeper->pid, end ? SIGTERM : signo);
    else if (end)
        return QF_EXIT_OK;
    return -1;
}

static int loop(struct keeper *keeper)
{
    for (int code = -1;;) {
        int wait_ms = -1;
        if (keeper->pid == 0) {
            int64_t left = keeper->next_ms - qf_clock_ms();
            if (left <= 0)
                start_daemon(keeper);
            else
                wait_ms = (int)left;
        }
        struct pollfd fds[] = {
            {.fd = keeper->signal_fd, .events = POLLIN},
            {.fd = keeper->socket_fd, .events = POLLIN},
            {.fd = keeper->pid == 0 ? fuse_fd(keeper) : -1}, /* POLLERR: unmounted */
        };
        if (poll(fds, 3, wait_ms) < 0 && errno != EINTR)
            return QF_EXIT_SYSTEM;
        if (fds[2].revents != 0)
            return QF_EXIT_OK;
        if (fds[1].revents != 0)
            receive(keeper);
        if (fds[0].revents != 0)
            code = take_signal(keeper);
        if (code >= 0)
            return code;
    }
}

static int open_signals(struct keeper *keeper)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaddset(&set, signals[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    keeper->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return keeper->signal_fd >= 0 ? 0 : -errno;
}

/* What is left of the mount when there will be no daemon: readers get an error. */
static void end_mount(struct keeper *keeper)
{
    const char *mountpoint = keeper->options->mountpoint;
    int rc = qf_kept_is_there(mountpoint, keeper->device, fuse_fd(keeper));
    drop_fds(keeper); /* nobody waits for an answer any more */
    if (rc == 1)
        rc = qf_mountpoint_unmount(mountpoint, true);
    if (rc != 0)
        qf_log(QF_LOG_ERROR, "keeper: %s cannot be unmounted: %s", mountpoint,
               strerror(-rc));
}

int qf_keeper_run(const struct qf_keeper_options *options)
{
    struct keeper keeper = {.options = options, .signal_fd = -1, .socket_fd = -1};
    int code = QF_EXIT_SYSTEM;
    int rc = open_signals(&keeper);
    if (rc == 0)
        rc = open_socket(&keeper);
    if (rc != 0) {
        qf_log(QF_LOG_ERROR, "keeper: %s", strerror(-rc));
    } else {
        code = loop(&keeper);
        end_mount(&keeper);
    }
    drop_fds(&keeper);
    if (keeper.signal_fd >= 0)
        close(keeper.signal_fd);
    if (keeper.socket_fd >= 0)
        close(keeper.socket_fd);
    return code;
}
