/* SPDX-License-Identifier: Apache-2.0 */
/* The target holds, until the export is done, a journal and the drafts of files that
 * are not whole. The journal is a hint and never believed: what it says of a segment is
 * the checksum that the segment must have, and the segment is read to see whether it
 * has. So of all lines only those of files are synced, before the file gets its name
 * (which nobody would take back otherwise); torn or lost ones cost time only.
 *
 *   {"quantfs_export": 1, "view": "nf4", "source": "/store/model"}
 *   segment <identity> <number> <XXH3>
 *   file <identity> "path"
 *
 * The first line is there from the moment the journal has its name. A file that was
 * finished takes its draft's name again while it is read anew: a name of the repository
 * stands for right bytes or for nothing. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/json.h"
#include "base/path.h"
#include "cli/cli.h"
#include "cli/export.h"

#define JOURNAL_SIZE_MAX (UINT64_C(1) << 30)
#define JOURNAL_NEW      QF_EXPORT_JOURNAL ".new"
#define DRAFT_PREFIX     QF_EXPORT_JOURNAL "."

struct qf_export_draft qf_export_draft(const struct qf_export_file *file)
{
    struct qf_export_draft draft;
    snprintf(draft.name, sizeof draft.name, DRAFT_PREFIX "%016" PRIx64 "%016" PRIx64,
             file->identity.high, file->identity.low);
    return draft;
}

static int fail(const struct qf_export *export, struct qf_err *err, int rc,
                const char *what)
{
    return qf_err_set(err, rc, "%s/%s: %s", export->dir, what, strerror(-rc));
}

/* ---- writing it ---- */

