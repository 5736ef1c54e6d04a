/* SPDX-License-Identifier: Apache-2.0 */
/* The start of a daemon, played through in a process of its own whose exit code and
 * stderr are looked at. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/process.h"

struct result {
    int code; /* of the process that the user started */
    char text[4096];
    int report; /* what the daemon wrote to its own pipe, -1: nothing */
};

typedef void play(struct qf_process *process, int report_fd);

/* Runs `daemon` behind qf_process_start. */
static struct result run(bool foreground, play *daemon)
{
    struct result result = {.report = -1};
    int text[2], report[2];
    assert_int_equal(pipe(text), 0);
    assert_int_equal(pipe(report), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct qf_process process;
        dup2(text[1], STDERR_FILENO);
        close(text[0]);
        close(text[1]);
        if (qf_process_start(foreground, &process, NULL) != 0)
            _exit(99);
        daemon(&process, report[1]);
        _exit(77);
    }
    close(text[1]);
    close(report[1]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    result.code = WEXITSTATUS(status);
    ssize_t n = 0, size = 0;
    while (size < (ssize_t)sizeof result.text - 1 &&
           (n = read(text[0], result.text + size,
                     sizeof result.text - 1 - (size_t)size)) > 0)
        size += n;
    unsigned char byte;
    if (read(report[0], &byte, 1) == 1)
        result.report = byte;
    close(text[0]);
    close(report[0]);
    return result;
}

static void report(int fd, bool ok)
{
    unsigned char byte = ok;
    if (write(fd, &byte, 1) != 1)
        _exit(98);
}

static void comes_up(struct qf_process *process, int fd)
{
    char cwd[16];
    struct stat out, null;
    qf_process_ready(process);
    /* in the background: no terminal to write to, no directory to hold */
    bool ok = getcwd(cwd, sizeof cwd) != NULL && strcmp(cwd, "/") == 0;
    ok = ok && getsid(0) == getpid() && process->status_fd == -1;
    ok = ok && stat("/dev/null", &null) == 0 && fstat(STDERR_FILENO, &out) == 0 &&
         out.st_rdev == null.st_rdev;
    report(fd, ok);
}

static void test_ready(void **state)
{
    (void)state;
    struct result r = run(false, comes_up);
    assert_int_equal(r.code, QF_EXIT_OK);
    assert_string_equal(r.text, "");
    assert_int_equal(r.report, 1);
}

static void fails(struct qf_process *process, int fd)
{
    qf_process_failed(process, QF_EXIT_MOUNT, "no such mountpoint");
    report(fd, true);
}

static void test_failed(void **state)
{
    (void)state;
    struct result r = run(false, fails);
    assert_int_equal(r.code, QF_EXIT_MOUNT);
    assert_string_equal(r.text, "quantfs: no such mountpoint\n");
    assert_int_equal(r.report, 1);
}

static void fails_at_length(struct qf_process *process, int fd)
{
    char text[3 * QF_ERR_TEXT_SIZE];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    qf_process_failed(process, QF_EXIT_SYSTEM, text);
    report(fd, true);
}

static void test_long_sentence(void **state)
{
    (void)state;
    struct result r = run(false, fails_at_length);
    assert_int_equal(r.code, QF_EXIT_SYSTEM);
    assert_int_equal(strspn(r.text, "quantfs: x"), strlen(r.text) - 1);
    assert_in_range(strlen(r.text), QF_ERR_TEXT_SIZE - 20, QF_ERR_TEXT_SIZE + 20);
}

static void dies(struct qf_process *process, int fd)
{
    (void)process;
    report(fd, true);
    raise(SIGKILL);
}

static void test_dies(void **state)
{
    (void)state;
    struct result r = run(false, dies);
    assert_int_equal(r.code, QF_EXIT_SYSTEM);
    assert_non_null(strstr(r.text, "died"));
    assert_int_equal(r.report, 1);
}

static void stays(struct qf_process *process, int fd)
{
    report(fd, process->status_fd == -1);
    qf_process_ready(process);
    fputs("still here\n", stderr);
    _exit(3);
}

static void stays_and_fails(struct qf_process *process, int fd)
{
    report(fd, true);
    qf_process_failed(process, QF_EXIT_MOUNT, "a sentence");
    _exit(4);
}

static void test_foreground(void **state)
{
    (void)state;
    struct result r = run(true, stays);
    assert_int_equal(r.code, 3);
    assert_string_equal(r.text, "still here\n");
    assert_int_equal(r.report, 1);
    r = run(true, stays_and_fails);
    assert_int_equal(r.code, 4);
    assert_string_equal(r.text, "quantfs: a sentence\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ready),         cmocka_unit_test(test_failed),
        cmocka_unit_test(test_long_sentence), cmocka_unit_test(test_dies),
        cmocka_unit_test(test_foreground),
    };
    return cmocka_run_group_tests_name("fs_process", tests, NULL, NULL);
}
