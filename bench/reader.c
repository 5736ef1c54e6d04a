/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a file once and prints the seconds that it took, opening included. The bytes go
 * to a buffer that stays in the processor's cache, so that what is measured is the
 * file.
 *
 *   qf_bench_reader read|map FILE [streams]
 *
 * read: read() of 1 MiB at a time. map: memcpy out of a mapping. With n streams n
 * threads take a contiguous share each. */
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define STEP        ((size_t)1 << 20)
#define STREAMS_MAX 16

struct stream {
    const char *path;
    const char *map; /* or NULL: read() */
    size_t off, end;
    bool failed;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void read_all(struct stream *s, char *buffer)
{
    int fd = open(s->path, O_RDONLY | O_CLOEXEC);
    s->failed = fd < 0;
    while (!s->failed && s->off < s->end) {
        size_t want = s->end - s->off < STEP ? s->end - s->off : STEP;
        ssize_t n = pread(fd, buffer, want, (off_t)s->off);
        s->failed = n <= 0;
        s->off += n > 0 ? (size_t)n : 0;
    }
    if (fd >= 0)
        close(fd);
}

static void copy_all(struct stream *s, char *buffer)
{
    for (; s->off < s->end; s->off += STEP)
        memcpy(buffer, s->map + s->off,
               s->end - s->off < STEP ? s->end - s->off : STEP);
}

static void *run(void *arg)
{
    struct stream *s = arg;
    char *buffer = malloc(STEP);
    s->failed = buffer == NULL;
    if (!s->failed && s->map != NULL)
        copy_all(s, buffer);
    else if (!s->failed)
        read_all(s, buffer);
    free(buffer);
    return NULL;
}

static bool run_streams(const char *path, const char *map, size_t size, size_t count)
{
    struct stream streams[STREAMS_MAX];
    pthread_t threads[STREAMS_MAX];
    bool failed = false;
    size_t share = (size / count / STEP + 1) * STEP;
    for (size_t i = 0; i < count; i++) {
        size_t off = i * share < size ? i * share : size;
        size_t end = off + share < size ? off + share : size;
        streams[i] = (struct stream){path, map, off, end, false};
        if (pthread_create(&threads[i], NULL, run, &streams[i]) != 0)
            return false;
    }
    for (size_t i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        failed |= streams[i].failed;
    }
    return !failed;
}

int main(int argc, char **argv)
{
    size_t count = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    bool mapped = argc > 1 && strcmp(argv[1], "map") == 0;
    if (argc < 3 || (!mapped && strcmp(argv[1], "read") != 0) || count < 1 ||
        count > STREAMS_MAX) {
        fprintf(stderr, "usage: qf_bench_reader read|map FILE [streams 1-16]\n");
        return 2;
    }
    double start = now();
    struct stat st;
    int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) {
        perror(argv[2]);
        return 1;
    }
    void *map = NULL;
    if (mapped) {
        map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            perror("mmap");
            return 1;
        }
    }
    if (!run_streams(argv[2], map, (size_t)st.st_size, count)) {
        fprintf(stderr, "%s: cannot be read\n", argv[2]);
        return 1;
    }
    printf("%.6f\n", now() - start);
    return 0;
}
