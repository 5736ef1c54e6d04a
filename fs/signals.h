/* SPDX-License-Identifier: Apache-2.0 */
/* Signals of a daemon, taken by one thread, which also looks after it at intervals.
 * Every thread of the process has them blocked, so a handler may do what any function
 * may. */
#ifndef QF_FS_SIGNALS_H
#define QF_FS_SIGNALS_H

#include <stdbool.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_signals qf_signals;

struct qf_signals_ops {
    /* SIGTERM, SIGINT, SIGHUP, SIGUSR1 or SIGUSR2. */
    void (*caught)(void *arg, int signal);
    /* Returns the milliseconds until the next call; a signal can make it earlier. */
    int (*tick)(void *arg);
    void *arg;
};

/* Before any thread is made: they inherit it. */
void qf_signals_block(void);
/* Calls the ops from a thread of their own. */
int qf_signals_start(const struct qf_signals_ops *ops, qf_signals **out) QF_MUST_CHECK;
/* Returns when no call is under way and none will come. NULL is allowed. */
void qf_signals_stop(qf_signals *signals);
/* Whether SIGTERM or SIGINT has come and nobody has taken it. */
bool qf_signals_end_pending(void);
/* As if there had been no handler: ends the process by this signal. Does not
 * return. */
void qf_signals_die(int signal);

#ifdef __cplusplus
}
#endif
#endif
