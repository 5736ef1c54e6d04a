/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/warm.h"

struct sums {
    uint64_t shards, bytes;
    struct qf_source_counts counts;
};

static struct sums sum(const struct qf_warm *warm)
{
    struct sums all = {0};
    for (size_t i = 0; i < warm->model_count; i++) {
        const struct qf_warm_model *model = &warm->models[i];
        all.shards += model->shard_count;
        all.bytes += model->bytes;
        all.counts.chunks_encoded += model->counts.chunks_encoded;
        all.counts.cache_hits += model->counts.cache_hits;
        all.counts.evictions += model->counts.evictions;
        all.counts.dropped += model->counts.dropped;
    }
    return all;
}

static void append_numbers(struct qf_buf *out, uint64_t shards, uint64_t bytes,
                           const struct qf_source_counts *counts, double seconds)
{
    qf_buf_appendf(out,
                   "\"shards\": %" PRIu64 ", \"bytes\": %" PRIu64
                   ", \"chunks_encoded\": %" PRIu64 ", \"cache_hits\": %" PRIu64
                   ", \"cache_evictions\": %" PRIu64
                   ", \"cache_puts_dropped\": %" PRIu64 ", \"seconds\": %.3f",
                   shards, bytes, counts->chunks_encoded, counts->cache_hits,
                   counts->evictions, counts->dropped, seconds);
}

void qf_warm_json(const struct qf_warm *warm, double seconds, struct qf_buf *out)
{
    struct sums all = sum(warm);
    qf_buf_append_str(out, "{");
    append_numbers(out, all.shards, all.bytes, &all.counts, seconds);
    qf_buf_appendf(out, ", \"interrupted\": %s,\n \"models\": [",
                   atomic_load(warm->stop) != 0 ? "true" : "false");
    for (size_t i = 0; i < warm->model_count; i++) {
        const struct qf_warm_model *model = &warm->models[i];
        uint64_t sealed = 0;
        for (size_t k = 0; k < model->shard_count; k++)
            sealed += model->shards[k].sealed;
        qf_buf_append_str(out, i != 0 ? ",\n  {\"path\": " : "\n  {\"path\": ");
        qf_buf_append_json(out, model->path, strlen(model->path));
        qf_buf_appendf(out, ", \"view\": \"%s\", \"sealed_shards\": %" PRIu64 ", ",
                       model->view, sealed);
        append_numbers(out, model->shard_count, model->bytes, &model->counts,
                       model->seconds);
        qf_buf_append_str(out, "}");
    }
    qf_buf_append_str(out, "],\n \"errors\": [");
    for (size_t i = 0; i < warm->trouble_count; i++) {
        const struct qf_warm_trouble *trouble = &warm->troubles[i];
        const char *path = trouble->path != NULL ? trouble->path : "";
        const char *what = strerror(-trouble->rc);
        qf_buf_append_str(out, i != 0 ? ",\n  {\"file\": " : "\n  {\"file\": ");
        qf_buf_append_json(out, path, strlen(path));
        qf_buf_append_str(out, ", \"error\": ");
        qf_buf_append_json(out, what, strlen(what));
        qf_buf_append_str(out, "}");
    }
    qf_buf_append_str(out, "]}\n");
}

void qf_warm_text(const struct qf_warm *warm, double seconds, struct qf_buf *out)
{
    struct sums all = sum(warm);
    qf_buf_appendf(out,
                   "%" PRIu64 " shards, %s in %.1f s; %" PRIu64
                   " chunks encoded, %" PRIu64 " records found in the cache\n",
                   all.shards, qf_bytes_text(all.bytes).text, seconds,
                   all.counts.chunks_encoded, all.counts.cache_hits);
    if (all.counts.evictions != 0 || all.counts.dropped != 0)
        qf_buf_appendf(out,
                       "the cache is too small or its disk too slow: %" PRIu64
                       " entries evicted, %" PRIu64 " not kept\n",
                       all.counts.evictions, all.counts.dropped);
}
