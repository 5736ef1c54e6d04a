/* SPDX-License-Identifier: Apache-2.0 */
/* The headers of a bitsandbytes checkpoint as those of the plain one. That takes what
 * small tensors hold, so each shard is opened once more and must still be the file
 * whose header was read. One tensor that is not understood is a reason against the
 * directory: it passes through, as everything did that is quantized. */
#include <stdlib.h>
#include <string.h>

#include "ckpt/bnb.h"
#include "ckpt/model_load.h"
#include "ckpt/printable.h"

static void free_texts(char **texts, size_t count)
{
    for (size_t i = 0; texts != NULL && i < count; i++)
        free(texts[i]);
    free(texts);
}

static int read_texts(const qf_srcfile *file, const struct qf_shard *stored,
                      char **texts)
{
    int rc = 0;
    for (size_t i = 0; i < stored->tensor_count && rc == 0; i++) {
        const struct qf_tensor *t = &stored->tensors[i];
        if (!qf_bnb_is_small(t))
            continue;
        texts[i] = malloc((size_t)t->size + 1);
        rc = texts[i] != NULL ? qf_srcfile_read(file, texts[i], (size_t)t->size, t->off)
                              : -ENOMEM;
    }
    return rc == 0 ? qf_srcfile_check(file) : rc;
}

static int open_again(struct qf_model_load *load, const struct qf_model_shard *shard,
                      qf_srcfile **out)
{
    char *path = qf_model_path(load->path, shard->name);
    if (path == NULL)
        return -ENOMEM;
    int rc = qf_srcfile_open(load->root, path, out, NULL);
    free(path);
    if (rc == 0 && !qf_ident_eq(qf_srcfile_ident(*out), &shard->ident))
        rc = -ESTALE;
    return rc;
}

static int dequantize_shard(struct qf_model_load *load, struct qf_model_shard *shard,
                            enum qf_dtype int8_dtype)
{
    struct qf_err err = {.text = ""};
    qf_srcfile *file = NULL;
    size_t count = shard->header->tensor_count;
    char **texts = calloc(count + 1, sizeof *texts);
    int rc = texts != NULL ? open_again(load, shard, &file) : -ENOMEM;
    if (rc == 0)
        rc = read_texts(file, shard->header, texts);
    qf_srcfile_close(file);
    if (rc != 0)
        rc = qf_model_refuse_file(load, shard->name, rc);
    else
        rc = qf_bnb_plain(shard->header, texts, int8_dtype, &shard->header, &err);
    free_texts(texts, count);
    if (rc == -EBADMSG)
        return qf_model_refuse(load, false,
                               "already quantized (quant_method bitsandbytes), and not "
                               "to be dequantized: %s: %s",
                               qf_printable(shard->name).text, err.text);
    return rc;
}

static enum qf_dtype plain_dtype(const struct qf_weight_set *set)
{
    enum qf_dtype dtype = QF_DTYPE_NONE;
    for (size_t i = 0; i < set->shard_count && dtype == QF_DTYPE_NONE; i++)
        dtype = qf_bnb_plain_dtype(set->shards[i].header);
    return dtype != QF_DTYPE_NONE ? dtype : QF_F32;
}

int qf_model_dequantize(struct qf_model_load *load)
{
    struct qf_model *model = load->model;
    for (size_t i = 0; i < model->set_count; i++) {
        struct qf_weight_set *set = &model->sets[i];
        enum qf_dtype int8_dtype = plain_dtype(set);
        bool coded = false;
        for (size_t k = 0; k < set->shard_count; k++) {
            int rc = dequantize_shard(load, &set->shards[k], int8_dtype);
            if (rc != 0)
                return rc;
            coded = coded || set->shards[k].header->stored != NULL;
        }
        if (!coded)
            return qf_model_refuse(load, false,
                                   "already quantized (quant_method bitsandbytes), "
                                   "though no tensor of it is");
    }
    model->is_bnb = true;
    return 0;
}
