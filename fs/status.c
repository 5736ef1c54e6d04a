/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/status.h"

#include <inttypes.h>
#include <unistd.h>

static void line(struct qf_buf *out, const char *key, uint64_t value)
{
    qf_buf_appendf(out, "%s=%" PRIu64 "\n", key, value);
}

static void passthrough(struct qf_buf *out, qf_passthrough *pt)
{
    qf_buf_append_str(out, "passthrough=");
    if (pt != NULL)
        qf_passthrough_describe(pt, out);
    else
        qf_buf_append_str(out, "off");
    qf_buf_append_str(out, "\n");
    line(out, "opens_passthrough", pt != NULL ? qf_passthrough_opens(pt) : 0);
}

void qf_status_text(const struct qf_tree_options *options, const qf_catalog *catalog,
                    struct qf_buf *out)
{
    struct qf_engine_stats engine;
    struct qf_store_stats store;
    struct qf_catalog_stats models;
    qf_engine_stats(options->engine, &engine);
    qf_store_stats(options->store, &store);
    qf_catalog_stats(catalog, &models);
    qf_buf_appendf(out, "version=%s\npid=%d\nstore=%s\nviews=", QUANTFS_VERSION,
                   (int)getpid(), qf_root_path(options->root));
    for (size_t i = 0; i < options->view_count; i++) {
        qf_buf_append_str(out, i != 0 ? ":" : "");
        qf_view_append_listed(&options->views[i], out);
    }
    qf_buf_append_str(out, "\n");
    line(out, "models_loaded", models.models_loaded);
    line(out, "header_bytes_read", models.header_bytes_read);
    line(out, "chunks_encoded", engine.chunks_encoded);
    line(out, "chunks_prefetched", engine.chunks_prefetched);
    line(out, "device_chunks", engine.backend.device_chunks);
    line(out, "device_fallback_chunks", engine.backend.fallback_chunks);
    line(out, "device_failures", engine.backend.device_failures);
    line(out, "seals", engine.seals);
    line(out, "source_bytes_read", engine.source_bytes_read);
    line(out, "cache_hits", engine.cache_hits);
    line(out, "cache_misses", engine.cache_misses);
    line(out, "bytes_served", engine.bytes_served);
    line(out, "read_errors", engine.read_errors);
    line(out, "sealed_reads", engine.sealed_reads);
    line(out, "sealed_bytes_served", engine.sealed_bytes);
    line(out, "shards_sealed_here", engine.shards_sealed);
    line(out, "memory_used", engine.memory_used);
    line(out, "memory_peak", engine.memory_peak);
    line(out, "chunks_queued", engine.chunks_queued);
    line(out, "chunks_encoding", engine.chunks_encoding);
    line(out, "storing_bytes", engine.storing_bytes);
    qf_buf_appendf(out, "cache=%s\n", options->store->ops->name);
    line(out, "cache_entries", store.entries);
    line(out, "cache_bytes", store.bytes);
    line(out, "cache_bytes_limit", store.bytes_limit);
    line(out, "cache_puts", store.puts);
    line(out, "cache_puts_dropped", store.puts_dropped);
    line(out, "cache_evictions", store.evictions);
    line(out, "cache_damaged", store.damaged);
    line(out, "shards_sealed", store.files);
    line(out, "sealed_bytes", store.file_bytes);
    passthrough(out, options->passthrough);
}
