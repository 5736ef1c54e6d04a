/* SPDX-License-Identifier: Apache-2.0 */
/* Links and what is neither file nor directory. */
#include "test_fs_fixture.h"

#include <sys/socket.h>
#include <sys/un.h>

static void link_to(const struct sfx *s, const char *target, const char *path)
{
    assert_int_equal(symlink(target, sfx_path(s, path)), 0);
}

static void test_inside(void **state)
{
    (void)state;
    struct sfx s;
    sfx_begin(&s);
    sfx_model(&s, "real");
    tmpdir_write_text(s.dir, "hub/blobs/x", "");
    assert_int_equal(mkdir(sfx_path(&s, "hub/snap"), 0777), 0);
    link_to(&s, "real", "alias");
    link_to(&s, "../../real/config.json", "hub/snap/config.json");
    link_to(&s, "../../real/model.safetensors", "hub/snap/model.safetensors");
    sfx_open(&s, "nf4");
    assert_string_equal(sfx_list(&s, sfx_entry(&s, "nf4").st.st_ino),
                        "alias/ hub/ real/");
    assert_string_equal(sfx_list(&s, sfx_entry(&s, "nf4/hub/snap").st.st_ino),
                        "config.json model.safetensors");
    assert_true(sfx_is_quantized(&s, "nf4/alias/model.safetensors"));
    assert_true(sfx_is_quantized(&s, "nf4/hub/snap/config.json"));
    size_t size, other_size;
    char *text = sfx_contents(&s, "nf4/hub/snap/model.safetensors", &size);
    char *other = sfx_contents(&s, "nf4/real/model.safetensors", &other_size);
    assert_int_equal(size, other_size);
    assert_memory_equal(text, other, size);
    /* one source, one encoding, whatever the name: two tensors of one chunk each */
    struct qf_engine_stats stats;
    qf_engine_stats(s.engine, &stats);
    assert_int_equal(stats.chunks_encoded, 2);
    struct qf_entry link = sfx_entry(&s, "nf4/hub/snap/config.json");
    assert_true(S_ISREG(link.st.st_mode));
    assert_int_not_equal(link.st.st_ino,
                         sfx_entry(&s, "nf4/real/config.json").st.st_ino);
    free(text);
    free(other);
    sfx_close(&s);
    sfx_end(&s);
}

static void test_outside_and_broken(void **state)
{
    (void)state;
    struct sfx s, outside;
    struct qf_entry e;
    sfx_begin(&s);
    sfx_begin(&outside);
    tmpdir_write_text(outside.dir, "secret", "secret");
    tmpdir_write_text(s.dir, "file", "");
    assert_int_equal(mkdir(sfx_path(&s, "d"), 0777), 0);
    link_to(&s, outside.dir, "d/out");
    link_to(&s, sfx_path(&outside, "secret"), "out.txt");
    link_to(&s, "../../../../../../../../etc/passwd", "d/up");
    link_to(&s, "nowhere", "broken");
    link_to(&s, "self", "self");
    link_to(&s, "file/x", "through_file");
    sfx_open(&s, "nf4");
    assert_string_equal(sfx_list(&s, sfx_entry(&s, "nf4").st.st_ino), "d/ file");
    assert_string_equal(sfx_list(&s, sfx_entry(&s, "nf4/d").st.st_ino), "");
    assert_int_equal(sfx_lookup(&s, "nf4/d/out", &e), -EXDEV);
    assert_int_equal(sfx_lookup(&s, "nf4/d/out/secret", &e), -EXDEV);
    assert_int_equal(sfx_lookup(&s, "nf4/out.txt", &e), -EXDEV);
    assert_int_equal(sfx_lookup(&s, "nf4/d/up", &e), -EXDEV);
    assert_int_equal(sfx_lookup(&s, "nf4/broken", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "nf4/self", &e), -ELOOP);
    assert_int_equal(sfx_lookup(&s, "nf4/through_file", &e), -ENOTDIR);
    sfx_close(&s);
    sfx_end(&s);
    sfx_end(&outside);
}

static void test_loops(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    sfx_begin(&s);
    tmpdir_write_text(s.dir, "a/file", "");
    tmpdir_write_text(s.dir, "b/file", "");
    link_to(&s, ".", "top");
    link_to(&s, "..", "a/up");
    link_to(&s, "../b", "a/to_b");
    link_to(&s, "../a", "b/to_a");
    link_to(&s, "two", "one");
    link_to(&s, "one", "two");
    sfx_open(&s, "nf4");
    assert_string_equal(sfx_list(&s, sfx_entry(&s, "nf4").st.st_ino), "a/ b/");
    assert_string_equal(sfx_list(&s, sfx_entry(&s, "nf4/a").st.st_ino), "file to_b/");
    /* one time round, and no further */
    assert_string_equal(sfx_list(&s, sfx_entry(&s, "nf4/a/to_b").st.st_ino), "file");
    assert_int_equal(sfx_lookup(&s, "nf4/a/to_b/to_a", &e), -ELOOP);
    assert_int_equal(sfx_lookup(&s, "nf4/top", &e), -ELOOP);
    assert_int_equal(sfx_lookup(&s, "nf4/a/up", &e), -ELOOP);
    assert_int_equal(sfx_lookup(&s, "nf4/one", &e), -ELOOP);
    /* an unknown id is searched for, and the search ends */
    assert_int_equal(qf_tree_getattr(s.tree, 4711, &e), -ESTALE);
    sfx_close(&s);
    sfx_end(&s);
}

static void test_other_kinds(void **state)
{
    (void)state;
    struct sfx s;
    struct qf_entry e;
    sfx_begin(&s);
    tmpdir_write_text(s.dir, "m/file", "");
    assert_int_equal(mkfifo(sfx_path(&s, "m/pipe"), 0666), 0);
    assert_int_equal(mkfifo(sfx_path(&s, "m/config.json"), 0666), 0);
    link_to(&s, "pipe", "m/link_to_pipe");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int n = snprintf(address.sun_path, sizeof address.sun_path, "%s/m/sock", s.dir);
    assert_true(n > 0 && (size_t)n < sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    sfx_open(&s, "nf4");
    assert_string_equal(sfx_list(&s, sfx_entry(&s, "nf4/m").st.st_ino), "file");
    assert_int_equal(sfx_lookup(&s, "nf4/m/pipe", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "nf4/m/link_to_pipe", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "nf4/m/sock", &e), -ENOENT);
    assert_int_equal(sfx_lookup(&s, "nf4/m/config.json", &e), -ENOENT);
    close(fd);
    sfx_close(&s);
    sfx_end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inside),
        cmocka_unit_test(test_outside_and_broken),
        cmocka_unit_test(test_loops),
        cmocka_unit_test(test_other_kinds),
    };
    return cmocka_run_group_tests_name("fs_links", tests, NULL, NULL);
}
