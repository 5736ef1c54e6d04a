/* SPDX-License-Identifier: Apache-2.0 */
/* Some threads at one work, and the caller's thread looking on. Private to cli/. */
#ifndef QF_CLI_CREW_H
#define QF_CLI_CREW_H

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs work(arg, 0 … count - 1), each in a thread of its own, and returns when all have
 * ended; meanwhile tick(arg) is called in the caller's thread, every 50 ms. -ENOMEM,
 * -EAGAIN: nothing was run. */
int qf_crew_run(unsigned count, void (*work)(void *arg, unsigned index),
                void (*tick)(void *arg), void *arg) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
