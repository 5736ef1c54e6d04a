/* SPDX-License-Identifier: Apache-2.0 */
/* getopt_long, driven by a command's table. */
#include "cli/options.h"

#include <assert.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

#define HELP_ID 'h'
#define LONG    0x100 /* with the id: came as --name; without it, as a letter */

/* A leading ':' makes getopt tell a missing value from an unknown option. */
struct getopt_tables {
    char letters[2 * QF_CLI_OPTIONS_MAX + 3];
    struct option names[QF_CLI_OPTIONS_MAX + 2];
};

static void make_tables(const struct qf_cli_option *options, struct getopt_tables *t)
{
    size_t letters = 0, count = 0;
    t->letters[letters++] = ':';
    t->letters[letters++] = HELP_ID;
    t->names[count++] = (struct option){"help", no_argument, NULL, LONG | HELP_ID};
    for (const struct qf_cli_option *o = options; o != NULL && o->name != NULL; o++) {
        assert(count <= QF_CLI_OPTIONS_MAX && o->id != HELP_ID);
        int takes = o->value != NULL ? required_argument : no_argument;
        t->names[count++] = (struct option){o->name, takes, NULL, LONG | o->id};
        if (o->letter)
            t->letters[letters++] = o->id;
        if (o->letter && o->value != NULL)
            t->letters[letters++] = ':';
    }
    t->names[count] = (struct option){0};
    t->letters[letters] = '\0';
}

/* Of -xyz, which getopt has not left yet, the letter. */
static int refuse(const struct qf_cli_command *command, int c, const char *word)
{
    if (c == ':')
        return qf_cli_usage_error(command->name, "option '%s' needs a value", word);
    if (optopt != 0 && (optopt & LONG) == 0)
        return qf_cli_usage_error(command->name, "unknown option '-%c'", optopt);
    if (optopt != 0)
        return qf_cli_usage_error(command->name, "option '%s' takes no value", word);
    return qf_cli_usage_error(command->name, "unknown option '%s'", word);
}

static int check_operands(const struct qf_cli_command *command,
                          const struct qf_cli_line *line)
{
    size_t i = 0;
    bool repeats = false;
    for (const struct qf_cli_operand *o = command->operands;
         o != NULL && o->word != NULL; o++, i++) {
        if (i >= line->count)
            return qf_cli_usage_error(command->name, "%s is missing", o->word);
        repeats = o->repeats;
    }
    if (i < line->count && !repeats)
        return qf_cli_usage_error(command->name, "unexpected argument '%s'",
                                  line->operands[i]);
    return -1;
}

int qf_cli_parse(const struct qf_cli_command *command, int argc, char **argv,
                 qf_cli_take *take, void *arg, struct qf_cli_line *line)
{
    struct getopt_tables t;
    make_tables(command->options, &t);
    int c;
    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, t.letters, t.names, NULL)) != -1) {
        const char *word = argv[optind - 1];
        if ((c & ~LONG) == HELP_ID) {
            struct qf_buf text = {0};
            qf_cli_help(command, &text);
            return qf_cli_print(&text);
        }
        if (c == ':' || c == '?')
            return refuse(command, c, word);
        int code = take(arg, (char)(c & ~LONG), optarg);
        if (code != 0)
            return code;
    }
    line->operands = argv + optind;
    line->count = (size_t)(argc - optind);
    return check_operands(command, line);
}

int qf_cli_run_subcommand(const struct qf_cli_command *command, int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        struct qf_buf text = {0};
        qf_cli_help(command, &text);
        return qf_cli_print(&text);
    }
    struct qf_buf known = {0};
    for (const struct qf_cli_command *s = command->subcommands; s->name != NULL; s++) {
        const char *last = strrchr(s->name, ' ') + 1;
        if (strcmp(last, name) == 0) {
            qf_buf_fini(&known);
            return s->run(s, argc - 1, argv + 1);
        }
        qf_buf_appendf(&known, "%s%s", known.size != 0 ? ", " : "", last);
    }
    char *names = qf_buf_take(&known, NULL);
    int code = argc > 1
                   ? qf_cli_usage_error(command->name, "unknown command '%s'", name)
                   : qf_cli_usage_error(command->name, "which of %s?",
                                        names != NULL ? names : "them");
    free(names);
    return code;
}
