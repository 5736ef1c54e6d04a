/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/opts.h"

static struct qf_mount_options o;

static int parse(const char *list)
{
    qf_mount_options_init(&o);
    return qf_mount_options_parse(&o, list, NULL);
}

static void assert_refused(const char *list, const char *word)
{
    struct qf_err err = {""};
    qf_mount_options_init(&o);
    assert_int_equal(qf_mount_options_parse(&o, list, &err), -EINVAL);
    if (strstr(err.text, word) == NULL)
        fail_msg("%s: '%s' does not name '%s'", list, err.text, word);
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int rc;
        uint64_t value;
    } cases[] = {
        {"0", 0, 0},
        {"4096", 0, 4096},
        {"512K", 0, 512u << 10},
        {"64M", 0, 64u << 20},
        {"2G", 0, UINT64_C(2) << 30},
        {"1T", 0, UINT64_C(1) << 40},
        {"18446744073709551615", 0, UINT64_MAX},
        {"18446744073709551616", -ERANGE, 0},
        {"16777215T", 0, UINT64_C(16777215) << 40},
        {"16777216T", -ERANGE, 0},
        {"99999999999999999999999", -ERANGE, 0},
        {"18014398509481984K", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"+1", -EINVAL, 0},
        {" 1", -EINVAL, 0},
        {"1 ", -EINVAL, 0},
        {"K", -EINVAL, 0},
        {"1KB", -EINVAL, 0},
        {"1k", -EINVAL, 0},
        {"1.5G", -EINVAL, 0},
        {"0x10", -EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t value = 0;
        if (qf_parse_size(cases[i].text, &value) != cases[i].rc ||
            value != cases[i].value)
            fail_msg("'%s'", cases[i].text);
    }
}

static void test_defaults(void **state)
{
    (void)state;
    assert_int_equal(parse(""), 0);
    assert_int_equal(o.view_count, 0);
    assert_int_equal(o.attr_ttl_s, QF_ATTR_TTL_DEFAULT_S);
    assert_int_equal(o.read_ahead_kb, QF_READ_AHEAD_DEFAULT_KB);
    assert_false(o.allow_other);
    assert_string_equal(o.kernel, "");
    assert_string_equal(o.cache, "");
    assert_int_equal(parse(",,"), 0);
}

static void test_every_option(void **state)
{
    (void)state;
    assert_int_equal(
        parse("views=dq:nf4,cache=/c/d "
              "e,cache_size=1G,cache_min_free=2G,memory=64M,threads=3,isa=avx2,"
              "attr_ttl=7,alias=bnb,read_ahead_kb=128,fsname=x=y,allow_other,"
              "passthrough=off,"
              "debug"),
        0);
    assert_int_equal(o.view_count, 2);
    assert_string_equal(o.views[0].name, "dq");
    assert_string_equal(o.views[1].name, "nf4");
    assert_string_equal(o.cache, "/c/d e");
    assert_int_equal(o.cache_size, 1u << 30);
    assert_int_equal(o.cache_min_free, 2u << 30);
    assert_int_equal(o.memory, 64u << 20);
    assert_int_equal(o.threads, 3);
    assert_string_equal(o.isa, "avx2");
    assert_int_equal(o.attr_ttl_s, 7);
    assert_int_equal(o.drain_timeout_s, QF_DRAIN_DEFAULT_S);
    assert_false(o.log_json);
    assert_int_equal(qf_mount_options_parse(
                         &o, "drain_timeout=3600,log_format=json,limits=/l", NULL),
                     0);
    assert_int_equal(o.drain_timeout_s, 3600);
    assert_true(o.log_json);
    assert_string_equal(o.limits, "/l");
    assert_int_equal(o.read_ahead_kb, 128);
    assert_string_equal(o.fsname, "x=y");
    assert_true(o.alias_bnb);
    assert_true(o.allow_other);
    assert_true(o.no_passthrough);
    assert_true(o.debug);
    /* a later list adds to an earlier one, and the last word counts */
    assert_int_equal(
        qf_mount_options_parse(
            &o, "attr_ttl=0,alias=none,views=int8:nf4+skip=b+skip=a,passthrough=auto",
            NULL),
        0);
    assert_false(o.alias_bnb);
    assert_string_equal(o.views[1].name, "nf4+skip=a:b");
    assert_false(o.no_passthrough);
    assert_int_equal(o.attr_ttl_s, 0);
    assert_int_equal(o.view_count, 2);
    assert_int_equal(o.threads, 3);
}

static void test_mount_words(void **state)
{
    (void)state;
    assert_int_equal(parse("rw,defaults,auto,noauto,user,nouser,users,owner,group,"
                           "_netdev,nofail,relatime,norelatime,strictatime,"
                           "x-systemd.automount,x-foo=bar,comment=hi"),
                     0);
    assert_string_equal(o.kernel, "");
    assert_int_equal(parse("ro,nosuid,nodev,noexec,noatime,auto_unmount"), 0);
    assert_string_equal(o.kernel, "ro,nosuid,nodev,noexec,noatime,auto_unmount");
    /* as mount(8) of util-linux hands them on */
    assert_int_equal(parse("user=alice,uhelper=x,helper=y,X-mount.mkdir=0755"), 0);
    assert_refused("remount,ro", "remount");
    assert_refused("uid=3", "uid");
    assert_int_equal(parse("sloppy,uid=3,mand"), 0);
    assert_refused("sloppy,remount", "remount");
    assert_refused("sloppy,views=nf5", "nf5");
    assert_refused("uhelper", "uhelper");
    assert_refused("nosuid=1", "nosuid");
    assert_refused("defaults=1", "defaults");
}

