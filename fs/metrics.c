/* SPDX-License-Identifier: Apache-2.0 */
/* Every counter is an atomic of its own: a text that is made meanwhile may see one of
 * two that belong together, which a scraper takes as a moment earlier or later. Only
 * within a histogram that would be wrong, so _count is the sum of what was printed.
 *
 * What a request took is counted when its reply has been written, for copying the bytes
 * to the kernel is much of a read. Requests that are under way are therefore in
 * quantfs_requests_total and not yet in the histograms. */
#include "fs/metrics.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ckpt/printable.h"
#include "fs/tree.h"

/* Errnos of Linux end below. */
#define ERRNO_COUNT  134u
#define BUCKET_COUNT 19u
#define NS_PER_S     INT64_C(1000000000)

enum { KIND_LOOKUP, KIND_OPEN, KIND_READ, KIND_TIMED_COUNT };

/* By opcode (include/uapi/linux/fuse.h). The first ones have a histogram, the last one
 * stands for every other opcode. */
static const struct kind {
    uint32_t opcode;
    const char *name;
    bool no_reply;
} kinds[] = {
    [KIND_LOOKUP] = {1, "lookup", false},
    [KIND_OPEN] = {14, "open", false},
    [KIND_READ] = {15, "read", false},
    {2, "forget", true},
    {42, "batch_forget", true},
    {3, "getattr", false},
    {18, "release", false},
    {25, "flush", false},
    {27, "opendir", false},
    {28, "readdir", false},
    {44, "readdirplus", false},
    {29, "releasedir", false},
    {17, "statfs", false},
    {22, "getxattr", false},
    {23, "listxattr", false},
    {26, "init", false},
    {36, "interrupt", true},
    {0, "other", false},
};

#define KIND_COUNT (sizeof kinds / sizeof *kinds)
#define KIND_NONE  QF_METRICS_NONE

/* Upper bounds in nanoseconds, and as they are printed. */
static const struct bound {
    int64_t ns;
    const char *text;
} bounds[BUCKET_COUNT] = {
    {10000, "1e-05"},    {20000, "2e-05"},    {50000, "5e-05"},      {100000, "0.0001"},
    {200000, "0.0002"},  {500000, "0.0005"},  {1000000, "0.001"},    {2000000, "0.002"},
    {5000000, "0.005"},  {10000000, "0.01"},  {20000000, "0.02"},    {50000000, "0.05"},
    {100000000, "0.1"},  {200000000, "0.2"},  {500000000, "0.5"},    {NS_PER_S, "1"},
    {2 * NS_PER_S, "2"}, {5 * NS_PER_S, "5"}, {10 * NS_PER_S, "10"},
};

struct histogram {
    _Atomic uint64_t buckets[BUCKET_COUNT + 1]; /* each by itself; the last: longer */
    _Atomic uint64_t sum_ns;
};

struct qf_metrics {
    _Atomic uint64_t requests[KIND_COUNT];
    _Atomic uint64_t errors[KIND_COUNT][ERRNO_COUNT];
    struct histogram took[KIND_TIMED_COUNT];
    _Atomic uint64_t begun, ended; /* of those that have a reply */
    _Atomic int64_t waiting;
    _Atomic int64_t open_files;
    _Atomic uint64_t bytes_source, bytes_text;
};

int qf_metrics_new(qf_metrics **out)
{
    *out = calloc(1, sizeof **out);
    return *out != NULL ? 0 : -ENOMEM;
}

void qf_metrics_free(qf_metrics *metrics)
{
    free(metrics);
}

/* ---- counting ---- */

