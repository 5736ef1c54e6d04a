/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/opts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- values ---- */

int qf_parse_size(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno != 0)
        return -ERANGE;
    if (*end != '\0') {
        const char *unit = strchr(units, *end);
        if (unit == NULL || end[1] != '\0')
            return -EINVAL;
        unsigned shift = 10 * (unsigned)(unit - units + 1);
        if (value > UINT64_MAX >> shift)
            return -ERANGE;
        value <<= shift;
    }
    *out = value;
    return 0;
}

static int get_size(const char *name, const char *value, uint64_t *out,
                    struct qf_err *err)
{
    if (qf_parse_size(value, out) != 0)
        return qf_err_set(err, -EINVAL,
                          "option %s=%s: not a size (a number, with K, M, G or T)",
                          name, value);
    return 0;
}

static int get_number(const char *name, const char *value, unsigned max, unsigned *out,
                      struct qf_err *err)
{
    uint64_t number;
    if (qf_parse_size(value, &number) != 0 || number > max)
        return qf_err_set(err, -EINVAL, "option %s=%s: not a number up to %u", name,
                          value, max);
    *out = (unsigned)number;
    return 0;
}

static int get_text(const char *name, const char *value, char *out, size_t size,
                    struct qf_err *err)
{
    int n = snprintf(out, size, "%s", value);
    if (n <= 0 || (size_t)n >= size)
        return qf_err_set(err, -EINVAL, "option %s: empty or too long", name);
    return 0;
}

static int set_views(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    return qf_view_parse_list(value, o->views, &o->view_count, err);
}

static int set_cache(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    return get_text("cache", value, o->cache, sizeof o->cache, err);
}

static int set_cache_size(struct qf_mount_options *o, const char *value,
                          struct qf_err *err)
{
    return get_size("cache_size", value, &o->cache_size, err);
}

static int set_cache_min_free(struct qf_mount_options *o, const char *value,
                              struct qf_err *err)
{
    return get_size("cache_min_free", value, &o->cache_min_free, err);
}

static int set_memory(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    return get_size("memory", value, &o->memory, err);
}

static int set_threads(struct qf_mount_options *o, const char *value,
                       struct qf_err *err)
{
    return get_number("threads", value, 1024, &o->threads, err);
}

static int set_device(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    bool cuda = strncmp(value, "cuda:", 5) == 0 && value[5] != '\0' &&
                value[5 + strspn(value + 5, "0123456789")] == '\0';
    if (!cuda && strcmp(value, "auto") != 0 && strcmp(value, "cpu") != 0)
        return qf_err_set(err, -EINVAL, "option device=%s: not auto, cpu or cuda:N",
                          value);
    return get_text("device", value, o->device, sizeof o->device, err);
}

static int set_isa(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    return get_text("isa", value, o->isa, sizeof o->isa, err);
}

static int set_attr_ttl(struct qf_mount_options *o, const char *value,
                        struct qf_err *err)
{
    return get_number("attr_ttl", value, 31536000, &o->attr_ttl_s, err);
}

static int set_read_ahead(struct qf_mount_options *o, const char *value,
                          struct qf_err *err)
{
    return get_number("read_ahead_kb", value, 1u << 20, &o->read_ahead_kb, err);
}

static int set_fsname(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    return get_text("fsname", value, o->fsname, sizeof o->fsname, err);
}

static int set_policy(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    return get_text("policy", value, o->policy, sizeof o->policy, err);
}

static int set_limits(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    return get_text("limits", value, o->limits, sizeof o->limits, err);
}

static int set_drain_timeout(struct qf_mount_options *o, const char *value,
                             struct qf_err *err)
{
    int rc = get_number("drain_timeout", value, 3600, &o->drain_timeout_s, err);
    if (rc == 0 && o->drain_timeout_s == 0)
        rc = qf_err_set(err, -EINVAL, "option drain_timeout=%s: at least 1", value);
    return rc;
}

static int set_restart(struct qf_mount_options *o, const char *value,
                       struct qf_err *err)
{
    static const char *const modes[] = {[QF_RESTART_OFF] = "off",
                                        [QF_RESTART_KEEPER] = "keeper",
                                        [QF_RESTART_SYSTEMD] = "systemd"};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(value, modes[i]) == 0) {
            o->restart = (enum qf_restart)i;
            return 0;
        }
    }
    return qf_err_set(err, -EINVAL, "option restart=%s: not off, keeper or systemd",
                      value);
}

static int set_log(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    o->log_syslog = strcmp(value, "syslog") == 0;
    if (!o->log_syslog && strcmp(value, "auto") != 0)
        return qf_err_set(err, -EINVAL, "option log=%s: not auto or syslog", value);
    return 0;
}

