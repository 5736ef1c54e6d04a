/* SPDX-License-Identifier: Apache-2.0 */
/* Mount options: one table from which parsing, help, man pages and completions come. */
#ifndef QF_FS_OPTS_H
#define QF_FS_OPTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "view/names.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_OPT_TEXT_SIZE 4096

/* Who holds the mount while its daemon is started anew. */
enum qf_restart { QF_RESTART_OFF, QF_RESTART_KEEPER, QF_RESTART_SYSTEMD };

struct qf_mount_options {
    struct qf_view views[QF_VIEWS_MAX];
    size_t view_count;
    char cache[QF_OPT_TEXT_SIZE];  /* directory; "": the default; "none": memory only */
    uint64_t cache_size;           /* bytes; 0: the store's default */
    uint64_t cache_min_free;       /* bytes of its filesystem to leave free */
    uint64_t memory;               /* bytes; 0: the engine's default */
    unsigned threads;              /* encoding threads; 0: one per processor */
    char device[32];               /* "": cpu; else auto, cpu or cuda:N */
    char isa[16];                  /* "": the best */
    unsigned attr_ttl_s;           /* how long the kernel may trust names and sizes */
    unsigned read_ahead_kb;        /* of the mount, when we may set it */
    char policy[QF_OPT_TEXT_SIZE]; /* file of overrides for all models; "": none */
    char
        limits[QF_OPT_TEXT_SIZE]; /* file of limits that SIGHUP reads again; "": none */
    unsigned drain_timeout_s;     /* how long SIGTERM may take */
    enum qf_restart restart;
    bool log_syslog;
    bool alias_bnb; /* NAME-bnb-4bit is another name of NAME */
    bool allow_other;
    bool no_passthrough;
    bool sloppy; /* unknown options are taken silently */
    bool debug;
    bool log_json;
    char fsname[QF_OPT_TEXT_SIZE]; /* "": the store's path */
    char kernel[QF_OPT_TEXT_SIZE]; /* options for the kernel's mount, comma-separated */
};

#define QF_ATTR_TTL_DEFAULT_S    60
#define QF_READ_AHEAD_DEFAULT_KB 4096
#define QF_DRAIN_DEFAULT_S       10

void qf_mount_options_init(struct qf_mount_options *options);
/* One "-o" argument: "name,name=value,…". -EINVAL with a sentence that names the
 * option. Options that belong to mount(8) and fstab (nofail, _netdev, x-…) are taken
 * silently. */
int qf_mount_options_parse(struct qf_mount_options *options, const char *list,
                           struct qf_err *err) QF_MUST_CHECK;

typedef int qf_mount_option_set(struct qf_mount_options *options, const char *value,
                                struct qf_err *err);

struct qf_mount_option {
    const char *name;
    const char *value; /* word for what stands after '='; NULL: a flag */
    const char *help;
    qf_mount_option_set *set;
};

/* Our own ones; */
const struct qf_mount_option *qf_mount_option_list(size_t *count);
/* those that are for the kernel's mount; those of mount(8) and fstab that mean nothing
 * to us. */
const char *const *qf_mount_kernel_words(size_t *count);
const char *const *qf_mount_ignored_words(size_t *count);

/* A file with one of cache_size=SIZE and cache_min_free=SIZE a line; blank lines and
 * those that begin with '#' are skipped. -EINVAL with a sentence that names the line.
 */
int qf_mount_options_parse_limits(struct qf_mount_options *options, const char *text,
                                  struct qf_err *err) QF_MUST_CHECK;
/* "4096", "512K", "64M", "2G", "1T" in bytes. -EINVAL, -ERANGE. */
int qf_parse_size(const char *text, uint64_t *out) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
