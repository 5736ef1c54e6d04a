/* SPDX-License-Identifier: Apache-2.0 */
/* The jail, with openat2 and with what stands in for it (a seccomp filter in a child
 * makes openat2 fail as on an old kernel), and the identity of files. */
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "ckpt/srcfile.h"
#include "support/tmpdir.h"

/* A store, and a directory beside it that must not be reached. */
struct place {
    char *base;
    char store[PATH_MAX];
    qf_root *root;
};

static void make_link(const struct place *p, const char *target, const char *path)
{
    char full[PATH_MAX];
    assert_true((size_t)snprintf(full, sizeof full, "%s/%s", p->store, path) <
                sizeof full);
    assert_int_equal(symlink(target, full), 0);
}

static const char *at(const struct place *p, const char *path)
{
    static char full[PATH_MAX];
    assert_true((size_t)snprintf(full, sizeof full, "%s/%s", p->store, path) <
                sizeof full);
    return full;
}

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->base = tmpdir_make();
    snprintf(p->store, sizeof p->store, "%s/store", p->base);
    tmpdir_write_text(p->base, "secret", "secret");
    tmpdir_write_text(p->base, "store2/secret", "secret");
    tmpdir_write_text(p->base, "store/a/b/file", "0123456789");
    tmpdir_write_text(p->base, "store/blobs/abc", "blob");
    tmpdir_write_text(p->base, "store/empty", "");
    make_link(p, "../../blobs/abc", "a/b/relative");
    make_link(p, at(p, "blobs/abc"), "a/b/absolute");
    make_link(p, p->store, "a/top");
    make_link(p, "b", "a/dir");
    make_link(p, "dir/../b/./relative", "a/winding");
    make_link(p, "a//dir///", "slashes");
    make_link(p, "/etc/passwd", "out_absolute");
    make_link(p, "../secret", "out_relative");
    make_link(p, "../store/blobs/abc", "out_and_back");
    make_link(p, "../store2/secret", "a/out2");
    make_link(p, "nowhere", "dangling");
    make_link(p, "loop2", "loop1");
    make_link(p, "loop1", "loop2");
    make_link(p, "self/x", "self");
    make_link(p, "empty/", "not_a_dir");
    assert_int_equal(mkfifo(at(p, "fifo"), 0600), 0);
    /* A store beside it whose name begins with the same characters. */
    char other[PATH_MAX + 8];
    snprintf(other, sizeof other, "%s2/secret", p->store);
    make_link(p, other, "out_prefix");
    assert_int_equal(qf_root_open(p->store, &p->root, NULL), 0);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;
    qf_root_close(p->root);
    tmpdir_remove(p->base);
    free(p);
    return 0;
}

struct resolve_case {
    const char *path;
    const char *real; /* NULL: rc instead */
    int rc;
};

static const struct resolve_case resolve_cases[] = {
    {"", "", 0},
    {"a", "a", 0},
    {"a/b/file", "a/b/file", 0},
    {"a/b/relative", "blobs/abc", 0},
    {"a/b/absolute", "blobs/abc", 0},
    {"a/top", "", 0},
    {"a/top/a/top/blobs/abc", "blobs/abc", 0},
    {"a/dir", "a/b", 0},
    {"a/dir/file", "a/b/file", 0},
    {"a/winding", "blobs/abc", 0},
    {"slashes", "a/b", 0},
    {"slashes/file", "a/b/file", 0},
    {"fifo", "fifo", 0},
    {"out_absolute", NULL, -EXDEV},
    {"out_relative", NULL, -EXDEV},
    {"out_and_back", NULL, -EXDEV},
    {"out_prefix", NULL, -EXDEV},
    {"a/out2", NULL, -ENOENT}, /* ../store2 is looked for inside */
    {"dangling", NULL, -ENOENT},
    {"missing", NULL, -ENOENT},
    {"a/missing/x", NULL, -ENOENT},
    {"loop1", NULL, -ELOOP},
    {"self", NULL, -ELOOP},
    {"self/y", NULL, -ELOOP},
    {"empty/x", NULL, -ENOTDIR},
    {"a/b/relative/x", NULL, -ENOTDIR},
    {"not_a_dir", NULL, -ENOTDIR},
};