static void append_first(const struct qf_export *export, struct qf_buf *out)
{
    qf_buf_append_str(out, "{\"quantfs_export\": 1, \"view\": ");
    qf_buf_append_json(out, export->view, strlen(export->view));
    qf_buf_append_str(out, ", \"source\": ");
    qf_buf_append_json(out, export->origin, strlen(export->origin));
    qf_buf_append_str(out, "}\n");
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

static void append_segment(const struct qf_export_file *file, size_t index,
                           struct qf_buf *out)
{
    qf_buf_appendf(out, "segment %016" PRIx64 "%016" PRIx64 " %zu %016" PRIx64 "\n",
                   file->identity.high, file->identity.low, index,
                   file->segments[index].hash);
}

/* With what is known of segments: all files are drafts now. */
static int make_journal(struct qf_export *export, struct qf_err *err)
{
    struct qf_buf first = {0};
    append_first(export, &first);
    for (size_t i = 0; i < export->file_count; i++)
        for (size_t k = 0; k < export->files[i].segment_count; k++)
            if (export->files[i].segments[k].known)
                append_segment(&export->files[i], k, &first);
    int fd = openat(export->dir_fd, JOURNAL_NEW,
                    O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int rc = fd < 0 ? -errno : first.failed ? -ENOMEM : 0;
    if (rc == 0)
        rc = write_all(fd, first.data, first.size);
    if (rc == 0 && (fsync(fd) != 0 || renameat(export->dir_fd, JOURNAL_NEW,
                                               export->dir_fd, QF_EXPORT_JOURNAL) != 0))
        rc = -errno;
    qf_buf_fini(&first);
    if (rc != 0) {
        if (fd >= 0)
            close(fd);
        return fail(export, err, rc, QF_EXPORT_JOURNAL);
    }
    export->journal_fd = fd;
    return 0;
}

/* ---- reading it ---- */

/* Whether it is this export's. */
static int check_first(const struct qf_export *export, const char *text, size_t size,
                       struct qf_err *err)
{
    qf_json *doc = qf_json_parse(text, size, NULL);
    const char *view = qf_json_string(qf_json_get(doc, "view"));
    const char *source = qf_json_string(qf_json_get(doc, "source"));
    double version = qf_json_number(qf_json_get(doc, "quantfs_export"));
    int rc = 0;
    if (view == NULL || source == NULL)
        rc = qf_err_set(err, -EBADMSG,
                        "%s/" QF_EXPORT_JOURNAL
                        ": no journal of an export; remove the directory",
                        export->dir);
    else if (version != 1)
        rc = qf_err_set(err, -ENOTSUP,
                        "%s: begun by another version of quantfs; "
                        "remove the directory",
                        export->dir);
    else if (strcmp(view, export->view) != 0 || strcmp(source, export->origin) != 0)
        rc = qf_err_set(err, -EEXIST,
                        "%s: an interrupted export of %s as %s; go on with that, or "
                        "remove the directory",
                        export->dir, source, view);
    qf_json_free(doc);
    return rc;
}

static bool scan_identity(const char *text, struct qf_hash128 *out)
{
    return sscanf(text, "%16" SCNx64 "%16" SCNx64, &out->high, &out->low) == 2 &&
           strspn(text, "0123456789abcdef") == 32;
}

static struct qf_export_file *find_identity(const struct qf_export *export,
                                            struct qf_hash128 identity)
{
    for (size_t i = 0; i < export->file_count; i++)
        if (qf_hash128_eq(export->files[i].identity, identity))
            return &export->files[i];
    return NULL;
}

static void take_segment(struct qf_export *export, const char *line)
{
    struct qf_hash128 identity;
    unsigned long long number;
    uint64_t hash;
    int end = 0;
    if (!scan_identity(line, &identity) ||
        sscanf(line + 32, " %llu %16" SCNx64 "%n", &number, &hash, &end) != 2 ||
        line[32 + end] != '\0')
        return;
    struct qf_export_file *file = find_identity(export, identity);
    if (file != NULL && number < file->segment_count)
        file->segments[number] = (struct qf_export_segment){hash, true};
}

/* A journal is no reason to touch anything outside. */
static bool is_below(const char *path)
{
    return path[0] != '/' && strcmp(path, "..") != 0 && strncmp(path, "../", 3) != 0 &&
           strstr(path, "/../") == NULL && !qf_path_ends_with(path, "/..");
}

/* A file that was finished: it becomes a draft again, or goes. */
static int take_file(struct qf_export *export, const char *line)
{
    struct qf_hash128 identity;
    if (!scan_identity(line, &identity) || line[32] != ' ')
        return 0;
    qf_json *path_json = qf_json_parse(line + 33, strlen(line + 33), NULL);
    const char *path = qf_json_string(path_json);
    int rc = 0;
    if (path != NULL && is_below(path)) {
        const struct qf_export_file *file = find_identity(export, identity);
        if (file != NULL)
            rc = renameat(export->dir_fd, path, export->dir_fd,
                          qf_export_draft(file).name);
        else
            rc = unlinkat(export->dir_fd, path, 0);
        rc = rc != 0 && errno != ENOENT && errno != ENOTDIR ? -errno : 0;
    }
    qf_json_free(path_json);
    return rc;
}

static int read_journal(struct qf_export *export, struct qf_err *err)
{
    char path[PATH_MAX];
    char *text = NULL;
    size_t size;
    snprintf(path, sizeof path, "%s/" QF_EXPORT_JOURNAL, export->dir);
    int rc = qf_cli_read_file(path, JOURNAL_SIZE_MAX, &text, &size, err);
    if (rc != 0)
        return rc;
    char *line = text, *rest = text;
    strsep(&rest, "\n");
    rc = check_first(export, line, strlen(line), err);
    while (rc == 0 && (line = strsep(&rest, "\n")) != NULL) {
        if (strncmp(line, "segment ", 8) == 0)
            take_segment(export, line + 8);
        else if (strncmp(line, "file ", 5) == 0)
            rc = take_file(export, line + 5);
    }
    free(text);
    return rc;
}

/* ---- the target ---- */

/* Names in it besides ours; drafts that are nobody's go. */
static int clean(struct qf_export *export, size_t *others)
{
    *others = 0;
    DIR *dir = opendir(export->dir);
    if (dir == NULL)
        return -errno;
    const struct dirent *d;
    while ((d = readdir(dir)) != NULL) {
        const char *name = d->d_name;
        bool wanted = false;
        if (strncmp(name, DRAFT_PREFIX, strlen(DRAFT_PREFIX)) != 0) {
            *others += strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
            continue;
        }
        for (size_t i = 0; i < export->file_count && !wanted; i++)
            wanted = strcmp(qf_export_draft(&export->files[i]).name, name) == 0;
        if (!wanted)
            unlinkat(export->dir_fd, name, 0);
    }
    closedir(dir);
    return 0;
}

static int open_dir(struct qf_export *export, struct qf_err *err)
{
    char real[PATH_MAX];
    size_t n = strlen(export->origin);
    export->made_dir = mkdir(export->dir, 0777) == 0;
    if (!export->made_dir && errno != EEXIST)
        return qf_err_set(err, -errno, "%s: %s", export->dir, strerror(errno));
    export->dir_fd = open(export->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (export->dir_fd < 0 || realpath(export->dir, real) == NULL)
        return qf_err_set(err, -errno, "%s: %s", export->dir, strerror(errno));
    if (strncmp(real, export->origin, n) == 0 && (real[n] == '/' || real[n] == '\0')) {
        if (export->made_dir)
            rmdir(export->dir);
        return qf_err_set(err, -EINVAL, "%s lies in what is exported", export->dir);
    }
    /* Some filesystems have no locks; then it is up to the user. */
    if (flock(export->dir_fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return qf_err_set(err, -EBUSY, "%s: another export writes there", export->dir);
    return 0;
}

static int make_dirs(const struct qf_export *export, struct qf_err *err)
{
    for (size_t i = 0; i < export->dir_count; i++)
        if (mkdirat(export->dir_fd, export->dirs[i], 0777) != 0 && errno != EEXIST)
            return fail(export, err, -errno, export->dirs[i]);
    return 0;
}

int qf_export_state_open(struct qf_export *export, struct qf_err *err)
{
    size_t others;
    int rc = open_dir(export, err);
    if (rc != 0)
        return rc;
    if (faccessat(export->dir_fd, QF_EXPORT_JOURNAL, F_OK, 0) == 0) {
        rc = read_journal(export, err);
    } else {
        rc = clean(export, &others);
        if (rc == 0 && others != 0)
            return qf_err_set(err, -ENOTEMPTY,
                              "%s: not empty, and no interrupted export; name a new "
                              "directory",
                              export->dir);
    }
    if (rc == 0)
        rc = make_journal(export, err);
    if (rc == 0)
        rc = clean(export, &others);
    if (rc != 0)
        return err->text[0] != '\0' ? rc : fail(export, err, rc, "");
    return make_dirs(export, err);
}

static int append_line(const struct qf_export *export, struct qf_buf *line)
{
    int rc =
        line->failed ? -ENOMEM : write_all(export->journal_fd, line->data, line->size);
    qf_buf_fini(line);
    return rc;
}

void qf_export_state_segment(struct qf_export *export,
                             const struct qf_export_file *file, size_t segment)
{
    struct qf_buf line = {0};
    append_segment(file, segment, &line);
    int rc = append_line(export, &line);
    (void)rc; /* the segment would be written again, that is all */
}

int qf_export_state_file(struct qf_export *export, const struct qf_export_file *file)
{
    struct qf_buf line = {0};
    qf_buf_appendf(&line, "file %016" PRIx64 "%016" PRIx64 " ", file->identity.high,
                   file->identity.low);
    qf_buf_append_json(&line, file->path, strlen(file->path));
    qf_buf_append_str(&line, "\n");
    int rc = append_line(export, &line);
    /* The name may not reach the disk before the line that would take it back. */
    return rc == 0 && fdatasync(export->journal_fd) != 0 ? -errno : rc;
}

int qf_export_state_end(struct qf_export *export, struct qf_err *err)
{
    for (size_t i = 0; i < export->dir_count; i++) {
        int fd =
            openat(export->dir_fd, export->dirs[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int rc = fd < 0 || fsync(fd) != 0 ? -errno : 0;
        if (fd >= 0)
            close(fd);
        if (rc != 0)
            return fail(export, err, rc, export->dirs[i]);
    }
    if (unlinkat(export->dir_fd, QF_EXPORT_JOURNAL, 0) != 0 ||
        fsync(export->dir_fd) != 0)
        return fail(export, err, -errno, QF_EXPORT_JOURNAL);
    return 0;
}
