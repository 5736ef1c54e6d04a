/* SPDX-License-Identifier: Apache-2.0 */
/* The weights are a pure function of (tensor number, element number), drawn as an
 * initializer would draw them, so that a loader gets finite outputs of a sane size and
 * two machines get the same files. They are the sum of four 16-bit uniforms: integers
 * all the way to one multiplication, so no libm can change a bit.
 *
 * config.json is written last: before it, the directory is no model to anybody. */
#include "cli/demo.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/bytes.h"

enum {
    HEAD_DIM = 64,
    POSITIONS = 2048,
    SHARDS = 2,
    FILES_MAX = SHARDS + 3,
    NAME_SIZE = 64
};

struct shape {
    unsigned hidden, intermediate, layers, heads, kv_heads, vocab;
};

static const struct shape demo_shape = {384, 1024, 14, 6, 2, 2048};
/* Of a size that tensors of models have: several chunks each. */
static const struct shape large_shape = {1024, 2816, 1, 16, 4, 2048};

struct demo_tensor {
    char name[NAME_SIZE];
    uint64_t rows;
    uint64_t cols; /* 0: one dimension, all ones */
    unsigned shard;
};

struct demo {
    const char *dir;
    int dir_fd;
    bool made_dir;
    struct shape shape;
    const atomic_int *stop; /* NULL: nobody stops it */
    unsigned tensor_count;
    struct demo_tensor *tensors;
    unsigned file_count;
    char files[FILES_MAX][NAME_SIZE]; /* written so far */
    struct qf_err *err;
};

static const char CONFIG[] = "{\n"
                             "  \"architectures\": [\n"
                             "    \"LlamaForCausalLM\"\n"
                             "  ],\n"
                             "  \"attention_bias\": false,\n"
                             "  \"attention_dropout\": 0.0,\n"
                             "  \"bos_token_id\": 1,\n"
                             "  \"dtype\": \"bfloat16\",\n"
                             "  \"eos_token_id\": 2,\n"
                             "  \"head_dim\": %d,\n"
                             "  \"hidden_act\": \"silu\",\n"
                             "  \"hidden_size\": %u,\n"
                             "  \"initializer_range\": 0.02,\n"
                             "  \"intermediate_size\": %u,\n"
                             "  \"max_position_embeddings\": %d,\n"
                             "  \"mlp_bias\": false,\n"
                             "  \"model_type\": \"llama\",\n"
                             "  \"num_attention_heads\": %u,\n"
                             "  \"num_hidden_layers\": %u,\n"
                             "  \"num_key_value_heads\": %u,\n"
                             "  \"pad_token_id\": 0,\n"
                             "  \"rms_norm_eps\": 1e-06,\n"
                             "  \"rope_theta\": 10000.0,\n"
                             "  \"tie_word_embeddings\": false,\n"
                             "  \"use_cache\": true,\n"
                             "  \"vocab_size\": %u\n"
                             "}\n";

static const char GENERATION_CONFIG[] = "{\n"
                                        "  \"_from_model_config\": true,\n"
                                        "  \"bos_token_id\": 1,\n"
                                        "  \"eos_token_id\": 2,\n"
                                        "  \"pad_token_id\": 0\n"
                                        "}\n";

static void add_tensor(struct demo *demo, unsigned shard, int layer, const char *name,
                       uint64_t rows, uint64_t cols)
{
    struct demo_tensor *t = &demo->tensors[demo->tensor_count++];
    if (layer >= 0)
        snprintf(t->name, sizeof t->name, "model.layers.%d.%s.weight", layer, name);
    else
        snprintf(t->name, sizeof t->name, "%s.weight", name);
    t->rows = rows;
    t->cols = cols;
    t->shard = shard;
}

static void add_tensors(struct demo *demo)
{
    const struct shape *s = &demo->shape;
    const uint64_t kv = (uint64_t)s->kv_heads * HEAD_DIM;
    add_tensor(demo, 0, -1, "model.embed_tokens", s->vocab, s->hidden);
    for (int i = 0; i < (int)s->layers; i++) {
        unsigned shard = i < (int)s->layers / 2 ? 0 : 1;
        add_tensor(demo, shard, i, "input_layernorm", s->hidden, 0);
        add_tensor(demo, shard, i, "mlp.down_proj", s->hidden, s->intermediate);
        add_tensor(demo, shard, i, "mlp.gate_proj", s->intermediate, s->hidden);
        add_tensor(demo, shard, i, "mlp.up_proj", s->intermediate, s->hidden);
        add_tensor(demo, shard, i, "post_attention_layernorm", s->hidden, 0);
        add_tensor(demo, shard, i, "self_attn.k_proj", kv, s->hidden);
        add_tensor(demo, shard, i, "self_attn.o_proj", s->hidden, s->hidden);
        add_tensor(demo, shard, i, "self_attn.q_proj", s->hidden, s->hidden);
        add_tensor(demo, shard, i, "self_attn.v_proj", kv, s->hidden);
    }
    add_tensor(demo, 1, -1, "model.norm", s->hidden, 0);
    add_tensor(demo, 1, -1, "lm_head", s->vocab, s->hidden);
}

