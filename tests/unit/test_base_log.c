/* SPDX-License-Identifier: Apache-2.0 */
/* What a line of the log looks like, by a stderr that is a file; and the service
 * manager's protocol, by a socket of ours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it. */
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/notify.h"

static int stderr_was, log_fd;

/* stderr is an empty file from here on. */
static int begin(void **state)
{
    (void)state;
    char path[] = "/tmp/test_base_log.XXXXXX";
    stderr_was = dup(STDERR_FILENO);
    log_fd = mkstemp(path);
    assert_true(log_fd >= 0);
    unlink(path);
    dup2(log_fd, STDERR_FILENO);
    return 0;
}

static int end(void **state)
{
    (void)state;
    dup2(stderr_was, STDERR_FILENO);
    close(stderr_was);
    close(log_fd);
    qf_log_set_level(QF_LOG_INFO);
    qf_log_set_json(false);
    unsetenv("JOURNAL_STREAM");
    qf_log_to_journal(); /* without the variable: as it was */
    return 0;
}

/* What was logged since the last call. */
static const char *logged(void)
{
    static char text[8192];
    ssize_t n = pread(log_fd, text, sizeof text - 1, 0);
    assert_true(n >= 0);
    text[n] = '\0';
    assert_int_equal(ftruncate(log_fd, 0), 0);
    lseek(log_fd, 0, SEEK_SET);
    return text;
}

static void test_text(void **state)
{
    (void)state;
    qf_log(QF_LOG_WARN, "a %s %d", "b", 3);
    assert_string_equal(logged(), "quantfs: warning: a b 3\n");
    qf_log(QF_LOG_DEBUG, "not at this level");
    assert_string_equal(logged(), "");
    char large[5000];
    memset(large, 'x', sizeof large - 1);
    large[sizeof large - 1] = '\0';
    qf_log(QF_LOG_ERROR, "%s", large);
    const char *line = logged();
    assert_in_range(strlen(line), 2000, 2200); /* cut, and a whole line all the same */
    assert_int_equal(line[strlen(line) - 1], '\n');
}

static void test_json(void **state)
{
    (void)state;
    qf_log_set_json(true);
    qf_log(QF_LOG_WARN, "a \"b\" \\ \n \x01 end");
    const char *line = logged();
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    qf_json *root = qf_json_parse(line, strlen(line), NULL);
    assert_non_null(root);
    assert_string_equal(qf_json_string(qf_json_get(root, "message")),
                        "a \"b\" \\ \n \x01 end");
    assert_string_equal(qf_json_string(qf_json_get(root, "level")), "warning");
    const char *time = qf_json_string(qf_json_get(root, "time"));
    assert_int_equal(strlen(time), strlen("2026-01-02T03:04:05.678Z"));
    assert_int_equal(time[10], 'T');
    assert_int_equal((int)qf_json_number(qf_json_get(root, "pid")), getpid());
    qf_json_free(root);
}

static void set_stream(ino_t ino)
{
    char text[64];
    struct stat st;
    assert_int_equal(fstat(log_fd, &st), 0);
    snprintf(text, sizeof text, "%ju:%ju", (uintmax_t)st.st_dev,
             (uintmax_t)(ino != 0 ? ino : st.st_ino));
    setenv("JOURNAL_STREAM", text, 1);
    qf_log_to_journal();
}

static void test_journal(void **state)
{
    (void)state;
    set_stream(0);
    qf_log(QF_LOG_ERROR, "one");
    assert_string_equal(logged(), "<3>one\n");
    qf_log_set_json(true);
    qf_log(QF_LOG_INFO, "two");
    assert_memory_equal(logged(), "<6>{\"time\":", 11);
    qf_log_set_json(false);
    set_stream(1); /* another file: a child's stderr was put elsewhere */
    qf_log(QF_LOG_INFO, "three");
    assert_string_equal(logged(), "quantfs: info: three\n");
    setenv("JOURNAL_STREAM", "nonsense", 1);
    qf_log_to_journal();
    qf_log(QF_LOG_INFO, "four");
    assert_string_equal(logged(), "quantfs: info: four\n");
}

