/* SPDX-License-Identifier: Apache-2.0 */
/* mount(8)'s helper for the types quantfs and fuse.quantfs: `mount -t quantfs STORE MNT
 * -o …` and lines of fstab come here. A program of its own because mount(8)'s -f means
 * "fake" and the daemon's "foreground". Options are handed on as they come: which of
 * them are fstab's alone is in the daemon's table (fs/opts.c), for there are roads to
 * it that do not lead through here. Runs as whoever calls mount(8), which has given up
 * its rights before. */
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"

/* mount(8)'s exit codes; the others are those of `quantfs mount`. */
#define EXIT_USAGE  1
#define EXIT_SYSTEM 2

#define LISTS_MAX   16

struct request {
    const char *store;
    const char *mountpoint;
    const char *lists[LISTS_MAX]; /* of -o */
    size_t list_count;
    const char *namespace; /* NULL: ours */
    bool fake;
    bool sloppy;
    bool verbose;
};

static const char usage[] =
    "usage: mount.quantfs STORE MNT [-fnsv] [-N NAMESPACE] [-o LIST] [-t TYPE]\n"
    "\n"
    "Called by mount(8) for the types quantfs and fuse.quantfs.\n"
    "\n"
    "  -o LIST       options of quantfs mount, and those of mount(8) and fstab\n"
    "  -f            fake: look at the options and directories, mount nothing\n"
    "  -s            sloppy: do not mind options that are unknown\n"
    "  -n            taken, there is no mtab to be written\n"
    "  -v            print the command that is run\n"
    "  -N NAMESPACE  mount in this namespace (its file in /proc)\n"
    "  -t TYPE       taken\n"
    "\n"
    "exit codes: those of mount(8)\n";

static int wrong(const char *what, const char *word)
{
    fprintf(stderr, "mount.quantfs: %s%s%s%s\n%s", what, word != NULL ? " '" : "",
            word != NULL ? word : "", word != NULL ? "'" : "", usage);
    return EXIT_USAGE;
}

/* 0, or the exit code. */
static int take(struct request *r, int option, const char *word)
{
    switch (option) {
    case 'f':
        r->fake = true;
        return 0;
    case 's':
        r->sloppy = true;
        return 0;
    case 'v':
        r->verbose = true;
        return 0;
    case 'n':
    case 't':
        return 0;
    case 'N':
        r->namespace = optarg;
        return 0;
    case 'o':
        if (r->list_count == LISTS_MAX)
            return wrong("too many times -o", NULL);
        r->lists[r->list_count++] = optarg;
        return 0;
    default:
        return wrong("unknown or incomplete option", word);
    }
}

/* -1, or the exit code. */
static int parse(struct request *r, int argc, char **argv)
{
    static const struct option names[] = {{"help", no_argument, NULL, 'h'},
                                          {"version", no_argument, NULL, 'V'},
                                          {0}};
    int c;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "fnsvVhN:o:t:", names, NULL)) != -1) {
        if (c == 'h' || c == 'V') {
            fputs(c == 'h' ? usage : "mount.quantfs " QUANTFS_VERSION "\n", stdout);
            return 0;
        }
        int code = take(r, c, argv[optind - 1]);
        if (code != 0)
            return code;
    }
    if (argc - optind != 2)
        return wrong("a store and a mountpoint are needed", NULL);
    r->store = argv[optind];
    r->mountpoint = argv[optind + 1];
    return -1;
}

static int enter(const char *namespace)
{
    int fd = open(namespace, O_RDONLY | O_CLOEXEC);
    int rc = fd < 0 || setns(fd, CLONE_NEWNS) != 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return rc;
}

/* As it is installed, ../bin/quantfs seen from here; false: look in PATH. */
static bool find_beside(char path[PATH_MAX])
{
    static const char rest[] = "/bin/quantfs";
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - sizeof rest);
    if (n < 0)
        return false;
    path[n] = '\0';
    for (int i = 0; i < 2; i++) {
        char *slash = strrchr(path, '/');
        if (slash == NULL)
            return false;
        *slash = '\0';
    }
    strcat(path, rest);
    return access(path, X_OK) == 0;
}

static int run(const struct request *r)
{
    char beside[PATH_MAX];
    const char *args[2 * LISTS_MAX + 9] = {find_beside(beside) ? beside : "quantfs",
                                           "mount"};
    size_t n = 2;
    if (r->fake)
        args[n++] = "--dry-run";
    if (r->sloppy) { /* counts for what follows it */
        args[n++] = "-o";
        args[n++] = "sloppy";
    }
    for (size_t i = 0; i < r->list_count; i++) {
        args[n++] = "-o";
        args[n++] = r->lists[i];
    }
    args[n++] = "--";
    args[n++] = r->store;
    args[n++] = r->mountpoint;
    for (size_t i = 0; i < n && r->verbose; i++)
        printf("%s%s", args[i], i + 1 < n ? " " : "\n");
    fflush(stdout);
    execvp(args[0], (char *const *)(const void *)args);
    fprintf(stderr, "mount.quantfs: %s: %s (is quantfs installed?)\n", args[0],
            strerror(errno));
    return EXIT_SYSTEM;
}

int main(int argc, char **argv)
{
    struct request request = {0};
    int code = parse(&request, argc, argv);
    if (code >= 0)
        return code;
    int rc = request.namespace != NULL ? enter(request.namespace) : 0;
    if (rc != 0) {
        fprintf(stderr, "mount.quantfs: namespace %s: %s\n", request.namespace,
                strerror(-rc));
        return EXIT_SYSTEM;
    }
    return run(&request);
}
