/* SPDX-License-Identifier: Apache-2.0 */
/* A mount while it is served: what its signals do, how it tells the service manager
 * that it is alive, and how it ends.
 *
 *   SIGTERM, SIGINT   unmount at once, serve on who has files open, then leave; within
 *                     -o drain_timeout=. Once more: leave now
 *   SIGHUP            read the policy file and the limits file again
 *   SIGUSR1           log the status
 *   SIGUSR2           end and leave the mount to the next daemon (-o restart=); a
 *                     SIGTERM or SIGINT after it takes the mount back and ends it */
#ifndef QF_CLI_SERVE_H
#define QF_CLI_SERVE_H

#include <stdbool.h>

#include "base/err.h"
#include "cli/stack.h"
#include "fs/daemon.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_serve qf_serve;

/* Takes the signals over, before anything that makes threads is opened. Until
 * qf_serve_run they end the process as ever; but with a mount to go on with (`resumed`,
 * taken; or QF_KEPT_NONE) SIGTERM and SIGINT end that first, SIGHUP waits, and SIGUSR2
 * leaves it to yet another daemon. stack is borrowed. */
int qf_serve_begin(struct qf_stack *stack, struct qf_kept *resumed,
                   qf_serve **out) QF_MUST_CHECK;
/* Serves until the end of the mount. */
int qf_serve_run(qf_serve *serve, qf_daemon *daemon) QF_MUST_CHECK;
/* All is closed: nothing is waited for any more. True: the next daemon is to go on, and
 * nobody has told us to end since. NULL is allowed. */
bool qf_serve_end(qf_serve *serve);

#ifdef __cplusplus
}
#endif
#endif