static int set_log_format(struct qf_mount_options *o, const char *value,
                          struct qf_err *err)
{
    o->log_json = strcmp(value, "json") == 0;
    if (!o->log_json && strcmp(value, "text") != 0)
        return qf_err_set(err, -EINVAL, "option log_format=%s: not text or json",
                          value);
    return 0;
}

static int set_alias(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    o->alias_bnb = strcmp(value, "bnb") == 0;
    if (!o->alias_bnb && strcmp(value, "none") != 0)
        return qf_err_set(err, -EINVAL, "option alias=%s: not bnb or none", value);
    return 0;
}

static int set_allow_other(struct qf_mount_options *o, const char *value,
                           struct qf_err *err)
{
    (void)value;
    (void)err;
    o->allow_other = true;
    return 0;
}

static int set_debug(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    (void)value;
    (void)err;
    o->debug = true;
    return 0;
}

static int set_passthrough(struct qf_mount_options *o, const char *value,
                           struct qf_err *err)
{
    o->no_passthrough = strcmp(value, "off") == 0;
    if (!o->no_passthrough && strcmp(value, "auto") != 0)
        return qf_err_set(err, -EINVAL, "option passthrough=%s: not auto or off",
                          value);
    return 0;
}

static int set_sloppy(struct qf_mount_options *o, const char *value, struct qf_err *err)
{
    (void)value;
    (void)err;
    o->sloppy = true;
    return 0;
}

static const struct qf_mount_option options_table[] = {
    {"views", "A:B",
     "views to list, also with settings: nf4+blocksize=128, fp8 (nf4:int8:dq:fp4)",
     set_views},
    {"cache", "DIR", "directory of the cache; none: memory only", set_cache},
    {"cache_size", "SIZE", "bytes the cache may take (a tenth of its filesystem)",
     set_cache_size},
    {"cache_min_free", "SIZE",
     "bytes of that filesystem the cache leaves free, below its size if need be (0)",
     set_cache_min_free},
    {"memory", "SIZE", "bytes in flight and kept in memory (512M)", set_memory},
    {"threads", "N", "threads that encode ahead (one per processor)", set_threads},
    {"device", "cpu|auto|cuda:N",
     "what encodes; auto: a GPU that can be shared, else cpu (cpu)", set_device},
    {"isa", "scalar|avx2|avx512",
     "instructions to use (the best there are; same bytes)", set_isa},
    {"attr_ttl", "SECONDS", "how long names and sizes are trusted (60)", set_attr_ttl},
    {"read_ahead_kb", "KIB", "read-ahead of the mount, when root (4096)",
     set_read_ahead},
    {"policy", "FILE", "overrides for all models (see docs/OVERRIDES.md)", set_policy},
    {"alias", "none|bnb",
     "bnb: in 4-bit views, NAME-bnb-4bit leads to NAME if nothing has that name; none "
     "(none)",
     set_alias},
    {"passthrough", "auto|off",
     "whether shards that were read are sealed, and read by the kernel itself, when "
     "root and Linux 6.9 (auto)",
     set_passthrough},
    {"fsname", "NAME", "what /proc/mounts shows as the device (STORE)", set_fsname},
    {"allow_other", NULL, "let other users in (see fuse.conf)", set_allow_other},
    {"sloppy", NULL, "do not mind unknown options that follow", set_sloppy},
    {"limits", "FILE",
     "cache_size=SIZE and cache_min_free=SIZE, a line each; SIGHUP reads it again",
     set_limits},
    {"drain_timeout", "SECONDS",
     "how long SIGTERM waits for readers and unfinished work (10)", set_drain_timeout},
    {"restart", "off|keeper|systemd",
     "keeper: a second process keeps the mount while a daemon that died is started "
     "again; systemd: the unit does (Type=notify, FileDescriptorStoreMax=2); off (off)",
     set_restart},
    {"log", "auto|syslog", "auto: stderr in the foreground, else syslog (auto)",
     set_log},
    {"log_format", "text|json", "json: an object a line (text)", set_log_format},
    {"debug", NULL, "log every event of interest", set_debug},
};

/* For the kernel's mount. */
static const char *const kernel_options[] = {
    "ro",           "nosuid",
    "suid",         "nodev",
    "dev",          "noexec",
    "exec",         "atime",
    "noatime",      "nodiratime",
    "sync",         "async",
    "dirsync",      "default_permissions",
    "auto_unmount",
};

