/* SPDX-License-Identifier: Apache-2.0 */
/* A quantized checkpoint compared with what a view of its source would be, tensor by
 * tensor and part by part. verify_open.c finds out what is to be compared,
 * verify_compare.c and verify_parts.c compare, verify_tie.c judges what differs,
 * verify_report.c tells.
 * Private to cli/. */
#ifndef QF_CLI_VERIFY_H
#define QF_CLI_VERIFY_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/err.h"
#include "cli/progress.h"
#include "cli/source.h"
#include "cli/stack.h"
#include "view/variant.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_VERIFY_JOBS_DEFAULT 4u
#define QF_VERIFY_JOBS_MAX     256u
/* Differences that are told one by one. */
#define QF_VERIFY_TOLD_MAX 100u

/* Differences that bitsandbytes itself is known to make (docs/FORMATS.md section 2,
 * quant/ties.h), and save_pretrained with it: counted by kind, in codes, values or
 * tensors. */
enum qf_verify_tie {
    QF_TIE_THRESHOLD,  /* a 4-bit code whose value is at a threshold */
    QF_TIE_HALF,       /* an int8 code whose product is at a half */
    QF_TIE_CPU_CODE,   /* a 4-bit code by the rule of its CPU kernel */
    QF_TIE_ZERO_BLOCK, /* codes or absmax of a block of zeros */
    QF_TIE_NAN,        /* of a block that holds NaN */
    QF_TIE_OFFSET,     /* dq: offset off by ulps, and nested absmax and codes with it */
    QF_TIE_CPU_NESTED, /* dq: an absmax code by the table of its CPU kernel */
    QF_TIE_DTYPE,      /* a kept value, the same in another dtype */
    QF_TIE_BUFFER,     /* a tensor that is missing: a buffer that loaders make anew */
    QF_TIE_SHARED,     /* the same: it is there under another name (a tied head) */
    QF_TIE_COUNT
};

enum qf_verify_problem {
    QF_VERIFY_DIFFERENT, /* values */
    QF_VERIFY_SHAPE,     /* dtype or shape */
    QF_VERIFY_MISSING,   /* a tensor, or a part of one */
    QF_VERIFY_EXTRA,
    QF_VERIFY_KEPT,      /* the view quantizes it, the checkpoint does not */
    QF_VERIFY_QUANTIZED, /* the other way round */
    QF_VERIFY_PROBLEM_COUNT
};

struct qf_verify_difference {
    enum qf_verify_problem problem;
    char *tensor;   /* its name in the view; of EXTRA in the checkpoint; owned */
    uint64_t index; /* DIFFERENT: of the first element or code; UINT64_MAX: none */
    char want[96];  /* what the view has there, and the checkpoint */
    char got[96];
};

/* A tensor of the checkpoint. */
struct qf_verify_tensor {
    const struct qf_tensor *tensor;
    size_t shard;
    atomic_bool seen;
};

struct qf_verify_shard {
    char *name; /* owned */
    qf_srcfile *file;
    struct qf_shard *header;
};

/* One directory: the checkpoint's and the view's. */
struct qf_verify_dir {
    char *path;   /* of the checkpoint, relative to the root; owned */
    char *source; /* in the store, the same */
    qf_root *root;
    qf_json *config; /* of the checkpoint; NULL: none */
    size_t shard_count;
    struct qf_verify_shard *shards;
    struct qf_verify_shard *plain; /* of the source, where it is no model; else NULL */
    size_t tensor_count;
    struct qf_verify_tensor *tensors; /* by name */
    char *prefix;                     /* of names; NULL: they are the source's */
    bool prefix_added;                /* to the source's names; else taken off them */
    struct qf_view view;              /* what it says it is */
    char *overrides;                  /* of it, as text; owned; NULL: none */
    struct qf_model *model;
    struct qf_variant *variant;
    struct qf_stack stack;
    struct qf_mount_options options;
    struct qf_views_source served;
};

/* A tensor of the view, whole: a kept one, or all parts of a quantized one. */
struct qf_verify_unit {
    const struct qf_tensor *src;
    const struct qf_layout_tensor *planned; /* NULL: it passes through */
    const char *shard;                      /* file name in the directory */
    uint64_t offs[QF_PARTS_MAX];            /* in the view's file; kept: [0] */
};

