/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/demo.h"

static int demo(const struct qf_cli_command *self, int argc, char **argv)
{
    struct qf_cli_line line;
    int code = qf_cli_parse(self, argc, argv, NULL, NULL, &line);
    if (code >= 0)
        return code;
    struct qf_err err = {""};
    if (qf_demo_write(line.operands[0], &err) != 0) {
        fprintf(stderr, "quantfs demo: %s\n", err.text);
        return QF_CLI_FAILED;
    }
    return QF_CLI_OK;
}

const struct qf_cli_command qf_cmd_demo = {
    .name = "demo",
    .summary = "write a small random model to try things with",
    .about = "Writes a Llama of 22 million random bfloat16 parameters (two shards, 44 "
             "MB) into DIR, which is made if it is missing and must be empty if it is "
             "there.",
    .operands = (const struct qf_cli_operand[]){{.word = "DIR"}, {0}},
    .exits = (const struct qf_cli_exit[]){{"0", "written"},
                                          {"1", "usage"},
                                          {"2", "could not be written"},
                                          {0}},
    .run = demo,
};
