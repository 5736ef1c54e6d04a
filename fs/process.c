/* SPDX-License-Identifier: Apache-2.0 */
/* The child writes one byte of exit code and then the sentence into a pipe. A child
 * that dies without a word closes it, which the parent reports too. */
#include "fs/process.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

static void print_sentence(const char *sentence)
{
    if (sentence[0] != '\0')
        fprintf(stderr, "quantfs: %s\n", sentence);
}

static _Noreturn void wait_for_child(int fd)
{
    char message[1 + QF_ERR_TEXT_SIZE];
    size_t size = 0;
    ssize_t n;
    while (size < sizeof message - 1 &&
           ((n = read(fd, message + size, sizeof message - 1 - size)) > 0 ||
            (n < 0 && errno == EINTR)))
        size += n > 0 ? (size_t)n : 0;
    message[size] = '\0';
    if (size == 0) {
        print_sentence("the daemon died while it started (see the system's log)");
        _exit(QF_EXIT_SYSTEM);
    }
    if (message[0] != QF_EXIT_OK)
        print_sentence(message + 1);
    _exit(message[0]);
}

int qf_process_start(bool foreground, struct qf_process *out, struct qf_err *err)
{
    out->status_fd = -1;
    if (foreground)
        return 0;
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0)
        return qf_err_set(err, -errno, "pipe: %s", strerror(errno));
    pid_t pid = fork();
    if (pid < 0) {
        int rc = qf_err_set(err, -errno, "fork: %s", strerror(errno));
        close(fds[0]);
        close(fds[1]);
        return rc;
    }
    if (pid > 0) {
        close(fds[1]);
        wait_for_child(fds[0]);
    }
    close(fds[0]);
    setsid();
    out->status_fd = fds[1];
    return 0;
}

static void send_status(struct qf_process *process, int code, const char *sentence)
{
    char message[1 + QF_ERR_TEXT_SIZE];
    message[0] = (char)code;
    int n = snprintf(message + 1, sizeof message - 1, "%s", sentence);
    size_t size = 1 + (n < 0                            ? 0
                       : (size_t)n < sizeof message - 1 ? (size_t)n
                                                        : sizeof message - 2);
    ssize_t ignored = write(process->status_fd, message, size);
    (void)ignored;
    close(process->status_fd);
    process->status_fd = -1;
}

void qf_process_ready(struct qf_process *process)
{
    if (process->status_fd < 0)
        return;
    qf_process_detach();
    send_status(process, QF_EXIT_OK, "");
}

void qf_process_detach(void)
{
    if (chdir("/") != 0)
        qf_log(QF_LOG_WARN, "chdir /: %s", strerror(errno));
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd >= 0) {
        dup2(null_fd, STDIN_FILENO);
        dup2(null_fd, STDOUT_FILENO);
        dup2(null_fd, STDERR_FILENO);
        if (null_fd > STDERR_FILENO)
            close(null_fd);
    }
    qf_log_to_syslog();
}

void qf_process_failed(struct qf_process *process, int code, const char *sentence)
{
    if (process->status_fd < 0)
        print_sentence(sentence);
    else
        send_status(process, code, sentence);
}
