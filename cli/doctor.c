/* SPDX-License-Identifier: Apache-2.0 */
/* Each check says what it saw, not what it believes to follow from a version where it
 * can look for itself; whatever is not good comes with the command that mends it. */
#include "cli/doctor.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/pool.h"
#include "cache/netfs.h"
#include "cli/cli.h"
#include "fs/daemon.h"
#include "quant/kernels.h"

#define CAPABILITY_SYS_ADMIN 21
#define CACHE_FREE_LOW       (UINT64_C(1) << 30)
#define OPEN_FILES_LOW       4096

static void QF_PRINTF(3, 4)
    say(struct qf_finding *f, enum qf_finding_level level, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    f->level = level;
    vsnprintf(f->text, sizeof f->text, fmt, args);
    va_end(args);
}

static void mend(struct qf_finding *f, const char *text)
{
    snprintf(f->mend, sizeof f->mend, "%s", text);
}

static bool has_sys_admin(void)
{
    FILE *file = fopen("/proc/self/status", "re");
    char line[256];
    uint64_t caps = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "CapEff: %" SCNx64, &caps) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return (caps >> CAPABILITY_SYS_ADMIN & 1) != 0;
}

static bool kernel_at_least(unsigned major, unsigned minor)
{
    struct utsname name;
    unsigned a = 0, b = 0;
    return uname(&name) == 0 && sscanf(name.release, "%u.%u", &a, &b) == 2 &&
           (a > major || (a == major && b >= minor));
}

static void check_kernel(struct qf_finding *f)
{
    struct utsname name;
    if (uname(&name) != 0)
        say(f, QF_FINDING_WARN, "unknown: %s", strerror(errno));
    else
        say(f, QF_FINDING_OK, "%s %s", name.sysname, name.release);
}

static void check_device(struct qf_finding *f)
{
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        say(f, QF_FINDING_OK, "/dev/fuse can be opened");
        return;
    }
    say(f, QF_FINDING_FAIL, "/dev/fuse: %s", strerror(errno));
    mend(f,
         errno == EACCES || errno == EPERM
             ? "be root, or allow it: chmod 0666 /dev/fuse; in a container: --device "
               "/dev/fuse --cap-add SYS_ADMIN"
             : "modprobe fuse; in a container: --device /dev/fuse --cap-add "
               "SYS_ADMIN");
}

static bool in_path(const char *program)
{
    const char *path = getenv("PATH");
    while (path != NULL && *path != '\0') {
        size_t n = strcspn(path, ":");
        char name[PATH_MAX];
        if ((size_t)snprintf(name, sizeof name, "%.*s/%s", (int)n, path, program) <
                sizeof name &&
            access(name, X_OK) == 0)
            return true;
        path += n + (path[n] == ':');
    }
    return false;
}

static void check_libfuse(struct qf_finding *f)
{
    const char *version = qf_daemon_libfuse_version();
    if (geteuid() == 0 || in_path("fusermount3")) {
        say(f, QF_FINDING_OK, "%s", version);
        return;
    }
    say(f, QF_FINDING_FAIL,
        "%s, but there is no fusermount3, without which only root can mount", version);
    mend(f, "apt install fuse3");
}

static void check_allow_other(struct qf_finding *f)
{
    if (geteuid() == 0) {
        say(f, QF_FINDING_OK, "root may let other users in (-o allow_other)");
        return;
    }
    FILE *file = fopen("/etc/fuse.conf", "re");
    char line[256], word[32];
    bool allowed = false;
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        allowed |=
            sscanf(line, "%31s", word) == 1 && strcmp(word, "user_allow_other") == 0;
    if (file != NULL)
        fclose(file);
    if (allowed) {
        say(f, QF_FINDING_OK, "/etc/fuse.conf has user_allow_other");
        return;
    }
    say(f, QF_FINDING_NOTE, "other users, root included, cannot see your mounts");
    mend(f, "echo user_allow_other | sudo tee -a /etc/fuse.conf");
}

static void check_passthrough(struct qf_finding *f)
{
    if (!kernel_at_least(6, 9)) {
        say(f, QF_FINDING_NOTE,
            "no: this kernel is older than 6.9; sealed shards are served by the "
            "daemon");
    } else if (!has_sys_admin()) {
        say(f, QF_FINDING_NOTE,
            "no: it needs CAP_SYS_ADMIN; sealed shards are served by the daemon");
        mend(f, "mount as root (with -o allow_other for the users)");
    } else {
        say(f, QF_FINDING_OK,
            "sealed shards can be read by the kernel itself (whether a mount does: "
            "MNT/.quantfs/status)");
    }
}

static void check_restart(struct qf_finding *f)
{
    if (kernel_at_least(6, 9))
        say(f, QF_FINDING_OK, "a mount can outlive its daemon (-o restart=keeper)");
    else
        say(f, QF_FINDING_NOTE,
            "a mount ends with its daemon: this kernel is older than 6.9 and sends no "
            "request again");
}