static void test_repeated(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++)
        qf_log_repeated(QF_LOG_WARN, "file", "is %s", "bad");
    qf_log_repeated(QF_LOG_WARN, "file", "is worse");
    qf_log_repeated(QF_LOG_WARN, "other", "is bad");
    qf_log_repeated(QF_LOG_DEBUG, "file", "not at this level");
    assert_string_equal(logged(), "quantfs: warning: file: is bad\n"
                                  "quantfs: warning: file: is worse\n"
                                  "quantfs: warning: other: is bad\n");
    qf_log_repeated_flush(qf_clock_ms());
    assert_string_equal(logged(), ""); /* its minute is not over */
    qf_log_repeated_flush(qf_clock_ms() + QF_LOG_REPEAT_MS);
    assert_string_equal(logged(), "quantfs: warning: file: is bad (4 more)\n");
    /* and then it is new again */
    qf_log_repeated(QF_LOG_WARN, "file", "is bad");
    assert_string_equal(logged(), "quantfs: warning: file: is bad\n");
    qf_log_repeated(QF_LOG_WARN, "file", "is bad");
    qf_log_repeated_flush(INT64_MAX);
    assert_string_equal(logged(), "quantfs: warning: file: is bad (1 more)\n");
    qf_log_repeated_flush(INT64_MAX);
    assert_string_equal(logged(), "");
}

/* More files than the table has places: each is logged, no count is lost. */
static void test_many_files(void **state)
{
    (void)state;
    unsigned lines = 0;
    for (int i = 0; i < 300; i++) {
        char name[32];
        snprintf(name, sizeof name, "file %d", i);
        qf_log_repeated(QF_LOG_WARN, name, "is bad");
        qf_log_repeated(QF_LOG_WARN, name, "is bad");
        for (const char *p = logged(); (p = strchr(p, '\n')) != NULL; p++)
            lines++;
    }
    assert_int_equal(lines, 300 + 44); /* 256 places */
    qf_log_repeated_flush(INT64_MAX);
    logged();
}

/* ---- the service manager ---- */

static char socket_path[] = "/tmp/test_base_notify.XXXXXX";

static int listen_here(bool abstract)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    snprintf(at.sun_path, sizeof at.sun_path, "%s", socket_path);
    size_t size = offsetof(struct sockaddr_un, sun_path) + strlen(socket_path);
    setenv("NOTIFY_SOCKET", socket_path, 1);
    if (abstract) {
        char name[sizeof socket_path + 1];
        snprintf(name, sizeof name, "@%s", socket_path);
        setenv("NOTIFY_SOCKET", name, 1);
        at.sun_path[0] = '\0';
        snprintf(at.sun_path + 1, sizeof at.sun_path - 1, "%s", socket_path);
        size++;
    } else {
        unlink(socket_path);
    }
    assert_int_equal(bind(fd, (struct sockaddr *)&at, (socklen_t)size), 0);
    return fd;
}

static void assert_received(int fd, const char *want)
{
    char text[QF_NOTIFY_SIZE_MAX + 1];
    ssize_t n = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
    assert_true(n > 0);
    text[n] = '\0';
    assert_string_equal(text, want);
}

static void test_notify(void **state)
{
    (void)state;
    for (int abstract = 0; abstract < 2; abstract++) {
        int fd = listen_here(abstract);
        assert_true(qf_notify_wanted());
        assert_int_equal(qf_notify("READY=%d", 1), 0);
        assert_received(fd, "READY=1");
        assert_int_equal(qf_notify_remove("x"), 0);
        assert_received(fd, "FDSTOREREMOVE=1\nFDNAME=x");
        close(fd);
        assert_int_equal(qf_notify("READY=1"), -ECONNREFUSED);
    }
    char large[QF_NOTIFY_SIZE_MAX + 1];
    memset(large, 'x', sizeof large - 1);
    large[sizeof large - 1] = '\0';
    assert_int_equal(qf_notify("%s", large), -EMSGSIZE);
    unlink(socket_path);
}