struct qf_verify {
    const struct qf_mount_options *options;
    const struct qf_view *view; /* given; NULL: as the checkpoint says */
    unsigned jobs;
    const atomic_int *stop;
    struct qf_progress progress;
    struct qf_verify_dir *dir; /* the one that is compared now */
    size_t unit_count;
    struct qf_verify_unit *units;
    pthread_mutex_t lock; /* of what follows */
    size_t next_unit;
    int rc; /* of the first failure; ends the work */
    struct qf_err err;
    size_t dir_count;
    char views[256];                            /* what they were compared with */
    uint64_t equal, tied, different;            /* tensors */
    uint64_t ties[QF_TIE_COUNT];                /* codes or values */
    uint64_t problems[QF_VERIFY_PROBLEM_COUNT]; /* tensors or parts */
    uint64_t codes_different;                   /* codes or values */
    size_t told_count;
    struct qf_verify_difference told[QF_VERIFY_TOLD_MAX];
    _Atomic uint64_t bytes;
};

/* Opens a directory of the checkpoint: shards, settings, the view of its source, and
 * what is to be compared (verify->units). */
int qf_verify_dir_open(struct qf_verify *verify, struct qf_verify_dir *dir,
                       struct qf_err *err) QF_MUST_CHECK;
void qf_verify_dir_close(struct qf_verify_dir *dir);
/* The checkpoint's tensor that the view knows by this name, or NULL. */
struct qf_verify_tensor *qf_verify_find(const struct qf_verify_dir *dir,
                                        const char *name);
/* Whether the checkpoint holds the weight of this name quantized. */
bool qf_verify_is_quantized(const struct qf_verify_dir *dir, const char *name);

/* Compares what was opened. -EINTR when it was stopped. */
int qf_verify_compare(struct qf_verify *verify, struct qf_err *err) QF_MUST_CHECK;
/* Notes a difference; index, want and got as they are told. */
void qf_verify_note(struct qf_verify *verify, enum qf_verify_problem problem,
                    const char *tensor, uint64_t index, const char *want,
                    const char *got);

/* What one thread compares with. */
struct qf_verify_hand {
    struct qf_verify *verify;
    const char *open; /* the view's file that `file` is open for; NULL: none */
    struct qf_source_file file;
    char *mine, *theirs; /* buffers */
    /* of the unit that it is at: */
    const struct qf_verify_unit *unit;
    uint64_t ties[QF_TIE_COUNT], different;
    bool noted;      /* of the part: its first difference was told */
    qf_srcfile *src; /* the source's shard, once it is needed; NULL before */
    float *whole;    /* a transposed weight as it is quantized; NULL: not read */
    float *absmax;   /* dq: of all blocks; NULL: not made */
    uint64_t block;  /* that is in `values`; UINT64_MAX: none */
    float values[QF_BLOCKSIZE_MAX];
    size_t value_count;
    float block_absmax;
    bool block_nan;
    float offset; /* dq: the checkpoint's */
};

void qf_verify_tie_reset(struct qf_verify_hand *hand);
/* Judge an element in which the two differ: the tie, or QF_TIE_COUNT. -errno. */
int qf_verify_tie_4bit(struct qf_verify_hand *hand, uint64_t index, unsigned code,
                       enum qf_verify_tie *out);
int qf_verify_tie_int8(struct qf_verify_hand *hand, uint64_t index, int code,
                       enum qf_verify_tie *out);
int qf_verify_tie_absmax(struct qf_verify_hand *hand, uint64_t block, float value,
                         enum qf_verify_tie *out);
/* The same for dq's parts, with the checkpoint's own offset. */
int qf_verify_tie_nested_absmax(struct qf_verify_hand *hand, uint64_t index,
                                float value, enum qf_verify_tie *out);
int qf_verify_tie_nested_code(struct qf_verify_hand *hand, uint64_t index,
                              unsigned code, enum qf_verify_tie *out);

/* Compares the tensor that hand->unit is at: what differs is noted and counted. */
int qf_verify_tensor_quantized(struct qf_verify_hand *hand) QF_MUST_CHECK;
int qf_verify_tensor_kept(struct qf_verify_hand *hand,
                          struct qf_verify_tensor *theirs) QF_MUST_CHECK;
/* Whether the work is to end. */
bool qf_verify_is_stopped(struct qf_verify *verify);

/* Reads bytes of the view, of the checkpoint. */
int qf_verify_read_mine(struct qf_verify_hand *hand, void *buf, size_t size,
                        uint64_t off) QF_MUST_CHECK;
int qf_verify_read_theirs(const struct qf_verify_hand *hand, const char *name,
                          void *buf, size_t size, uint64_t off) QF_MUST_CHECK;

void qf_verify_json(const struct qf_verify *verify, const char *dir,
                    const char *against, double seconds, struct qf_buf *out);
void qf_verify_text(const struct qf_verify *verify, struct qf_buf *out);

#ifdef __cplusplus
}
#endif
#endif