static uint64_t elem_count(const struct demo_tensor *t)
{
    return t->rows * (t->cols != 0 ? t->cols : 1);
}

static void shard_name(unsigned shard, char out[NAME_SIZE])
{
    snprintf(out, NAME_SIZE, "model-%05u-of-%05d.safetensors", shard + 1, SHARDS);
}

/* splitmix64 of a counter. */
static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* About normal with deviation 0.02, in bfloat16. */
static uint16_t weight_at(uint64_t tensor, uint64_t elem)
{
    uint64_t r = mix((tensor << 40) | elem);
    int32_t sum =
        (int32_t)((r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48)) -
        2 * 0xffff;
    /* Four uniforms of 16 bits have a deviation of 65536 / sqrt(3). */
    float value = (float)sum * (0.02f * 1.7320508f / 65536.0f);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static int write_all(struct demo *demo, int fd, const char *name, const void *data,
                     size_t size)
{
    for (const char *p = data; size != 0;) {
        ssize_t n = write(fd, p, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return qf_err_set(demo->err, -errno, "%s/%s: cannot write: %s", demo->dir,
                              name, strerror(errno));
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Makes a new file and remembers it. Returns the descriptor or -errno. */
static int create_file(struct demo *demo, const char *name)
{
    int fd = openat(demo->dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return qf_err_set(demo->err, -errno, "%s/%s: cannot create: %s", demo->dir,
                          name, strerror(errno));
    snprintf(demo->files[demo->file_count++], NAME_SIZE, "%s", name);
    return fd;
}

/* Writes the text and empties the buffer, whatever happens. */
static int write_text(struct demo *demo, const char *name, struct qf_buf *text)
{
    int fd = -1;
    int rc = text->failed ? qf_err_set(demo->err, -ENOMEM, "out of memory") : 0;
    if (rc == 0)
        rc = fd = create_file(demo, name);
    if (rc >= 0)
        rc = write_all(demo, fd, name, text->data, text->size);
    if (fd >= 0 && close(fd) != 0 && rc == 0)
        rc = qf_err_set(demo->err, -errno, "%s/%s: cannot write: %s", demo->dir, name,
                        strerror(errno));
    qf_buf_fini(text);
    return rc;
}

static void shard_header(const struct demo *demo, unsigned shard, struct qf_buf *out)
{
    uint64_t off = 0;
    qf_buf_append_str(out, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (unsigned i = 0; i < demo->tensor_count; i++) {
        const struct demo_tensor *t = &demo->tensors[i];
        if (t->shard != shard)
            continue;
        uint64_t size = 2 * elem_count(t);
        qf_buf_appendf(out, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%" PRIu64, t->name,
                       t->rows);
        if (t->cols != 0)
            qf_buf_appendf(out, ",%" PRIu64, t->cols);
        qf_buf_appendf(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", off,
                       off + size);
        off += size;
    }
    qf_buf_append_str(out, "}");
    qf_buf_append_fill(out, ' ', (8 - out->size % 8) % 8);
}

static int write_tensor(struct demo *demo, int fd, const char *file, unsigned index)
{
    enum { PIECE = 32768 };
    static const uint16_t one = 0x3f80;
    const struct demo_tensor *t = &demo->tensors[index];
    uint16_t piece[PIECE];
    int rc = 0;
    for (uint64_t done = 0, count = elem_count(t); rc == 0 && done < count;) {
        size_t n = count - done < PIECE ? (size_t)(count - done) : PIECE;
        for (size_t i = 0; i < n; i++)
            piece[i] = t->cols != 0 ? weight_at(index, done + i) : one;
        rc = write_all(demo, fd, file, piece, n * sizeof piece[0]);
        done += n;
        if (rc == 0 && demo->stop != NULL && atomic_load(demo->stop) != 0)
            rc = qf_err_set(demo->err, -EINTR, "interrupted");
    }
    return rc;
}

static int write_shard(struct demo *demo, unsigned shard)
{
    struct qf_buf header = {0};
    unsigned char size[8];
    char name[NAME_SIZE];
    int fd = -1;
    int rc;

    shard_name(shard, name);
    shard_header(demo, shard, &header);
    if (header.failed) {
        rc = qf_err_set(demo->err, -ENOMEM, "out of memory");
        goto out;
    }
    rc = fd = create_file(demo, name);
    if (rc < 0)
        goto out;
    qf_store_u64(size, header.size);
    rc = write_all(demo, fd, name, size, sizeof size);
    if (rc == 0)
        rc = write_all(demo, fd, name, header.data, header.size);
    for (unsigned i = 0; rc == 0 && i < demo->tensor_count; i++)
        if (demo->tensors[i].shard == shard)
            rc = write_tensor(demo, fd, name, i);
out:
    if (fd >= 0 && close(fd) != 0 && rc == 0)
        rc = qf_err_set(demo->err, -errno, "%s/%s: cannot write: %s", demo->dir, name,
                        strerror(errno));
    qf_buf_fini(&header);
    return rc;
}

static int write_index(struct demo *demo)
{
    struct qf_buf text = {0};
    uint64_t total = 0;
    for (unsigned i = 0; i < demo->tensor_count; i++)
        total += 2 * elem_count(&demo->tensors[i]);
    qf_buf_appendf(&text,
                   "{\n  \"metadata\": {\n    \"total_parameters\": %" PRIu64 ",\n"
                   "    \"total_size\": %" PRIu64 "\n  },\n  \"weight_map\": {",
                   total / 2, total);
    for (unsigned i = 0; i < demo->tensor_count; i++) {
        char file[NAME_SIZE];
        shard_name(demo->tensors[i].shard, file);
        qf_buf_appendf(&text, "%s\n    \"%s\": \"%s\"", i != 0 ? "," : "",
                       demo->tensors[i].name, file);
    }
    qf_buf_append_str(&text, "\n  }\n}\n");
    return write_text(demo, "model.safetensors.index.json", &text);
}

static int write_configs(struct demo *demo)
{
    struct qf_buf text = {0};
    qf_buf_append_str(&text, GENERATION_CONFIG);
    int rc = write_text(demo, "generation_config.json", &text);
    if (rc != 0)
        return rc;
    const struct shape *s = &demo->shape;
    qf_buf_appendf(&text, CONFIG, HEAD_DIM, s->hidden, s->intermediate, POSITIONS,
                   s->heads, s->layers, s->kv_heads, s->vocab);
    return write_text(demo, "config.json", &text);
}

static int check_empty(const struct demo *demo)
{
    int rc = 0;
    int fd = openat(demo->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL) {
        rc = qf_err_set(demo->err, -errno, "%s: cannot list: %s", demo->dir,
                        strerror(errno));
        if (fd >= 0)
            close(fd);
        return rc;
    }
    const struct dirent *entry;
    while (rc == 0 && (entry = readdir(dir)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            rc = qf_err_set(demo->err, -EEXIST,
                            "%s: not empty (it holds '%s'): give a new directory",
                            demo->dir, entry->d_name);
    closedir(dir);
    return rc;
}

static int open_dir(struct demo *demo)
{
    if (mkdir(demo->dir, 0755) == 0)
        demo->made_dir = true;
    else if (errno != EEXIST)
        return qf_err_set(demo->err, -errno, "%s: cannot make the directory: %s",
                          demo->dir, strerror(errno));
    demo->dir_fd = open(demo->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (demo->dir_fd < 0)
        return qf_err_set(demo->err, -errno, "%s: cannot open the directory: %s",
                          demo->dir, strerror(errno));
    return demo->made_dir ? 0 : check_empty(demo);
}

static int write_model(const struct shape *shape, const char *dir,
                       const atomic_int *stop, struct qf_err *err)
{
    int rc;
    struct demo *demo = calloc(1, sizeof *demo);
    struct demo_tensor *tensors =
        calloc(3 + 9 * (size_t)shape->layers, sizeof *tensors);
    if (demo == NULL || tensors == NULL) {
        free(demo);
        free(tensors);
        return qf_err_set(err, -ENOMEM, "out of memory");
    }
    *demo = (struct demo){.dir = dir,
                          .dir_fd = -1,
                          .shape = *shape,
                          .stop = stop,
                          .tensors = tensors,
                          .err = err};
    add_tensors(demo);

    rc = open_dir(demo);
    for (unsigned shard = 0; rc == 0 && shard < SHARDS; shard++)
        rc = write_shard(demo, shard);
    if (rc == 0)
        rc = write_index(demo);
    if (rc == 0)
        rc = write_configs(demo);

    for (unsigned i = 0; rc != 0 && i < demo->file_count; i++)
        unlinkat(demo->dir_fd, demo->files[i], 0);
    if (demo->dir_fd >= 0)
        close(demo->dir_fd);
    if (rc != 0 && demo->made_dir)
        rmdir(dir);
    free(demo);
    free(tensors);
    return rc;
}

int qf_demo_write(const char *dir, struct qf_err *err)
{
    return write_model(&demo_shape, dir, NULL, err);
}

int qf_demo_write_large(const char *dir, uint64_t size, const atomic_int *stop,
                        struct qf_err *err)
{
    struct shape s = large_shape;
    uint64_t attention = 2 * ((uint64_t)s.heads + s.kv_heads) * HEAD_DIM * s.hidden;
    uint64_t layer = 2 * (attention + 3 * (uint64_t)s.hidden * s.intermediate);
    uint64_t ends = 2 * 2 * (uint64_t)s.vocab * s.hidden;
    if (size > ends + layer)
        s.layers = (unsigned)((size - ends + layer / 2) / layer);
    return write_model(&s, dir, stop, err);
}