static void check_read_ahead(struct qf_finding *f)
{
    if (access("/sys/class/bdi", F_OK) == 0 && geteuid() == 0) {
        say(f, QF_FINDING_OK, "a mount's read-ahead can be raised");
        return;
    }
    say(f, QF_FINDING_NOTE,
        "stays at the kernel's 128 KiB: only root can raise it, and copies from a "
        "mapping are slower without");
    mend(f, "mount as root, or write /sys/class/bdi/MAJOR:MINOR/read_ahead_kb of the "
            "mount (mountinfo has the numbers) as root");
}

static void check_isa(struct qf_finding *f)
{
    enum qf_isa isa = qf_isa_detect();
    say(f, isa == QF_ISA_SCALAR ? QF_FINDING_NOTE : QF_FINDING_OK,
        "%s kernels, %u processors%s", qf_isa_name(isa), qf_cpu_count(),
        isa == QF_ISA_SCALAR ? "; encoding is slow without AVX2" : "");
}

static void check_cuda(struct qf_finding *f, const char *problem)
{
    if (problem == NULL)
        say(f, QF_FINDING_OK, "cuda:0 can be used (-o device=cuda:0)");
    else
        say(f, QF_FINDING_NOTE, "none: %s; the CPU encodes", problem);
}

/* The directory itself, or the nearest one above it that exists. */
static void nearest_existing(char *path)
{
    while (access(path, F_OK) != 0) {
        char *slash = strrchr(path, '/');
        if (slash == NULL || slash == path) {
            strcpy(path, slash == path ? "/" : ".");
            return;
        }
        *slash = '\0';
    }
}

static void check_cache_dir(struct qf_finding *f, const char *dir)
{
    char path[PATH_MAX];
    struct statfs fs;
    snprintf(path, sizeof path, "%s", dir);
    nearest_existing(path);
    if (access(path, W_OK | X_OK) != 0 || statfs(path, &fs) != 0) {
        say(f, QF_FINDING_WARN, "%.200s: %s; mounts will have no cache on disk", dir,
            strerror(errno));
        mend(f, "choose another directory: -o cache=DIR");
        return;
    }
    const char *remote = qf_netfs_name((uint32_t)fs.f_type);
    uint64_t free_size = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
    if (remote != NULL) {
        say(f, QF_FINDING_WARN,
            "%.200s lies on a %s filesystem, where a cache cannot be", dir, remote);
        mend(f, "choose a directory on a local disk: -o cache=DIR");
    } else if (free_size < CACHE_FREE_LOW) {
        say(f, QF_FINDING_WARN, "%.200s: only %" PRIu64 " MiB are free", dir,
            free_size >> 20);
        mend(f, "choose a directory with more room: -o cache=DIR");
    } else {
        say(f, QF_FINDING_OK, "%.200s: %.1f GiB are free", dir,
            (double)free_size / (double)(UINT64_C(1) << 30));
    }
}

static void check_cache(struct qf_finding *f, const char *dir)
{
    char text[PATH_MAX];
    struct qf_err err = {""};
    if (dir == NULL && qf_cli_cache_dir(text, sizeof text, &err) != 0) {
        say(f, QF_FINDING_WARN, "%s", err.text);
        return;
    }
    check_cache_dir(f, dir != NULL ? dir : text);
}

static void check_open_files(struct qf_finding *f)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_max == RLIM_INFINITY ||
        limit.rlim_max >= OPEN_FILES_LOW) {
        say(f, QF_FINDING_OK, "enough files can be open");
        return;
    }
    say(f, QF_FINDING_WARN,
        "at most %llu files can be open; each open file of a view takes one",
        (unsigned long long)limit.rlim_max);
    mend(f, "raise the hard limit: ulimit -Hn 65536, or LimitNOFILE= of the unit");
}

static void check_page_size(struct qf_finding *f)
{
    long size = sysconf(_SC_PAGESIZE);
    say(f, size == 4096 ? QF_FINDING_OK : QF_FINDING_NOTE, "%ld bytes%s", size,
        size == 4096 ? "" : ": less tested than 4096");
}

const char *qf_finding_level_name(enum qf_finding_level level)
{
    static const char *const names[] = {"ok", "note", "warn", "fail"};
    return names[level];
}

void qf_doctor_examine(const char *cache_dir, const char *cuda_problem,
                       struct qf_finding findings[QF_FINDING_COUNT])
{
    static const struct {
        const char *name;
        void (*run)(struct qf_finding *f);
    } checks[] = {
        {"kernel", check_kernel},           {"fuse-device", check_device},
        {"libfuse", check_libfuse},         {"allow-other", check_allow_other},
        {"passthrough", check_passthrough}, {"restart", check_restart},
        {"read-ahead", check_read_ahead},   {"isa", check_isa},
        {"open-files", check_open_files},   {"page-size", check_page_size},
    };
    size_t count = sizeof checks / sizeof *checks;
    assert(count + 2 == QF_FINDING_COUNT);
    memset(findings, 0, QF_FINDING_COUNT * sizeof *findings);
    for (size_t i = 0; i < count; i++) {
        findings[i].name = checks[i].name;
        checks[i].run(&findings[i]);
    }
    findings[count].name = "cuda";
    check_cuda(&findings[count], cuda_problem);
    findings[count + 1].name = "cache";
    check_cache(&findings[count + 1], cache_dir);
}
