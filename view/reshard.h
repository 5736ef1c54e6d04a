/* SPDX-License-Identifier: Apache-2.0 */
/* Other shards for the same tensors: the split that save_pretrained(max_shard_size=)
 * makes, except that a quantized weight and its companions (absmax, quant_map,
 * quant_state, SCB, …) are one unit. A loader that reads shard by shard then finds
 * everything that a weight needs in one of them. Pure. */
#ifndef QF_VIEW_RESHARD_H
#define QF_VIEW_RESHARD_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "ckpt/shard.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One tensor of a new shard, in the order of its data. */
struct qf_reshard_tensor {
    uint32_t shard; /* of the old ones */
    const struct qf_tensor *tensor;
    uint64_t off; /* in the new file */
};

struct qf_reshard_file {
    char *header; /* 8 + N bytes; owned */
    size_t header_size;
    uint64_t size;
    size_t tensor_count;
    const struct qf_reshard_tensor *tensors; /* in qf_reshard.tensors */
};

/* Borrows the old shards. */
struct qf_reshard {
    uint64_t tensor_bytes;
    size_t file_count; /* at least 1 */
    struct qf_reshard_file *files;
    size_t tensor_count;
    struct qf_reshard_tensor *tensors;
};

/* Splits: in the order of the old shards, a new one begins where a unit would make the
 * tensors of the last one larger than size_max; a unit that is larger gets a shard of
 * its own. -EBADMSG: a tensor is in two shards; -EFBIG, -ENOMEM. */
int qf_reshard_plan(const struct qf_shard *const *shards, size_t count,
                    uint64_t size_max, struct qf_reshard **out,
                    struct qf_err *err) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_reshard_free(struct qf_reshard *plan);

/* The name of new shard `index`: STEM-00001-of-00003.safetensors, or STEM.safetensors
 * when there is but one. Returns owned, NULL without memory. */
char *qf_reshard_name(const char *stem, size_t index, size_t count);
/* The index of the new shards; `text`: the old one (NULL: there was none). */
int qf_reshard_index(const struct qf_reshard *plan, const char *stem, const char *text,
                     size_t size, struct qf_buf *out) QF_MUST_CHECK;

/* "5GB", "500MB", "1.5GiB", "1000000" in bytes: what transformers and huggingface_hub
 * take, blanks and capitals as they come. -EINVAL, -ERANGE (less than 1, or too much).
 */
int qf_parse_shard_size(const char *text, uint64_t *out) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
