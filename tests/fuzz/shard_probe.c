/* SPDX-License-Identifier: Apache-2.0 */
/* Says what qf_shard_parse makes of files, for diff_safetensors.py. Input: u32 size and
 * the bytes of a file, again and again; output: one line each, "ok" and the tensors as
 * JSON, or "no" and the sentence. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/bytes.h"
#include "ckpt/shard.h"

static void print_shard(const struct qf_shard *shard)
{
    struct qf_buf out = {0};
    for (size_t i = 0; i < shard->tensor_count; i++) {
        const struct qf_tensor *t = &shard->tensors[i];
        qf_buf_append_str(&out, i > 0 ? ",[" : "[");
        qf_buf_append_json(&out, t->name, strlen(t->name));
        qf_buf_appendf(&out, ",\"%s\",[", qf_dtype_name(t->dtype));
        for (uint32_t d = 0; d < t->rank; d++)
            qf_buf_appendf(&out, "%s%llu", d > 0 ? "," : "",
                           (unsigned long long)t->shape[d]);
        qf_buf_appendf(&out, "],%llu,%llu]",
                       (unsigned long long)(t->off - shard->data_off),
                       (unsigned long long)t->size);
    }
    qf_buf_append_str(&out, "],{");
    for (size_t i = 0; i < shard->metadata_count; i++) {
        qf_buf_append_str(&out, i > 0 ? "," : "");
        qf_buf_append_json(&out, shard->metadata[i].key,
                           strlen(shard->metadata[i].key));
        qf_buf_append_str(&out, ":");
        qf_buf_append_json(&out, shard->metadata[i].value,
                           strlen(shard->metadata[i].value));
    }
    char *text = qf_buf_take(&out, NULL);
    if (text == NULL)
        abort();
    printf("ok [[%s}]\n", text);
    free(text);
}

static void probe(const unsigned char *file, size_t size)
{
    static const unsigned char empty[8];
    struct qf_err err = {.text = ""};
    struct qf_shard *shard = NULL;
    uint64_t n = 0;
    int rc = qf_shard_header_size(size < 8 ? empty : file, size, &n, &err);
    if (rc == 0)
        rc = qf_shard_parse(file, 8 + (size_t)n, size, &shard, &err);
    if (rc == 0)
        print_shard(shard);
    else
        printf("no %s\n", err.text);
    qf_shard_free(shard);
}

int main(void)
{
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        unsigned char *file = malloc(size > 0 ? size : 1);
        if (file == NULL || fread(file, 1, size, stdin) != size)
            return 1;
        probe(file, size);
        free(file);
        fflush(stdout);
    }
    return 0;
}
