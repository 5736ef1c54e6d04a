/* SPDX-License-Identifier: Apache-2.0 */
/* The mount is that of `quantfs mount`, run as a user would run it. The programs are in
 * a process group of their own: a Ctrl-C at the terminal is ours to answer, and the
 * mount is taken away before the program ends. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench.h"

#define SELF         "/proc/self/exe"
#define ARGS_MAX     (2 * QF_BENCH_LISTS_MAX + 8)
#define CANNOT_START 127

struct paths {
    char store[PATH_MAX], mnt[PATH_MAX], log[PATH_MAX];
    char list[2 * PATH_MAX]; /* options that win, being last */
};

/* Runs this program again, what it says into a file; returns its exit code or -errno.
 */
static int run_self(const char *log, const char *const *args)
{
    pid_t pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        setpgid(0, 0);
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (null >= 0 && fd >= 0 && dup2(null, 0) >= 0 && dup2(null, 1) >= 0 &&
            dup2(fd, 2) >= 0)
            execv(SELF, (char *const *)(const void *)args);
        _exit(CANNOT_START);
    }
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFEXITED(status) ? WEXITSTATUS(status) : CANNOT_START;
}

/* The first line of what a program said, without its name. */
static int tell_log(const char *log, const char *what, int code, struct qf_err *err)
{
    char line[QF_ERR_TEXT_SIZE / 2] = "";
    FILE *file = fopen(log, "re");
    if (file != NULL) {
        if (fgets(line, sizeof line, file) == NULL)
            line[0] = '\0';
        fclose(file);
    }
    line[strcspn(line, "\n")] = '\0';
    const char *said = strncmp(line, "quantfs: ", 9) == 0 ? line + 9 : line;
    if (said[0] == '\0')
        return qf_err_set(err, -EIO, "quantfs %s ended with %d", what, code);
    return qf_err_set(err, -EIO, "%s", said);
}

static int mount_it(const struct qf_bench *bench, const struct paths *p,
                    struct qf_err *err)
{
    const char *args[ARGS_MAX] = {"quantfs", "mount"};
    size_t n = 2;
    for (size_t i = 0; i < bench->list_count; i++) {
        args[n++] = "-o";
        args[n++] = bench->lists[i];
    }
    args[n++] = "-o";
    args[n++] = p->list;
    args[n++] = p->store;
    args[n++] = p->mnt;
    int code = run_self(p->log, args);
    return code == 0 ? 0 : tell_log(p->log, "mount", code, err);
}

/* Whether or not it is mounted. */
static int unmount_it(const struct paths *p, struct qf_err *err)
{
    const char *const args[] = {"quantfs", "umount", p->mnt, NULL};
    const char *const lazy[] = {"quantfs", "umount", "-l", p->mnt, NULL};
    int code = run_self(p->log, args);
    int rc = code == 0 ? 0 : tell_log(p->log, "umount", code, err);
    if (rc != 0 && run_self(p->log, lazy) != 0)
        qf_err_prefix(err, "%s stays mounted", p->mnt);
    return rc;
}

static int run_pass(const struct qf_bench *bench, const struct paths *p,
                    struct qf_bench_row *row, struct qf_bench_pass *pass,
                    struct qf_err *err)
{
    const struct qf_views_source source = {.ops = &qf_source_mount_ops, .top = p->mnt};
    char path[PATH_MAX + QF_VIEW_NAME_SIZE + 16];
    struct qf_err unmount_err = {""};
    int rc = mount_it(bench, p, err);
    if (rc != 0)
        return rc;
    snprintf(path, sizeof path, "%s/%s/model", p->mnt, row->view);
    rc = qf_bench_read_view(bench, &source, row->view, path, pass, err);
    int ended = unmount_it(p, &unmount_err);
    if (rc == 0 && ended != 0)
        rc = qf_err_set(err, ended, "%s", unmount_err.text);
    return rc;
}

int qf_bench_run_mount(struct qf_bench *bench, struct qf_err *err)
{
    static struct paths p; /* kilobytes */
    struct qf_bench_row *row = &bench->mount;
    struct qf_err *problem = &bench->mount_problem;
    char cache[PATH_MAX];
    const char *view = bench->options.views[0].name;
    qf_bench_path(bench, "store", p.store);
    qf_bench_path(bench, "mnt", p.mnt);
    qf_bench_path(bench, "log", p.log);
    qf_bench_path(bench, "mount-cache", cache);
    snprintf(row->view, sizeof row->view, "%s", view);
    /* The engine's last rows have the device that the options ask for. */
    snprintf(row->device, sizeof row->device, "%s",
             bench->rows[bench->row_count - 1].device);
    /* The second read is of records, not of a sealed shard. */
    snprintf(p.list, sizeof p.list, "cache=%s,views=%s,passthrough=off", cache, view);
    if (strchr(cache, ',') != NULL) {
        qf_err_set(problem, -EINVAL, "%s: the path has a comma", cache);
        return 0;
    }
    if (mkdir(p.mnt, 0700) != 0)
        return qf_err_set(err, -errno, "%s: %s", p.mnt, strerror(errno));
    bench->stage(bench, "mount", view);
    int rc = run_pass(bench, &p, row, &row->first, problem);
    bench->stage(bench, "mount, from the cache", view);
    if (rc == 0)
        rc = run_pass(bench, &p, row, &row->second, problem);
    if (rc != 0 && problem->text[0] == '\0')
        qf_err_set(problem, rc, "%s", strerror(-rc));
    return qf_bench_stopped(bench) ? -EINTR : 0;
}