/* The first case that goes wrong, or NULL. */
static const char *resolve_failure(const qf_root *root)
{
    for (size_t i = 0; i < sizeof resolve_cases / sizeof resolve_cases[0]; i++) {
        const struct resolve_case *c = &resolve_cases[i];
        char *real = NULL;
        struct stat st;
        int rc = qf_root_resolve(root, c->path, &real, &st);
        bool right = rc == c->rc && (rc != 0 || strcmp(real, c->real) == 0);
        free(real);
        if (!right)
            return c->path;
    }
    return NULL;
}

static void test_resolve(void **state)
{
    struct place *p = *state;
    const char *failure = resolve_failure(p->root);
    if (failure != NULL)
        fail_msg("%s", failure);
    struct stat st, want;
    assert_int_equal(qf_root_resolve(p->root, "a/winding", NULL, &st), 0);
    assert_int_equal(stat(at(p, "blobs/abc"), &want), 0);
    assert_int_equal(st.st_ino, want.st_ino);
    char name[NAME_MAX + 2];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_int_equal(qf_root_resolve(p->root, name, NULL, &st), -ENAMETOOLONG);
}

/* As above, and opening, on a kernel without openat2. Runs in a child. */
static int without_openat2(const struct place *p)
{
    struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                          offsetof(struct seccomp_data, nr)),
                                 BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
                                 BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
                                 BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        return 77;
    qf_root *root;
    if (qf_root_open(p->store, &root, NULL) != 0)
        return 1;
    const char *failure = resolve_failure(root);
    if (failure != NULL) {
        fprintf(stderr, "without openat2: %s\n", failure);
        return 2;
    }
    int dir = qf_root_opendir(root, "a/dir");
    int not_dir = qf_root_opendir(root, "empty");
    qf_srcfile *file = NULL;
    char bytes[4];
    if (dir < 0 || not_dir != -ENOTDIR)
        return 3;
    if (qf_srcfile_open(root, "a/b/absolute", &file, NULL) != 0 ||
        qf_srcfile_read(file, bytes, 4, 0) != 0 || memcmp(bytes, "blob", 4) != 0)
        return 4;
    if (fcntl(qf_srcfile_fd(file), F_GETFD) != FD_CLOEXEC)
        return 5;
    qf_srcfile_close(file);
    if (qf_srcfile_open(root, "out_relative", &file, NULL) != -EXDEV ||
        qf_srcfile_open(root, "fifo", &file, NULL) != -EOPNOTSUPP)
        return 6;
    close(dir);
    qf_root_close(root);
    return 0;
}

