/* SPDX-License-Identifier: Apache-2.0 */
#include "view/gguf_write.h"

#include <string.h>

#define VERSION 3u

static void put_u32(struct qf_buf *buf, uint32_t value)
{
    qf_buf_append(buf, &value, sizeof value);
}

static void put_u64(struct qf_buf *buf, uint64_t value)
{
    qf_buf_append(buf, &value, sizeof value);
}

static void put_text(struct qf_buf *buf, const char *text, size_t size)
{
    put_u64(buf, size);
    qf_buf_append(buf, text, size);
}

static uint64_t padding(uint64_t size)
{
    return (QF_GGUF_ALIGN - size % QF_GGUF_ALIGN) % QF_GGUF_ALIGN;
}

void qf_gguf_head_fini(struct qf_gguf_head *head)
{
    qf_buf_fini(&head->pairs);
    qf_buf_fini(&head->tensors);
}

static void begin_pair(struct qf_gguf_head *head, const char *key,
                       enum qf_gguf_value type)
{
    head->pair_count++;
    put_text(&head->pairs, key, strlen(key));
    put_u32(&head->pairs, (uint32_t)type);
}

void qf_gguf_add_u32(struct qf_gguf_head *head, const char *key, uint32_t value)
{
    begin_pair(head, key, QF_GGUF_U32);
    put_u32(&head->pairs, value);
}

void qf_gguf_add_f32(struct qf_gguf_head *head, const char *key, float value)
{
    begin_pair(head, key, QF_GGUF_F32);
    qf_buf_append(&head->pairs, &value, sizeof value);
}

void qf_gguf_add_bool(struct qf_gguf_head *head, const char *key, bool value)
{
    begin_pair(head, key, QF_GGUF_BOOL);
    qf_buf_append(&head->pairs, value ? "\1" : "\0", 1);
}

void qf_gguf_add_text(struct qf_gguf_head *head, const char *key, const char *text,
                      size_t size)
{
    begin_pair(head, key, QF_GGUF_STRING);
    put_text(&head->pairs, text, size);
}

void qf_gguf_add_string(struct qf_gguf_head *head, const char *key, const char *text)
{
    qf_gguf_add_text(head, key, text, strlen(text));
}

void qf_gguf_begin_array(struct qf_gguf_head *head, const char *key,
                         enum qf_gguf_value type, uint64_t count)
{
    begin_pair(head, key, QF_GGUF_ARRAY);
    put_u32(&head->pairs, (uint32_t)type);
    put_u64(&head->pairs, count);
}

void qf_gguf_put_string(struct qf_gguf_head *head, const char *text, size_t size)
{
    put_text(&head->pairs, text, size);
}

void qf_gguf_put_i32(struct qf_gguf_head *head, int32_t value)
{
    qf_buf_append(&head->pairs, &value, sizeof value);
}

uint64_t qf_gguf_add_tensor(struct qf_gguf_head *head, const char *name, uint32_t rank,
                            const uint64_t *shape, uint32_t type, uint64_t size)
{
    static const uint64_t scalar[] = {1};
    uint64_t off = head->data_size;
    if (rank == 0) {
        rank = 1;
        shape = scalar;
    }
    put_text(&head->tensors, name, strlen(name));
    put_u32(&head->tensors, rank);
    for (uint32_t i = rank; i-- > 0;) /* innermost first */
        put_u64(&head->tensors, shape[i]);
    put_u32(&head->tensors, type);
    put_u64(&head->tensors, off);
    head->tensor_count++;
    head->data_size += size + padding(size);
    return off;
}

char *qf_gguf_finish(struct qf_gguf_head *head, size_t *size)
{
    struct qf_buf all = {0};
    qf_buf_append_str(&all, "GGUF");
    put_u32(&all, VERSION);
    put_u64(&all, head->tensor_count);
    put_u64(&all, head->pair_count);
    qf_buf_append(&all, head->pairs.data, head->pairs.size);
    qf_buf_append(&all, head->tensors.data, head->tensors.size);
    qf_buf_append_fill(&all, '\0', (size_t)padding(all.size));
    all.failed = all.failed || head->pairs.failed || head->tensors.failed;
    qf_gguf_head_fini(head);
    if (!all.failed)
        return qf_buf_take(&all, size);
    qf_buf_fini(&all);
    return NULL;
}