static void test_notify_nobody(void **state)
{
    (void)state;
    static const char *const none[] = {"", "relative", "/", "@"};
    unsetenv("NOTIFY_SOCKET");
    assert_false(qf_notify_wanted());
    assert_int_equal(qf_notify("READY=1"), 0);
    assert_int_equal(qf_notify_store("x", 0), -ENOTCONN);
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        setenv("NOTIFY_SOCKET", none[i], 1);
        assert_false(qf_notify_wanted());
    }
    char large[300];
    memset(large, '/', sizeof large - 1);
    large[sizeof large - 1] = '\0';
    setenv("NOTIFY_SOCKET", large, 1);
    assert_int_equal(qf_notify("READY=1"), -ENAMETOOLONG);
    unsetenv("NOTIFY_SOCKET");
}

static void test_store(void **state)
{
    (void)state;
    int fd = listen_here(false);
    char text[64] = "";
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec piece = {text, sizeof text - 1};
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control.space};
    assert_int_equal(qf_notify_store("the-log", log_fd), 0);
    assert_true(recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) > 0);
    assert_string_equal(text, "FDSTORE=1\nFDNAME=the-log");
    assert_int_equal(control.head.cmsg_type, SCM_RIGHTS);
    int got;
    memcpy(&got, CMSG_DATA(&control.head), sizeof got);
    struct stat a, b;
    assert_int_equal(fstat(got, &a) | fstat(log_fd, &b), 0);
    assert_int_equal(a.st_ino, b.st_ino);
    close(got);
    close(fd);
    unlink(socket_path);
    unsetenv("NOTIFY_SOCKET");
}

static void test_passed(void **state)
{
    (void)state;
    char pid[32];
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    /* 3 and 4 are whatever they are: dup2 makes sure that they are something. */
    int was[2] = {fcntl(3, F_DUPFD_CLOEXEC, 10), fcntl(4, F_DUPFD_CLOEXEC, 10)};
    dup2(log_fd, 3);
    dup2(log_fd, 4);
    setenv("LISTEN_FDS", "2", 1);
    setenv("LISTEN_FDNAMES", "one:another", 1);
    setenv("LISTEN_PID", "1", 1);
    assert_int_equal(qf_notify_passed("one"), -1);
    setenv("LISTEN_PID", pid, 1);
    assert_int_equal(qf_notify_passed("one"), 3);
    assert_int_equal(qf_notify_passed("another"), 4);
    assert_int_equal(fcntl(4, F_GETFD), FD_CLOEXEC);
    assert_int_equal(qf_notify_passed("on"), -1);
    assert_int_equal(qf_notify_passed("other"), -1);
    unsetenv("LISTEN_FDNAMES");
    assert_int_equal(qf_notify_passed("one"), -1);
    for (int i = 0; i < 2; i++) {
        if (was[i] >= 0)
            dup2(was[i], 3 + i);
        close(was[i] >= 0 ? was[i] : 3 + i);
    }
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_PID");
}

static void test_watchdog(void **state)
{
    (void)state;
    char pid[32];
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    unsetenv("NOTIFY_SOCKET");
    setenv("WATCHDOG_USEC", "3000000", 1);
    assert_int_equal(qf_notify_watchdog_ms(), 0);
    setenv("NOTIFY_SOCKET", "/nowhere", 1);
    assert_int_equal(qf_notify_watchdog_ms(), 3000);
    setenv("WATCHDOG_PID", "1", 1);
    assert_int_equal(qf_notify_watchdog_ms(), 0);
    setenv("WATCHDOG_PID", pid, 1);
    assert_int_equal(qf_notify_watchdog_ms(), 3000);
    unsetenv("WATCHDOG_USEC");
    assert_int_equal(qf_notify_watchdog_ms(), 0);
    unsetenv("WATCHDOG_PID");
    unsetenv("NOTIFY_SOCKET");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_text, begin, end),
        cmocka_unit_test_setup_teardown(test_json, begin, end),
        cmocka_unit_test_setup_teardown(test_journal, begin, end),
        cmocka_unit_test_setup_teardown(test_repeated, begin, end),
        cmocka_unit_test_setup_teardown(test_many_files, begin, end),
        cmocka_unit_test(test_notify),
        cmocka_unit_test(test_notify_nobody),
        cmocka_unit_test_setup_teardown(test_store, begin, end),
        cmocka_unit_test_setup_teardown(test_passed, begin, end),
        cmocka_unit_test(test_watchdog),
    };
    int fd = mkstemp(socket_path);
    if (fd >= 0)
        close(fd);
    return cmocka_run_group_tests_name("base_log", tests, NULL, NULL);
}