static void test_refusals(void **state)
{
    (void)state;
    assert_refused("colour", "colour");
    assert_refused("colour=red", "colour");
    assert_refused("Views=nf4", "Views");
    assert_refused("views", "views");
    assert_refused("views=", "views");
    assert_refused("views=nf5", "nf5");
    assert_refused("views=nf4:", "views");
    assert_refused("views=nf4:nf4", "nf4");
    assert_refused("views=nf4+blocksize=1", "'blocksize' must be");
    assert_refused("views=nf4+skip=a:b", "skip=A+skip=B");
    assert_refused("alias", "alias");
    assert_refused("alias=all", "bnb or none");
    assert_refused("passthrough", "passthrough");
    assert_refused("passthrough=", "passthrough");
    assert_refused("passthrough=on", "passthrough");
    assert_refused("cache", "cache");
    assert_refused("cache=", "cache");
    assert_refused("cache_size=big", "cache_size");
    assert_refused("cache_size=", "cache_size");
    assert_refused("cache_min_free=10%", "cache_min_free");
    assert_refused("memory=-1", "memory");
    assert_refused("memory=99999999999999999999", "memory");
    assert_refused("threads=many", "threads");
    assert_refused("threads=1025", "threads");
    assert_refused("isa=", "isa");
    assert_refused("isa=a-name-that-is-far-too-long", "isa");
    assert_refused("attr_ttl=31536001", "attr_ttl");
    assert_refused("read_ahead_kb=1048577", "read_ahead_kb");
    assert_refused("fsname=", "fsname");
    assert_refused("allow_other=1", "allow_other");
    assert_refused("debug=", "debug");
    assert_refused("limits=", "limits");
    assert_refused("drain_timeout=0", "at least 1");
    assert_refused("drain_timeout=3601", "drain_timeout");
    assert_refused("log_format=xml", "log_format");
    assert_refused("=", "''");
    assert_refused("nofail,ro,oops", "oops");
    assert_int_equal(parse("threads=1024,attr_ttl=31536000,read_ahead_kb=1048576"), 0);
}

static void test_limits(void **state)
{
    (void)state;
    struct qf_err err = {""};
    assert_int_equal(parse("cache_size=1G,cache_min_free=5"), 0);
    assert_int_equal(qf_mount_options_parse_limits(&o, "", NULL), 0);
    assert_int_equal(o.cache_size, 1u << 30);
    assert_int_equal(qf_mount_options_parse_limits(
                         &o, "# why\n\n cache_size=2G \r\n\tcache_min_free=7", NULL),
                     0);
    assert_int_equal(o.cache_size, 2u << 30);
    assert_int_equal(o.cache_min_free, 7);
    static const char *const wrong[] = {"cache_size", "cache_size=", "cache_size=x",
                                        "memory=1G",  "cache",       "x-comment"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char text[64];
        snprintf(text, sizeof text, "cache_size=1M\n%s\n", wrong[i]);
        assert_int_equal(qf_mount_options_parse_limits(&o, text, &err), -EINVAL);
        assert_memory_equal(err.text, "line 2: ", 8);
    }
}

static void test_too_long(void **state)
{
    (void)state;
    char *list = calloc(1, 3 * QF_OPT_TEXT_SIZE);
    assert_non_null(list);
    strcpy(list, "cache=");
    memset(list + 6, 'c', QF_OPT_TEXT_SIZE - 1);
    assert_int_equal(parse(list), 0);
    assert_int_equal(strlen(o.cache), QF_OPT_TEXT_SIZE - 1);
    memset(list + 6, 'c', QF_OPT_TEXT_SIZE);
    assert_refused(list, "cache");
    memset(list, 0, 3 * QF_OPT_TEXT_SIZE);
    for (size_t i = 0; i < QF_OPT_TEXT_SIZE / 4; i++)
        strcat(list, "sync,ro,");
    assert_refused(list, "too many");
    free(list);
}

/* What help, man pages and completions are made from. */
static void test_lists(void **state)
{
    (void)state;
    size_t count, seen = 0;
    const struct qf_mount_option *options = qf_mount_option_list(&count);
    static const char *const names[] = {"views",  "cache",       "cache_size",
                                        "memory", "threads",     "isa",
                                        "policy", "attr_ttl",    "read_ahead_kb",
                                        "fsname", "allow_other", "debug"};
    for (size_t i = 0; i < count; i++) {
        assert_true(options[i].help[0] != '\0' && options[i].set != NULL);
        for (size_t j = 0; j < sizeof names / sizeof *names; j++)
            seen += strcmp(names[j], options[i].name) == 0;
    }
    assert_int_equal(seen, sizeof names / sizeof *names);
    const char *const *(*const lists[])(size_t *) = {qf_mount_kernel_words,
                                                     qf_mount_ignored_words};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        const char *const *words = lists[i](&count);
        assert_true(count > 5);
        for (size_t j = 0; j < count; j++) {
            qf_mount_options_init(&o);
            assert_int_equal(qf_mount_options_parse(&o, words[j], NULL), 0);
            assert_string_equal(o.kernel, i == 0 ? words[j] : "");
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_option), cmocka_unit_test(test_mount_words),
        cmocka_unit_test(test_refusals),     cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_lists),        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests_name("fs_opts", tests, NULL, NULL);
}
