/* SPDX-License-Identifier: Apache-2.0 */
/* What each format is: the tensors ("parts") that a quantized weight becomes, their
 * sizes, and how the work is cut into chunks. Pure: from dtype, shape and settings
 * alone, never from data. Source of the formats: docs/FORMATS.md sections 2 and 3.
 *
 * A part is made in one of three stages:
 *
 * - PLAN: known from the plan alone (quant_map, format tag, quant_state of nf4, fp4);
 * - CHUNK: from one chunk of the source (packed codes, fp32 absmax, SCB);
 * - SEAL: from the CHUNK results of the whole tensor (dq: nested absmax, offset).
 *
 * The CHUNK slices of one chunk lie one behind the other in a *chunk record*, in the
 * order of the parts; the SEAL parts of a tensor in a *seal record*. Every slice begins
 * at a multiple of 64 bytes of its record and the bytes between slices are zero; a
 * record ends with its last slice. Records are what a backend fills and a cache
 * stores. */
#ifndef QF_QUANT_CODEC_H
#define QF_QUANT_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_codec {
    QF_CODEC_NF4,
    QF_CODEC_FP4,
    QF_CODEC_DQ,
    QF_CODEC_INT8,
    QF_CODEC_AO_INT8WO,
    QF_CODEC_AO_INT8DQ,
    QF_CODEC_AO_FLOAT8WO,
    QF_CODEC_AO_FLOAT8WO_E5M2,
    QF_CODEC_AO_FLOAT8DQ_ROW,
    QF_CODEC_FP8,
    QF_CODEC_CT_FP8,
    QF_CODEC_CT_W8A8,
    QF_CODEC_CT_W8A16,
    QF_CODEC_CT_W4A16,
    QF_CODEC_GGUF_Q8_0,
    QF_CODEC_GGUF_Q4_0,
    QF_CODEC_GGUF_Q4_1,
    QF_CODEC_GGUF_Q5_0,
    QF_CODEC_GGUF_Q5_1,
    QF_CODEC_GGUF_F16,
    QF_CODEC_GGUF_BF16,
    QF_CODEC_BF16, /* not a codec but its absence: the plain checkpoint in one dtype */
    QF_CODEC_FP16,
    QF_CODEC_FP32,
    QF_CODEC_COUNT
};

/* Whose checkpoints a codec's are: which config, names of parts and loaders. */
enum qf_family {
    QF_FAMILY_BNB_4BIT,
    QF_FAMILY_BNB_INT8,
    QF_FAMILY_TORCHAO,
    QF_FAMILY_FP8, /* transformers' and vLLM's quant_method "fp8", blocks of 128 x 128
                    */
    QF_FAMILY_COMPRESSED_TENSORS,
    QF_FAMILY_GGUF, /* one file a model (view/gguf.h); D is the stored dtype */
    QF_FAMILY_PLAIN /* not quantized */
};

/* The data of a codec whose elements are small numbers times a scale. Codecs with the
 * same data differ in names and config only. */
enum qf_scaled {
    QF_SCALED_NONE,          /* bitsandbytes' */
    QF_SCALED_I8_MUL,        /* torchao int8: x * (1 / s) */
    QF_SCALED_I8_DIV,        /* compressed-tensors: x / s, bytes */
    QF_SCALED_I8_PACKED,     /* the same, packed with an offset of 128 */
    QF_SCALED_I4_PACKED,     /* 4 bits, packed with an offset of 8 */
    QF_SCALED_F8_E4M3,       /* x / s */
    QF_SCALED_F8_E5M2,       /* x / s */
    QF_SCALED_F8_E4M3_BLOCK, /* x * s, one s a block of rows and columns */
    QF_SCALED_COUNT
};

/* What a codec is. */
struct qf_codec_info {
    const char *name; /* of the view: "nf4", "ao-int8wo" */
    enum qf_family family;
    enum qf_scaled scaled;
    uint32_t group; /* default of qf_codec_spec.group */
};

/* Part of every cache key: raised when the bytes that a codec defines change. */
#define QF_CODEC_REVISION 1u

/* The settings that decide the bytes of a quantized tensor. */
struct qf_codec_spec {
    enum qf_codec codec;
    uint32_t blocksize;    /* elements of a 4-bit block: a power of two, 64 … 4096 */
    enum qf_dtype dtype;   /* D: the model dtype, to which weights are cast first */
    enum qf_dtype storage; /* of 4-bit codes: QF_U8, or a float (quant_storage) */
    uint32_t group; /* scaled codecs: elements of a row that share a scale (fp8: of
                     * as many rows, too); 0: the whole row */
};

#define QF_BLOCKSIZE_DEFAULT 64u
#define QF_BLOCKSIZE_MAX     4096u
#define QF_NESTED_BLOCKSIZE  256u
#define QF_FP8_BLOCK         128u

enum qf_stage { QF_STAGE_PLAN, QF_STAGE_CHUNK, QF_STAGE_SEAL };

