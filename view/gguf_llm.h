/* SPDX-License-Identifier: Apache-2.0 */
/* Language models in GGUF: what llama.cpp calls their tensors and settings. Names and
 * values are those of its convert_hf_to_gguf.py (docs/FORMATS.md section 9). */
#ifndef QF_VIEW_GGUF_LLM_H
#define QF_VIEW_GGUF_LLM_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/json.h"
#include "ckpt/model.h"
#include "ckpt/shard.h"
#include "quant/codec.h"
#include "view/gguf_write.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What of a config decides names and order; qf_gguf_llm_read fills it. */
struct qf_gguf_llm {
    const char *arch; /* "llama", "qwen2", "qwen3" */
    uint32_t heads, kv_heads;
    uint32_t hidden, head_dim;
    uint32_t vocab_size;
    bool tied; /* the output head is the embedding */
};

#define QF_GGUF_NAME_SIZE 64 /* with its NUL: what llama.cpp takes */

/* -ENOTSUP, with the sentence, for what is no llama, mistral, qwen2 or qwen3, or has
 * something that a file cannot say. */
int qf_gguf_llm_read(const qf_json *config, struct qf_gguf_llm *out,
                     struct qf_err *err) QF_MUST_CHECK;
/* The name of a tensor, "" for one that the file leaves out; *heads: of its rows, or 0.
 * -ENOTSUP for a tensor that has none. */
int qf_gguf_llm_name(const struct qf_gguf_llm *llm, const struct qf_tensor *tensor,
                     char out[QF_GGUF_NAME_SIZE], uint32_t *heads,
                     struct qf_err *err) QF_MUST_CHECK;
/* All pairs but the tokenizer's. */
int qf_gguf_llm_pairs(const struct qf_model *model, const struct qf_gguf_llm *llm,
                      enum qf_codec codec, struct qf_gguf_head *head,
                      struct qf_err *err) QF_MUST_CHECK;
/* The tokenizer's pairs (gguf_vocab.c). -ENOTSUP for one that is no byte-level BPE. */
int qf_gguf_vocab_pairs(const struct qf_model *model, const struct qf_gguf_llm *llm,
                        struct qf_gguf_head *head, struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