static void test_without_openat2(void **state)
{
    struct place *p = *state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(without_openat2(p));
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_root(void **state)
{
    struct place *p = *state;
    struct qf_err err = {.text = ""};
    qf_root *root = NULL;
    assert_int_equal(qf_root_open(at(p, "missing"), &root, &err), -ENOENT);
    assert_non_null(strstr(err.text, "missing: No such file"));
    assert_int_equal(qf_root_open(at(p, "empty"), &root, &err), -ENOTDIR);
    assert_null(root);
    qf_root_close(NULL);

    /* Through a link: absolute links may name the store by either path. */
    char alias[PATH_MAX + 8], target[PATH_MAX + 32];
    snprintf(alias, sizeof alias, "%s/alias", p->base);
    assert_int_equal(symlink("store", alias), 0);
    snprintf(target, sizeof target, "%s/blobs/abc", alias);
    make_link(p, target, "by_alias");
    strcat(alias, "//");
    assert_int_equal(qf_root_open(alias, &root, NULL), 0);
    assert_string_equal(qf_root_path(root), qf_root_path(p->root));
    struct stat st;
    assert_int_equal(qf_root_resolve(root, "by_alias", NULL, &st), 0);
    assert_int_equal(qf_root_resolve(root, "a/b/absolute", NULL, &st), 0);
    assert_int_equal(qf_root_resolve(p->root, "by_alias", NULL, &st), -EXDEV);
    qf_root_close(root);
}

/* A relative path, and the store moved away under the root. */
static void test_root_moves(void **state)
{
    struct place *p = *state;
    char cwd[PATH_MAX], moved[PATH_MAX + 8];
    qf_root *root = NULL;
    assert_non_null(getcwd(cwd, sizeof cwd));
    assert_int_equal(chdir(p->base), 0);
    assert_int_equal(qf_root_open("store", &root, NULL), 0);
    assert_int_equal(chdir(cwd), 0);
    struct stat st;
    assert_int_equal(qf_root_resolve(root, "a/b/absolute", NULL, &st), 0);
    snprintf(moved, sizeof moved, "%s-moved", p->store);
    assert_int_equal(rename(p->store, moved), 0);
    assert_int_equal(qf_root_resolve(root, "a/b/absolute", NULL, &st), 0);
    assert_int_equal(rename(moved, p->store), 0);
    qf_root_close(root);
}

static void test_opendir(void **state)
{
    struct place *p = *state;
    static const char *const good[] = {"", "a", "a/dir", "a/top", "slashes"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        int fd = qf_root_opendir(p->root, good[i]);
        assert_true(fd >= 0);
        assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
        close(fd);
    }
    assert_int_equal(qf_root_opendir(p->root, "empty"), -ENOTDIR);
    assert_int_equal(qf_root_opendir(p->root, "missing"), -ENOENT);
    assert_int_equal(qf_root_opendir(p->root, "out_relative"), -EXDEV);
}

static void test_read_file(void **state)
{
    struct place *p = *state;
    struct qf_err err = {.text = ""};
    struct qf_ident ident;
    char *data = NULL;
    size_t size = 0;
    assert_int_equal(qf_root_read_file(p->root, "a/b/relative", 4, &data, &size, &ident,
                                       &err),
                     0);
    assert_int_equal(size, 4);
    assert_string_equal(data, "blob");
    struct stat st;
    assert_int_equal(stat(at(p, "blobs/abc"), &st), 0);
    struct qf_ident want = qf_ident_of(&st);
    assert_true(qf_ident_eq(&ident, &want));
    free(data);
    assert_int_equal(qf_root_read_file(p->root, "empty", 0, &data, &size, NULL, &err),
                     0);
    assert_int_equal(size, 0);
    assert_string_equal(data, "");
    free(data);
    data = NULL;
    assert_int_equal(qf_root_read_file(p->root, "blobs/abc", 3, &data, &size, NULL,
                                       &err),
                     -EFBIG);
    assert_non_null(strstr(err.text, "blobs/abc: larger than 3 bytes"));
    assert_int_equal(qf_root_read_file(p->root, "missing", 3, &data, &size, NULL, &err),
                     -ENOENT);
    assert_non_null(strstr(err.text, "missing: No such file"));
    assert_null(data);
}

static void test_open_refuses(void **state)
{
    struct place *p = *state;
    static const struct {
        const char *path;
        int rc;
        const char *says;
    } cases[] = {{"", -EISDIR, "is a directory"},
                 {"a/dir", -EISDIR, "a/dir: is a directory"},
                 {"fifo", -EOPNOTSUPP, "fifo: is not a regular file"},
                 {"out_relative", -EXDEV, "leaves the store"},
                 {"out_absolute", -EXDEV, "leaves the store"},
                 {"loop1", -ELOOP, "loop1: "},
                 {"dangling", -ENOENT, "dangling: No such file"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct qf_err err = {.text = ""};
        qf_srcfile *file = NULL;
        int rc = qf_srcfile_open(p->root, cases[i].path, &file, &err);
        /* EISDIR and EOPNOTSUPP are told apart by the sentence and by the code. */
        if (rc != cases[i].rc || strstr(err.text, cases[i].says) == NULL)
            fail_msg("%s: %d %s", cases[i].path, rc, err.text);
        assert_null(file);
    }
    qf_srcfile_close(NULL);
}

static qf_srcfile *open_file(const struct place *p)
{
    qf_srcfile *file = NULL;
    assert_int_equal(qf_srcfile_open(p->root, "a/b/file", &file, NULL), 0);
    assert_int_equal(qf_srcfile_check(file), 0);
    return file;
}

static void test_read(void **state)
{
    struct place *p = *state;
    qf_srcfile *file = open_file(p);
    char bytes[10];
    assert_int_equal(qf_srcfile_ident(file)->size, 10);
    assert_int_equal(qf_srcfile_read(file, bytes, 10, 0), 0);
    assert_memory_equal(bytes, "0123456789", 10);
    assert_int_equal(qf_srcfile_read(file, bytes, 3, 7), 0);
    assert_memory_equal(bytes, "789", 3);
    assert_int_equal(qf_srcfile_read(file, bytes, 0, 10), 0);
    assert_int_equal(qf_srcfile_read(file, bytes, 1, 10), -ESTALE);
    assert_int_equal(qf_srcfile_read(file, bytes, 5, 7), -ESTALE);
    assert_int_equal(qf_srcfile_read(file, bytes, 1, UINT64_MAX / 2 + 1), -EINVAL);
    assert_int_equal(fcntl(qf_srcfile_fd(file), F_GETFD), FD_CLOEXEC);
    qf_srcfile_close(file);
}

/* Times are taken from a clock that ticks every few milliseconds. */
static void wait_for_tick(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

static void test_written(void **state)
{
    struct place *p = *state;
    qf_srcfile *file = open_file(p);
    wait_for_tick();
    tmpdir_write_text(p->store, "a/b/file", "9876543210");
    assert_int_equal(qf_srcfile_check(file), -ESTALE);
    qf_srcfile_close(file);
}

static void test_truncated(void **state)
{
    struct place *p = *state;
    qf_srcfile *file = open_file(p);
    char bytes[10];
    assert_int_equal(truncate(at(p, "a/b/file"), 5), 0);
    assert_int_equal(qf_srcfile_check(file), -ESTALE);
    assert_int_equal(qf_srcfile_read(file, bytes, 10, 0), -ESTALE);
    qf_srcfile_close(file);
}

static void test_touched(void **state)
{
    struct place *p = *state;
    qf_srcfile *file = open_file(p);
    wait_for_tick();
    /* Even when mtime is put back: ctime tells. */
    const struct timespec times[2] = {
        {.tv_nsec = UTIME_OMIT},
        {.tv_sec = qf_srcfile_ident(file)->mtime_ns / 1000000000,
         .tv_nsec = (long)(qf_srcfile_ident(file)->mtime_ns % 1000000000)}};
    assert_int_equal(utimensat(AT_FDCWD, at(p, "a/b/file"), times, 0), 0);
    assert_int_equal(qf_srcfile_check(file), -ESTALE);
    qf_srcfile_close(file);
}

static void test_replaced(void **state)
{
    struct place *p = *state;
    qf_srcfile *file = open_file(p);
    wait_for_tick();
    tmpdir_write_text(p->store, "a/b/new", "abcdefghij");
    char to[PATH_MAX];
    strcpy(to, at(p, "a/b/file"));
    assert_int_equal(rename(at(p, "a/b/new"), to), 0);
    /* The old file lost its name, which is a change of it. */
    assert_int_equal(qf_srcfile_check(file), -ESTALE);
    struct qf_ident old = *qf_srcfile_ident(file);
    qf_srcfile_close(file);
    file = open_file(p);
    assert_false(qf_ident_eq(&old, qf_srcfile_ident(file)));
    qf_srcfile_close(file);
}

static void test_ident(void **state)
{
    (void)state;
    const struct qf_ident a = {1, 2, 3, 4, 5};
    assert_true(qf_ident_eq(&a, &a));
    struct qf_ident b[5] = {a, a, a, a, a};
    b[0].dev++;
    b[1].ino++;
    b[2].size++;
    b[3].mtime_ns++;
    b[4].ctime_ns++;
    for (size_t i = 0; i < 5; i++)
        assert_false(qf_ident_eq(&a, &b[i]));
}

int main(void)
{
#define IN_PLACE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        IN_PLACE(test_resolve),      IN_PLACE(test_without_openat2),
        IN_PLACE(test_root),         IN_PLACE(test_root_moves),
        IN_PLACE(test_opendir),      IN_PLACE(test_read_file),
        IN_PLACE(test_open_refuses), IN_PLACE(test_read),
        IN_PLACE(test_written),      IN_PLACE(test_truncated),
        IN_PLACE(test_touched),      IN_PLACE(test_replaced),
        cmocka_unit_test(test_ident)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
