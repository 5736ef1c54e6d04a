/* SPDX-License-Identifier: Apache-2.0 */
/* Mounting in a test, seen by nobody else. */
#ifndef QF_TESTS_SUPPORT_MOUNTS_H
#define QF_TESTS_SUPPORT_MOUNTS_H

#include <stdbool.h>

/* What this process mounts from here on goes with it. False: it may not mount. */
bool own_mounts(void);

#endif
