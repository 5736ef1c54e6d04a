/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/demo.h"

int qf_cmd_demo(int argc, char **argv)
{
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        puts("usage: quantfs demo DIR\n"
             "\n"
             "Writes a Llama of 22 million random bfloat16 parameters (two shards, 44 "
             "MB)\n"
             "into DIR, which is made if it is missing and must be empty if it is "
             "there.");
        return QF_CLI_OK;
    }
    if (argc != 2 || argv[1][0] == '-')
        return qf_cli_usage_error("demo", "one directory is needed");
    struct qf_err err = {""};
    if (qf_demo_write(argv[1], &err) != 0) {
        fprintf(stderr, "quantfs demo: %s\n", err.text);
        return QF_CLI_FAILED;
    }
    return QF_CLI_OK;
}
