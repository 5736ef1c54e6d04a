/* SPDX-License-Identifier: Apache-2.0 */
/* Filesystems on which LMDB must not be used: its locks and its map are only coherent
 * within one machine's page cache. */
#ifndef QF_CACHE_NETFS_H
#define QF_CACHE_NETFS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The name of the filesystem with this statfs f_type when it is a remote one (or FUSE,
 * which may be), else NULL. */
const char *qf_netfs_name(uint32_t type);

#ifdef __cplusplus
}
#endif
#endif
