/* SPDX-License-Identifier: Apache-2.0 */
/* The tables as JSON: what the man pages, the completions and the tests are made from.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cli/options.h"
#include "fs/opts.h"
#include "view/names.h"

/* `"name": "text"`, or null. */
static void member(struct qf_buf *out, const char *before, const char *name,
                   const char *text)
{
    qf_buf_appendf(out, "%s\"%s\": ", before, name);
    if (text != NULL)
        qf_buf_append_json(out, text, strlen(text));
    else
        qf_buf_append_str(out, "null");
}

static void dump_option(const struct qf_cli_option *o, struct qf_buf *out)
{
    const char letter[2] = {o->id, '\0'};
    member(out, "{", "name", o->name);
    member(out, ", ", "letter", o->letter ? letter : NULL);
    member(out, ", ", "value", o->value);
    member(out, ", ", "kind", o->value != NULL ? qf_cli_kind(o->value) : NULL);
    qf_buf_appendf(out, ", \"repeats\": %s", o->repeats ? "true" : "false");
    member(out, ", ", "help", o->help);
    qf_buf_append_str(out, "}");
}

static void dump_options(const struct qf_cli_option *options, struct qf_buf *out)
{
    static const struct qf_cli_option help = {.id = 'h',
                                              .letter = true,
                                              .name = "help",
                                              .help = "print this help"};
    qf_buf_append_str(out, ",\n\"options\": [");
    for (const struct qf_cli_option *o = options; o != NULL && o->name != NULL; o++) {
        dump_option(o, out);
        qf_buf_append_str(out, ",\n");
    }
    dump_option(&help, out);
    qf_buf_append_str(out, "]");
}

static void dump_operands(const struct qf_cli_operand *operands, struct qf_buf *out)
{
    qf_buf_append_str(out, ",\n\"operands\": [");
    for (const struct qf_cli_operand *o = operands; o != NULL && o->word != NULL; o++) {
        member(out, o != operands ? ", {" : "{", "word", o->word);
        member(out, ", ", "kind", qf_cli_kind(o->word));
        qf_buf_appendf(out, ", \"repeats\": %s}", o->repeats ? "true" : "false");
    }
    qf_buf_append_str(out, "]");
}

static void dump_exits(const struct qf_cli_exit *exits, struct qf_buf *out)
{
    qf_buf_append_str(out, ",\n\"exits\": [");
    for (const struct qf_cli_exit *e = exits; e != NULL && e->code != NULL; e++) {
        member(out, e != exits ? ", {" : "{", "code", e->code);
        member(out, ", ", "meaning", e->meaning);
        qf_buf_append_str(out, "}");
    }
    qf_buf_append_str(out, "]");
}

static void dump_synopsis(const struct qf_cli_command *command, struct qf_buf *out)
{
    struct qf_buf line = {0};
    if (command->subcommands == NULL)
        qf_cli_synopsis(command, 0, SIZE_MAX, &line);
    else
        qf_buf_appendf(&line, "quantfs %s COMMAND", command->name);
    char *text = qf_buf_take(&line, NULL);
    out->failed = out->failed || text == NULL;
    member(out, ",\n", "synopsis", text);
    free(text);
}

static void dump_command(const struct qf_cli_command *command, struct qf_buf *out)
{
    member(out, "{", "name", command->name);
    dump_synopsis(command, out);
    member(out, ",\n", "summary", command->summary);
    member(out, ",\n", "about", command->about);
    dump_options(command->options, out);
    dump_operands(command->operands, out);
    dump_exits(command->exits, out);
    qf_buf_appendf(out, ",\n\"tells_mount_options\": %s,\n\"subcommands\": [",
                   command->tells_mount_options ? "true" : "false");
    const struct qf_cli_command *subs = command->subcommands;
    for (const struct qf_cli_command *s = subs; s != NULL && s->name != NULL; s++) {
        qf_buf_append_str(out, s != subs ? ",\n" : "");
        dump_command(s, out);
    }
    qf_buf_append_str(out, "]}");
}

static void dump_words(const char *name, const char *const *words, size_t count,
                       struct qf_buf *out)
{
    qf_buf_appendf(out, ",\n\"%s\": [", name);
    for (size_t i = 0; i < count; i++) {
        qf_buf_append_str(out, i != 0 ? ", " : "");
        qf_buf_append_json(out, words[i], strlen(words[i]));
    }
    qf_buf_append_str(out, "]");
}

void qf_cli_dump(const struct qf_cli_command *const *commands, struct qf_buf *out)
{
    size_t count;
    member(out, "{", "version", QUANTFS_VERSION);
    qf_buf_append_str(out, ",\n\"views\": \"");
    for (int i = 0; i < QF_CODEC_COUNT; i++)
        qf_buf_appendf(out, "%s%s", i != 0 ? ":" : "", qf_codec_name((enum qf_codec)i));
    qf_buf_append_str(out, "\"");
    qf_buf_append_str(out, ",\n\"commands\": [");
    for (size_t i = 0; commands[i] != NULL; i++) {
        qf_buf_append_str(out, i != 0 ? ",\n" : "");
        dump_command(commands[i], out);
    }
    qf_buf_append_str(out, "],\n\"mount_options\": [");
    const struct qf_mount_option *options = qf_mount_option_list(&count);
    for (size_t i = 0; i < count; i++) {
        const struct qf_cli_option option = {.name = options[i].name,
                                             .value = options[i].value,
                                             .help = options[i].help};
        qf_buf_append_str(out, i != 0 ? ",\n" : "");
        dump_option(&option, out);
    }
    qf_buf_append_str(out, "]");
    const char *const *words = qf_mount_kernel_words(&count);
    dump_words("kernel_words", words, count, out);
    words = qf_mount_ignored_words(&count);
    dump_words("ignored_words", words, count, out);
    qf_buf_append_str(out, "}\n");
}
