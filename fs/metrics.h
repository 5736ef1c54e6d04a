/* SPDX-License-Identifier: Apache-2.0 */
/* What has been asked for, what failed and how long it took; and MNT/.quantfs/metrics,
 * in the text format of Prometheus (0.0.4). Names and labels are part of the interface.
 * Counting takes no lock. */
#ifndef QF_FS_METRICS_H
#define QF_FS_METRICS_H

#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_catalog;
struct qf_tree_options;

typedef struct qf_metrics qf_metrics;

int qf_metrics_new(qf_metrics **out) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_metrics_free(qf_metrics *metrics);

/* The kind of no request. */
#define QF_METRICS_NONE UINT32_MAX

/* A request under way in the calling thread. */
struct qf_metrics_request {
    uint32_t kind;
    int64_t start_ns;
};

int64_t qf_metrics_now_ns(void);
/* A request with this opcode has been read. It is counted now; what it took is when it
 * ends, unless it is of those that have no reply. */
void qf_metrics_begin(qf_metrics *metrics, uint32_t opcode, int64_t now_ns,
                      struct qf_metrics_request *out);
/* Its reply has been sent; error: an errno, not negative, or 0. Nothing when it has
 * ended already. */
void qf_metrics_end(qf_metrics *metrics, struct qf_metrics_request *request, int error,
                    int64_t now_ns);

/* How the requests that have a reply stand. A thread that waits for one calls
 * qf_metrics_waiting with +1 before and -1 after. */
struct qf_metrics_load {
    uint64_t begun; /* since the start */
    uint64_t ended;
    int64_t waiting; /* threads that would take one up at once */
};
void qf_metrics_waiting(qf_metrics *metrics, int change);
void qf_metrics_load(const qf_metrics *metrics, struct qf_metrics_load *out);

/* Files that are open: +1, -1. */
void qf_metrics_opened(qf_metrics *metrics, int change);
/* Bytes served by others than the engine: a file that passes through, a text. */
void qf_metrics_served_source(qf_metrics *metrics, uint64_t bytes);
void qf_metrics_served_text(qf_metrics *metrics, uint64_t bytes);

void qf_metrics_text(const qf_metrics *metrics, const struct qf_tree_options *options,
                     const struct qf_catalog *catalog, struct qf_buf *out);

#ifdef __cplusplus
}
#endif
#endif
