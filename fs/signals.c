/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/signals.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/log.h"

struct qf_signals {
    struct qf_signals_ops ops;
    int signal_fd;
    int stop_fd;
    pthread_t thread;
};

static void our_signals(sigset_t *out)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2};
    sigemptyset(out);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaddset(out, signals[i]);
}

void qf_signals_block(void)
{
    sigset_t set;
    our_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    /* A reply to a reader that has gone is an error of write(2), no more. */
    signal(SIGPIPE, SIG_IGN);
}

bool qf_signals_end_pending(void)
{
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, SIGTERM) == 1 || sigismember(&set, SIGINT) == 1;
}

void qf_signals_die(int signo)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signo);
    signal(signo, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    raise(signo);
    _exit(128 + signo); /* one that is ignored by default */
}

static void *run(void *arg)
{
    qf_signals *signals = arg;
    struct pollfd fds[] = {{.fd = signals->signal_fd, .events = POLLIN},
                           {.fd = signals->stop_fd, .events = POLLIN}};
    for (;;) {
        struct signalfd_siginfo info;
        int wait_ms = signals->ops.tick(signals->ops.arg);
        if (poll(fds, 2, wait_ms) < 0 && errno != EINTR)
            break;
        if ((fds[1].revents & POLLIN) != 0)
            break;
        if (read(signals->signal_fd, &info, sizeof info) == (ssize_t)sizeof info)
            signals->ops.caught(signals->ops.arg, (int)info.ssi_signo);
    }
    return NULL;
}

static void free_signals(qf_signals *signals)
{
    if (signals->signal_fd >= 0)
        close(signals->signal_fd);
    if (signals->stop_fd >= 0)
        close(signals->stop_fd);
    free(signals);
}

int qf_signals_start(const struct qf_signals_ops *ops, qf_signals **out)
{
    qf_signals *signals = calloc(1, sizeof *signals);
    if (signals == NULL)
        return -ENOMEM;
    sigset_t set;
    our_signals(&set);
    signals->ops = *ops;
    signals->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    signals->stop_fd = eventfd(0, EFD_CLOEXEC);
    int rc = signals->signal_fd < 0 || signals->stop_fd < 0 ? -errno : 0;
    if (rc == 0)
        rc = -pthread_create(&signals->thread, NULL, run, signals);
    if (rc != 0) {
        free_signals(signals);
        return rc;
    }
    *out = signals;
    return 0;
}

void qf_signals_stop(qf_signals *signals)
{
    if (signals == NULL)
        return;
    if (eventfd_write(signals->stop_fd, 1) != 0)
        qf_log(QF_LOG_ERROR, "eventfd: %s", strerror(errno));
    pthread_join(signals->thread, NULL);
    free_signals(signals);
}