static void add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static uint64_t load(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

int64_t qf_metrics_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

void qf_metrics_begin(qf_metrics *metrics, uint32_t opcode, int64_t now_ns,
                      struct qf_metrics_request *out)
{
    unsigned kind = 0;
    while (kind < KIND_COUNT - 1 && kinds[kind].opcode != opcode)
        kind++;
    add(&metrics->requests[kind], 1);
    out->kind = kinds[kind].no_reply ? KIND_NONE : kind;
    out->start_ns = now_ns;
    if (out->kind != KIND_NONE)
        add(&metrics->begun, 1);
}

static void observe(struct histogram *histogram, int64_t ns)
{
    if (ns < 0)
        ns = 0;
    unsigned bucket = 0;
    while (bucket < BUCKET_COUNT && ns > bounds[bucket].ns)
        bucket++;
    add(&histogram->buckets[bucket], 1);
    add(&histogram->sum_ns, (uint64_t)ns);
}

void qf_metrics_end(qf_metrics *metrics, struct qf_metrics_request *request, int error,
                    int64_t now_ns)
{
    unsigned kind = request->kind;
    assert(error >= 0);
    request->kind = KIND_NONE;
    if (kind >= KIND_COUNT)
        return;
    add(&metrics->ended, 1);
    if (error != 0)
        add(&metrics->errors[kind][(unsigned)error < ERRNO_COUNT ? error : EIO], 1);
    if (kind < KIND_TIMED_COUNT)
        observe(&metrics->took[kind], now_ns - request->start_ns);
}

void qf_metrics_waiting(qf_metrics *metrics, int change)
{
    atomic_fetch_add_explicit(&metrics->waiting, change, memory_order_relaxed);
}

void qf_metrics_load(const qf_metrics *metrics, struct qf_metrics_load *out)
{
    /* In this order: never more ended than begun. */
    out->ended = atomic_load(&metrics->ended);
    out->begun = atomic_load(&metrics->begun);
    out->waiting = atomic_load(&metrics->waiting);
}

void qf_metrics_opened(qf_metrics *metrics, int change)
{
    atomic_fetch_add_explicit(&metrics->open_files, change, memory_order_relaxed);
}

void qf_metrics_served_source(qf_metrics *metrics, uint64_t bytes)
{
    add(&metrics->bytes_source, bytes);
}

void qf_metrics_served_text(qf_metrics *metrics, uint64_t bytes)
{
    add(&metrics->bytes_text, bytes);
}

/* ---- the text ---- */

static void family(struct qf_buf *out, const char *name, const char *type,
                   const char *help)
{
    qf_buf_appendf(out, "# HELP quantfs_%s %s\n# TYPE quantfs_%s %s\n", name, help,
                   name, type);
}

static void sample(struct qf_buf *out, const char *name, uint64_t value)
{
    qf_buf_appendf(out, "quantfs_%s %" PRIu64 "\n", name, value);
}

static void labelled(struct qf_buf *out, const char *name, const char *label,
                     const char *is, uint64_t value)
{
    qf_buf_appendf(out, "quantfs_%s{%s=\"%s\"} %" PRIu64 "\n", name, label, is, value);
}

static void single(struct qf_buf *out, const char *name, const char *type,
                   const char *help, uint64_t value)
{
    family(out, name, type, help);
    sample(out, name, value);
}

/* A label's value: what is not UTF-8 or a control is '?' already. */
static void append_escaped(struct qf_buf *out, const char *text)
{
    struct qf_printable printable = qf_printable(text);
    for (const char *p = printable.text; *p != '\0'; p++) {
        if (*p == '\\' || *p == '"')
            qf_buf_append(out, "\\", 1);
        qf_buf_append(out, p, 1);
    }
}

static void build_text(const struct qf_tree_options *options, struct qf_buf *out)
{
    family(out, "build_info", "gauge", "What serves which store.");
    qf_buf_append_str(out, "quantfs_build_info{version=\"");
    append_escaped(out, QUANTFS_VERSION);
    qf_buf_append_str(out, "\",store=\"");
    append_escaped(out, qf_root_path(options->root));
    qf_buf_append_str(out, "\",cache=\"");
    append_escaped(out, options->store->ops->name);
    qf_buf_append_str(out, "\"} 1\n");
}

static const char *errno_name(unsigned error, char out[16])
{
    const char *name = strerrorname_np((int)error);
    snprintf(out, 16, "%u", error);
    return name != NULL ? name : out;
}

static void requests_text(const qf_metrics *metrics, struct qf_buf *out)
{
    char number[16];
    family(out, "requests_total", "counter", "Requests of the kernel.");
    for (unsigned k = 0; k < KIND_COUNT; k++)
        labelled(out, "requests_total", "kind", kinds[k].name,
                 load(&metrics->requests[k]));
    family(out, "request_errors_total", "counter", "Requests answered with an error.");
    for (unsigned k = 0; k < KIND_COUNT; k++)
        for (unsigned e = 1; e < ERRNO_COUNT; e++)
            if (load(&metrics->errors[k][e]) != 0)
                qf_buf_appendf(
                    out,
                    "quantfs_request_errors_total{kind=\"%s\",errno=\"%s\"} %" PRIu64
                    "\n",
                    kinds[k].name, errno_name(e, number), load(&metrics->errors[k][e]));
}

static void histogram_text(const struct histogram *histogram, const char *kind,
                           struct qf_buf *out)
{
    uint64_t count = 0, sum_ns = load(&histogram->sum_ns);
    for (unsigned b = 0; b <= BUCKET_COUNT; b++) {
        count += load(&histogram->buckets[b]);
        qf_buf_appendf(out,
                       "quantfs_request_seconds_bucket{kind=\"%s\",le=\"%s\"} %" PRIu64
                       "\n",
                       kind, b < BUCKET_COUNT ? bounds[b].text : "+Inf", count);
    }
    qf_buf_appendf(out,
                   "quantfs_request_seconds_sum{kind=\"%s\"} %" PRIu64 ".%09" PRIu64
                   "\nquantfs_request_seconds_count{kind=\"%s\"} %" PRIu64 "\n",
                   kind, sum_ns / NS_PER_S, sum_ns % NS_PER_S, kind, count);
}

static void chunks_text(const struct qf_engine_stats *engine, struct qf_buf *out)
{
    static const char name[] = "chunks_encoded_total";
    uint64_t all = engine->chunks_encoded, device = engine->backend.device_chunks;
    family(out, name, "counter", "Chunks encoded.");
    if (engine->backend.fallback_name == NULL) {
        labelled(out, name, "backend", engine->backend_name, all);
    } else {
        labelled(out, name, "backend", engine->backend_name, device);
        labelled(out, name, "backend", engine->backend.fallback_name,
                 all > device ? all - device : 0);
    }
    single(out, "chunks_prefetched_total", "counter",
           "Of those: encoded before a reader asked.", engine->chunks_prefetched);
    family(out, "chunks", "gauge", "Chunks under way.");
    labelled(out, "chunks", "state", "queued", engine->chunks_queued);
    labelled(out, "chunks", "state", "encoding", engine->chunks_encoding);
    single(out, "readers_waiting", "gauge",
           "Readers that wait for a chunk that somebody else encodes.",
           engine->readers_waiting);
    single(out, "storing_bytes", "gauge", "Bytes on their way to the cache.",
           engine->storing_bytes);
    single(out, "source_bytes_read_total", "counter", "Bytes of weights read.",
           engine->source_bytes_read);
    single(out, "memory_used_bytes", "gauge", "Memory of records.",
           engine->memory_used);
    single(out, "memory_peak_bytes", "gauge", "The most that was.",
           engine->memory_peak);
    single(out, "memory_limit_bytes", "gauge", "What -o memory= allows.",
           engine->memory_limit);
}

/* The engine's counts: the store's own have every look of a record's makers, too. */
static void hits_text(const struct qf_engine_stats *engine, struct qf_buf *out)
{
    single(out, "cache_hits_total", "counter", "Records found in the cache.",
           engine->cache_hits);
    single(out, "cache_misses_total", "counter", "Records that were not there.",
           engine->cache_misses);
}

static void served_text(const qf_metrics *metrics, const struct qf_engine_stats *engine,
                        struct qf_buf *out)
{
    static const char name[] = "bytes_served_total";
    family(out, name, "counter",
           "Bytes of replies, by where they were; not those the kernel reads itself.");
    labelled(out, name, "from", "memory",
             engine->bytes_memory + load(&metrics->bytes_text));
    labelled(out, name, "from", "cache", engine->bytes_cache);
    labelled(out, name, "from", "encoded", engine->bytes_encoded);
    labelled(out, name, "from", "source",
             engine->bytes_source + load(&metrics->bytes_source));
    labelled(out, name, "from", "sealed", engine->sealed_bytes);
}

static void cache_text(const struct qf_store_stats *store, struct qf_buf *out)
{
    single(out, "cache_bytes", "gauge", "Size of the cache.", store->bytes);
    single(out, "cache_limit_bytes", "gauge", "The most that it may have.",
           store->bytes_limit);
    single(out, "cache_entries", "gauge", "Values in the cache.", store->entries);
    single(out, "cache_files", "gauge", "Sealed shards in the cache.", store->files);
    single(out, "cache_file_bytes", "gauge", "Size of those.", store->file_bytes);
    single(out, "cache_puts_total", "counter", "Values handed over.", store->puts);
    single(out, "cache_puts_dropped_total", "counter", "Of those not kept.",
           store->puts_dropped);
    single(out, "cache_evictions_total", "counter", "Values and files evicted.",
           store->evictions);
    single(out, "cache_damaged_total", "counter",
           "Values and files that were not what was written.", store->damaged);
}

void qf_metrics_text(const qf_metrics *metrics, const struct qf_tree_options *options,
                     const struct qf_catalog *catalog, struct qf_buf *out)
{
    struct qf_engine_stats engine;
    struct qf_store_stats store;
    struct qf_catalog_stats models;
    qf_engine_stats(options->engine, &engine);
    qf_store_stats(options->store, &store);
    qf_catalog_stats(catalog, &models);
    int64_t open_files =
        atomic_load_explicit(&metrics->open_files, memory_order_relaxed);
    build_text(options, out);
    requests_text(metrics, out);
    family(out, "request_seconds", "histogram",
           "Time from a request to its answer, copying included.");
    for (unsigned k = 0; k < KIND_TIMED_COUNT; k++)
        histogram_text(&metrics->took[k], kinds[k].name, out);
    single(out, "open_files", "gauge", "Files open now.",
           open_files > 0 ? (uint64_t)open_files : 0);
    single(out, "passthrough_opens_total", "counter",
           "Opens of files that the kernel reads itself.",
           options->passthrough != NULL ? qf_passthrough_opens(options->passthrough)
                                        : 0);
    single(out, "models_loaded_total", "counter", "Model directories read.",
           models.models_loaded);
    single(out, "header_bytes_read_total", "counter", "Bytes of headers read.",
           models.header_bytes_read);
    served_text(metrics, &engine, out);
    chunks_text(&engine, out);
    single(out, "shards_sealed_total", "counter", "Shards sealed by this mount.",
           engine.shards_sealed);
    hits_text(&engine, out);
    cache_text(&store, out);
}