/* Words of mount(8) and fstab that mean nothing to us. "rw" is mount(8)'s default. */
static const char *const ignored_options[] = {
    "rw",    "defaults", "auto",    "noauto", "user",     "nouser",     "users",
    "owner", "group",    "_netdev", "nofail", "relatime", "norelatime", "strictatime",
};

/* The same, with values. */
static const char *const ignored_pairs[] = {"comment", "helper", "uhelper", "user"};

/* ---- parsing ---- */

static bool is_one_of(const char *name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static bool is_ignored(const char *name, const char *value)
{
    if (strncmp(name, "x-", 2) == 0 || strncmp(name, "X-", 2) == 0)
        return true;
    if (value != NULL)
        return is_one_of(name, ignored_pairs,
                         sizeof ignored_pairs / sizeof *ignored_pairs);
    return is_one_of(name, ignored_options,
                     sizeof ignored_options / sizeof *ignored_options);
}

static int add_kernel_option(struct qf_mount_options *options, const char *name,
                             struct qf_err *err)
{
    size_t used = strlen(options->kernel);
    int n = snprintf(options->kernel + used, sizeof options->kernel - used, "%s%s",
                     used != 0 ? "," : "", name);
    if (n < 0 || (size_t)n >= sizeof options->kernel - used)
        return qf_err_set(err, -EINVAL, "too many mount options");
    return 0;
}

static int parse_one(struct qf_mount_options *options, char *word, struct qf_err *err)
{
    char *value = strchr(word, '=');
    if (value != NULL)
        *value++ = '\0';
    for (size_t i = 0; i < sizeof options_table / sizeof *options_table; i++) {
        const struct qf_mount_option *option = &options_table[i];
        if (strcmp(option->name, word) != 0)
            continue;
        if ((option->value != NULL) != (value != NULL))
            return qf_err_set(err, -EINVAL, "option %s %s", word,
                              value != NULL ? "takes no value" : "needs a value");
        return option->set(options, value, err);
    }
    if (is_ignored(word, value))
        return 0;
    if (value == NULL &&
        is_one_of(word, kernel_options, sizeof kernel_options / sizeof *kernel_options))
        return add_kernel_option(options, word, err);
    if (strcmp(word, "remount") == 0)
        return qf_err_set(err, -EINVAL,
                          "a mount cannot be remounted: unmount it, mount it anew");
    if (options->sloppy)
        return 0;
    return qf_err_set(err, -EINVAL, "unknown option '%s' (see quantfs mount --help)",
                      word);
}

int qf_mount_options_parse(struct qf_mount_options *options, const char *list,
                           struct qf_err *err)
{
    char *copy = strdup(list);
    if (copy == NULL)
        return -ENOMEM;
    int rc = 0;
    char *rest = copy;
    while (rc == 0 && rest != NULL) {
        char *word = strsep(&rest, ",");
        if (word[0] != '\0')
            rc = parse_one(options, word, err);
    }
    free(copy);
    return rc;
}

void qf_mount_options_init(struct qf_mount_options *options)
{
    *options = (struct qf_mount_options){.attr_ttl_s = QF_ATTR_TTL_DEFAULT_S,
                                         .read_ahead_kb = QF_READ_AHEAD_DEFAULT_KB,
                                         .drain_timeout_s = QF_DRAIN_DEFAULT_S};
}

static bool is_limit(const char *line)
{
    return strncmp(line, "cache_size=", 11) == 0 ||
           strncmp(line, "cache_min_free=", 15) == 0;
}

int qf_mount_options_parse_limits(struct qf_mount_options *options, const char *text,
                                  struct qf_err *err)
{
    char *copy = strdup(text);
    if (copy == NULL)
        return -ENOMEM;
    int rc = 0;
    char *rest = copy;
    for (unsigned number = 1; rc == 0 && rest != NULL; number++) {
        char *line = strsep(&rest, "\n");
        line += strspn(line, " \t");
        line[strcspn(line, " \t\r")] = '\0';
        if (line[0] == '\0' || line[0] == '#')
            continue;
        rc = is_limit(line)
                 ? parse_one(options, line, err)
                 : qf_err_set(err, -EINVAL, "neither cache_size= nor cache_min_free=");
        if (rc != 0)
            qf_err_prefix(err, "line %u", number);
    }
    free(copy);
    return rc;
}

const struct qf_mount_option *qf_mount_option_list(size_t *count)
{
    *count = sizeof options_table / sizeof *options_table;
    return options_table;
}

const char *const *qf_mount_kernel_words(size_t *count)
{
    *count = sizeof kernel_options / sizeof *kernel_options;
    return kernel_options;
}

const char *const *qf_mount_ignored_words(size_t *count)
{
    *count = sizeof ignored_options / sizeof *ignored_options;
    return ignored_options;
}