enum qf_part_role {
    QF_PART_CODES,        /* packed 4-bit codes, or int8 codes */
    QF_PART_ABSMAX,       /* fp32 per block (nf4, fp4) */
    QF_PART_SCB,          /* fp32 per row (int8) */
    QF_PART_BLOCK_ABSMAX, /* dq: fp32 per block; kept between CHUNK and SEAL, not shown
                           */
    QF_PART_NESTED_CODES, /* dq: the absmax as 8-bit codes */
    QF_PART_NESTED_ABSMAX,
    QF_PART_NESTED_QUANT_MAP,
    QF_PART_QUANT_MAP,
    QF_PART_QUANT_STATE,
    QF_PART_FORMAT,     /* int8's weight_format tag */
    QF_PART_SCALE,      /* scaled codecs: per row, group or block */
    QF_PART_ZERO_POINT, /* torchao int8: zeros, one a scale */
    QF_PART_SHAPE       /* compressed-tensors, packed: I64 [2] */
};

#define QF_PART_SUFFIX_SIZE 40
#define QF_PARTS_MAX        8

struct qf_part {
    enum qf_part_role role;
    enum qf_stage stage;
    bool hidden;    /* in the chunk record only, never in a file */
    bool own_group; /* laid out as a group of its own (FORMATS section 4) */
    uint8_t strip;  /* bytes taken off the tensor's name before suffix is put on it */
    char suffix[QF_PART_SUFFIX_SIZE];
    enum qf_dtype dtype;
    uint32_t rank;
    uint64_t shape[2];
    uint64_t size;         /* bytes in the file */
    uint64_t chunk_stride; /* CHUNK: bytes that each full chunk gives to this part */
};

/* How one weight is quantized. Transparent, copied freely. */
struct qf_plan {
    struct qf_codec_spec spec;
    enum qf_dtype src_dtype;
    bool transposed;      /* stored [cols, rows]; quantized as [rows, cols] */
    uint64_t rows;        /* out features, of the weight as it is quantized */
    uint64_t cols;        /* in features */
    uint64_t elem_count;  /* rows * cols */
    uint64_t block_count; /* 4-bit codecs: ceil(elem_count / blocksize) */
    uint64_t chunk_elems; /* elements of a full chunk: whole blocks; int8: whole rows */
    uint64_t chunk_count; /* 0 for a tensor without elements */
    uint32_t part_count;
    struct qf_part parts[QF_PARTS_MAX]; /* in the order of FORMATS section 3 */
};

const struct qf_codec_info *qf_codec_info(enum qf_codec codec);
/* Its name: "nf4", "fp4", "dq", "int8", "ao-int8wo", … */
const char *qf_codec_name(enum qf_codec codec);
/* The dtype of all weights under a codec of QF_FAMILY_PLAIN, which has no plans;
 * QF_DTYPE_NONE for those that quantize. */
enum qf_dtype qf_codec_plain_dtype(enum qf_codec codec);
bool qf_codec_from_name(const char *name, enum qf_codec *out);
/* The first codec with the same data and parts: whose records this codec's are. */
enum qf_codec qf_codec_of_records(enum qf_codec codec);

/* The settings that the codec's library has by default, with model dtype D. */
struct qf_codec_spec qf_codec_default(enum qf_codec codec, enum qf_dtype dtype);

/* Plans a 2-D weight stored as `shape` in `src_dtype` (F32, F16 or BF16).
 * -ENOTSUP when the settings cannot be (a storage dtype that does not divide the
 * codes, a group or block that does not divide the shape), with the sentence in err.
 */
int qf_codec_plan(const struct qf_codec_spec *spec, enum qf_dtype src_dtype,
                  const uint64_t shape[2], bool transposed, struct qf_plan *out,
                  struct qf_err *err) QF_MUST_CHECK;

/* Makes the quant_state part `size` bytes long (blanks at its end). size is at least
 * what the plan says. */
void qf_plan_pad_quant_state(struct qf_plan *plan, uint64_t size);

/* The part with this role, or NULL. */
const struct qf_part *qf_plan_part(const struct qf_plan *plan, enum qf_part_role role);

/* Elements of chunk `chunk`: *first is the index in row-major [rows, cols] order. */
void qf_plan_chunk_elems(const struct qf_plan *plan, uint64_t chunk, uint64_t *first,
                         uint64_t *count);
/* Size in bytes of the chunk record. */
size_t qf_plan_chunk_size(const struct qf_plan *plan, uint64_t chunk);
/* Where part `index` (stage CHUNK) lies in the record of `chunk`; its slice is that
 * of the part's bytes [chunk * chunk_stride, +*size). */
void qf_plan_chunk_slice(const struct qf_plan *plan, uint64_t chunk, uint32_t index,
                         size_t *off, size_t *size);
/* Size of the seal record (0: nothing to seal), and where part `index` (stage SEAL)
 * begins in it. */
size_t qf_plan_seal_size(const struct qf_plan *plan);
size_t qf_plan_seal_offset(const struct qf_plan *plan, uint32_t index);

/* Writes the whole of a PLAN part (parts[index].size bytes) to out. */
void qf_codec_fill(const struct qf_plan *plan, uint32_t index, void *out);
/* Makes the seal record from the BLOCK_ABSMAX slices of all chunks, concatenated
 * (block_count floats). out holds qf_plan_seal_size bytes, aligned to 4. Only for plans
 * whose seal size is not 0. */
void qf_codec_seal(const struct qf_plan *plan, const float *block_absmax, void *out);

#ifdef __cplusplus
}
#endif
#endif
