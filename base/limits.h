/* SPDX-License-Identifier: Apache-2.0 */
/* Every limit of quantfs, by name. A limit has one home (here) and a test at it and
 * past it. Units are in the names. */
#ifndef QF_BASE_LIMITS_H
#define QF_BASE_LIMITS_H

/* The largest safetensors header that the safetensors library accepts. */
#define QF_SHARD_HEADER_SIZE_MAX 100000000u
/* Nesting of JSON that we follow: what serde_json takes (it refuses the 128th). */
#define QF_JSON_DEPTH_MAX 127
/* config.json, index.json and quantfs.json: larger files are passed through. */
#define QF_CONFIG_SIZE_MAX (64u << 20)
/* Dimensions of a tensor that we accept (safetensors sets none). */
#define QF_TENSOR_RANK_MAX 32
/* Of a bitsandbytes checkpoint: bytes of one quant_state, elements of one 4-bit block,
 * elements of one block of a nested absmax. */
#define QF_BNB_STATE_SIZE_MAX       4096u
#define QF_BNB_BLOCKSIZE_MIN        32u
#define QF_BNB_BLOCKSIZE_MAX        4096u
#define QF_BNB_NESTED_BLOCKSIZE_MAX 65536u
/* Elements of one chunk of a quantized tensor, before whole rows are made of it. */
#define QF_CHUNK_ELEMS (1u << 20)
/* Bytes of one chunk record, where its rows and blocks allow it: what a memcached or
 * Redis server stores without waste. */
#define QF_RECORD_SIZE_MAX 1000000u
/* Bytes of one cached value: larger records are for bands of fp8, 128 rows of up to
 * 31,000 columns, and for very long rows. */
#define QF_STORED_SIZE_MAX 4000000u
/* Source bytes that a CPU thread reads and encodes at a time: half of a small L2. */
#define QF_PIECE_SIZE (256u << 10)
/* Kinds of models inside a composite model (vision, text, …) that rules are taken of.
 */
#define QF_NESTED_MODELS_MAX 16
/* Comparisons of a module's name with a skip entry that planning one model may take
 * (real models: less than ten million); one of a long name counts as several. */
#define QF_POLICY_MATCHES_MAX (1u << 26)
/* Tensors of one model whose records TorchAO's metadata holds: its loaders' time grows
 * with the square of their number, or faster. */
#define QF_TORCHAO_TENSORS_MAX 20000u
/* Tokens of a language model whose vocabulary we write into a GGUF file. */
#define QF_GGUF_TOKENS_MAX (1u << 22)
/* Bytes of all tensors of a model that we put into one file. */
#define QF_GGUF_SIZE_MAX (1ull << 60)
/* The largest read that the kernel sends. */
#define QF_FUSE_READ_SIZE_MAX (1u << 20)
/* Directories that are listed to find the path of an id from before a restart: links
 * between directories can make more paths than anybody can walk. */
#define QF_SEARCH_DIRS_MAX (1u << 20)
/* The smallest and the largest size that a cache can be limited to. */
#define QF_CACHE_SIZE_MIN (16u << 20)
#define QF_CACHE_SIZE_MAX (1ull << 44)
/* Views of one model whose plans are kept; those used least recently go. */
#define QF_VARIANTS_MAX 32u
/* Views that a mount does not list and whose names it remembers, for handles of files
 * in them that the kernel has forgotten (NFS). */
#define QF_VIEWS_RECENT_MAX 16u
/* Bytes of values that wait to be written to the cache; more are dropped. */
#define QF_CACHE_QUEUE_SIZE_MAX (64u << 20)
/* Threads that compare views with their source; each has buffers of a few megabytes. */
#define QF_COMPARE_THREADS_MAX 16u
/* Values of one cache that a process can hold at the same time; more are misses. */
#define QF_CACHE_HOLDS_MAX 128u
/* Bytes of the model that `quantfs bench` makes: at least one layer, and not a disk. */
#define QF_BENCH_SIZE_MIN (32u << 20)
#define QF_BENCH_SIZE_MAX (1ull << 36)

#endif
