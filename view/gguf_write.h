/* SPDX-License-Identifier: Apache-2.0 */
/* The head of a GGUF file (version 3): key-value pairs, then what tensors there are and
 * where. Little-endian, as all that is here. */
#ifndef QF_VIEW_GGUF_WRITE_H
#define QF_VIEW_GGUF_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where data and tensors begin. */
#define QF_GGUF_ALIGN 32u

/* Numbers that the format gives to types of values. */
enum qf_gguf_value {
    QF_GGUF_U32 = 4,
    QF_GGUF_I32 = 5,
    QF_GGUF_F32 = 6,
    QF_GGUF_BOOL = 7,
    QF_GGUF_STRING = 8,
    QF_GGUF_ARRAY = 9
};

/* Zeroed is empty; allocation failures stick in the buffers. */
struct qf_gguf_head {
    struct qf_buf pairs;
    uint64_t pair_count;
    struct qf_buf tensors;
    uint64_t tensor_count;
    uint64_t data_size; /* of the tensors so far, each padded */
};

void qf_gguf_head_fini(struct qf_gguf_head *head);

void qf_gguf_add_u32(struct qf_gguf_head *head, const char *key, uint32_t value);
void qf_gguf_add_f32(struct qf_gguf_head *head, const char *key, float value);
void qf_gguf_add_bool(struct qf_gguf_head *head, const char *key, bool value);
void qf_gguf_add_string(struct qf_gguf_head *head, const char *key, const char *text);
void qf_gguf_add_text(struct qf_gguf_head *head, const char *key, const char *text,
                      size_t size);
/* Begins an array of `count` values, which are then put one by one. */
void qf_gguf_begin_array(struct qf_gguf_head *head, const char *key,
                         enum qf_gguf_value type, uint64_t count);
void qf_gguf_put_string(struct qf_gguf_head *head, const char *text, size_t size);
void qf_gguf_put_i32(struct qf_gguf_head *head, int32_t value);

/* A tensor of `size` bytes behind those that are there; shape: outermost first, as
 * torch has it (rank 0 counts as [1]). Returns where it begins, from the first tensor's
 * byte. */
uint64_t qf_gguf_add_tensor(struct qf_gguf_head *head, const char *name, uint32_t rank,
                            const uint64_t *shape, uint32_t type, uint64_t size);
/* All of it, padded, which empties it; owned. NULL: no memory. */
char *qf_gguf_finish(struct qf_gguf_head *head, size_t *size);

#ifdef __cplusplus
}
#endif
#endif
