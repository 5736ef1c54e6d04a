/* SPDX-License-Identifier: Apache-2.0 */
/* The one place that chooses among backends. */
#include "cli/cli.h"

int qf_cli_open_backend(const char *isa, qf_backend **out, struct qf_err *err)
{
    return qf_cpu_backend_open(isa != NULL && isa[0] != '\0' ? isa : NULL, out, err);
}
