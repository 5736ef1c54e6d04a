/* SPDX-License-Identifier: Apache-2.0 */
/* Every limit of quantfs, by name. A limit has one home (here) and a test at it and
 * past it. Units are in the names. */
#ifndef QF_BASE_LIMITS_H
#define QF_BASE_LIMITS_H

/* The largest safetensors header that the safetensors library accepts. */
#define QF_SHARD_HEADER_SIZE_MAX 100000000u
/* Nesting of JSON that we follow; serde_json's own limit is 128. */
#define QF_JSON_DEPTH_MAX 128
/* config.json, index.json and quantfs.json: larger files are passed through. */
#define QF_CONFIG_SIZE_MAX (64u << 20)
/* Dimensions of a tensor that we accept (safetensors sets none). */
#define QF_TENSOR_RANK_MAX 32
/* Elements of one chunk of a quantized tensor, before whole rows are made of it. */
#define QF_CHUNK_ELEMS (1u << 20)
/* Bytes of one cached value: what a memcached or Redis server stores without waste. */
#define QF_STORED_SIZE_MAX 1000000u
/* Source bytes that a CPU thread reads and encodes at a time: half of a small L2. */
#define QF_PIECE_SIZE (256u << 10)
/* The largest read that the kernel sends. */
#define QF_FUSE_READ_SIZE_MAX (1u << 20)

#endif
