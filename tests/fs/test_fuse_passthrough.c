/* SPDX-License-Identifier: Apache-2.0 */
/* What goes into libfuse's replies for passthrough: to INIT if the kernel offers it,
 * and to opens of sealed shards. The device that hands out backing ids is a fake. */
#include "fs/fuse_client.h"

#include "unit/test_file_store.h"

#define SHARD        "nf4/org/big/model.safetensors"
#define SMALL        "nf4/org/model/model.safetensors"
#define INIT_EXT     (UINT32_C(1) << 30)
#define PASSTHROUGH2 (1u << 5)
#define OPEN_PASS    (1u << 7)

static struct client c;
static struct file_store store;
static char *files;

static struct {
    atomic_int fail, opens, closes, switches;
    atomic_bool on;
} device;

static int device_open(void *arg, int fd)
{
    (void)arg;
    assert_true(fcntl(fd, F_GETFD) >= 0);
    int n = atomic_fetch_add(&device.opens, 1) + 1;
    return device.fail != 0 ? device.fail : 100 + n;
}

static void device_close(void *arg, int id)
{
    (void)arg;
    (void)id;
    atomic_fetch_add(&device.closes, 1);
}

static void switched(void *arg, bool on)
{
    const struct client *client = arg;
    atomic_store(&device.on, on);
    atomic_fetch_add(&device.switches, 1);
    qf_engine_set_sealing(client->s.engine, on);
}

static qf_store *wrap(qf_store *real)
{
    file_store_init(&store, real, files);
    return &store.base;
}

/* A model whose shard is large enough to be sealed. */
static void prepare(struct client *client)
{
    static const struct stfile_tensor tensors[] = {
        {"model.layers.0.self_attn.q_proj.weight",
         QF_BF16,
         2,
         {2048, 1024, 0, 0},
         NULL},
        {"model.norm.weight", QF_BF16, 1, {64, 0, 0, 0}, NULL},
    };
    tmpdir_write_text(client->s.dir, "org/big/config.json", CONFIG);
    stfile_write(client->s.dir, "org/big/model.safetensors", tensors, 2);
    assert_int_equal(qf_passthrough_new(switched, client, &client->s.passthrough), 0);
    client->device = (struct qf_passthrough_device){device_open, device_close, NULL};
    client->s.wrap = wrap;
}

static int setup(void **state)
{
    (void)state;
    memset(&device, 0, sizeof device);
    files = tmpdir_make();
    client_begin(&c, prepare);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    qf_passthrough *passthrough = c.s.passthrough;
    client_end(&c);
    qf_passthrough_free(passthrough);
    tmpdir_remove(files);
    return 0;
}

/* INIT as a kernel of today sends it. */
static struct fuse_init_out init(uint32_t flags2)
{
    struct fuse_init_out out;
    uint32_t in[16] = {7, 45, 1u << 20, 0x3ffffff | INIT_EXT, flags2};
    assert_int_equal(call(&c, FUSE_INIT, 0, in, sizeof in), 0);
    assert_int_equal(c.reply_size, sizeof out);
    memcpy(&out, c.reply, sizeof out);
    return out;
}

static uint32_t stack_depth(void)
{
    uint32_t depth;
    memcpy(&depth, c.reply + 36, sizeof depth);
    return depth;
}

static struct fuse_open_out open_ok(uint64_t node)
{
    struct fuse_open_out out = {0};
    assert_int_equal(call_open(&c, FUSE_OPEN, node, O_RDONLY, &out), 0);
    return out;
}

static int32_t backing_of(const struct fuse_open_out *out)
{
    int32_t id;
    memcpy(&id, (const char *)out + 12, sizeof id);
    return id;
}

static void release(uint64_t node, const struct fuse_open_out *open)
{
    assert_int_equal(call_release(&c, FUSE_RELEASE, node, open->fh), 0);
}

static void status_says(const char *line)
{
    uint64_t node = walk(&c, ".quantfs/status").nodeid;
    struct fuse_open_out open = open_ok(node);
    assert_int_equal(open.open_flags, FOPEN_DIRECT_IO);
    assert_int_equal(call_read(&c, FUSE_READ, node, open.fh, 0, 65536), 0);
    if (memmem(c.reply, c.reply_size, line, strlen(line)) == NULL)
        fail_msg("the status lacks '%s':\n%.*s", line, (int)c.reply_size,
                 (const char *)c.reply);
    release(node, &open);
}

static void read_whole(uint64_t node, const struct fuse_open_out *open)
{
    uint64_t off = 0;
    do {
        assert_int_equal(call_read(&c, FUSE_READ, node, open->fh, off,
                                   QF_FUSE_READ_SIZE_MAX),
                         0);
        off += c.reply_size;
    } while (c.reply_size > 0);
}

static void wait_sealed(void)
{
    struct qf_engine_stats stats;
    do {
        usleep(1000);
        qf_engine_stats(c.s.engine, &stats);
    } while (stats.shards_sealed == 0);
}

static void test_offered(void **state)
{
    (void)state;
    struct fuse_init_out out = init(PASSTHROUGH2);
    assert_true(out.flags & INIT_EXT);
    assert_int_equal(out.flags2 & PASSTHROUGH2, PASSTHROUGH2);
    assert_int_equal(stack_depth(), 1);
    /* the rest is libfuse's */
    assert_true(out.flags & FUSE_EXPORT_SUPPORT);
    assert_int_equal(out.max_background, 64);
    status_says("passthrough=on\n");
    assert_true(device.on);
    assert_int_equal(device.opens, 1);
    assert_int_equal(device.closes, 1);
}

static void test_not_offered(void **state)
{
    (void)state;
    struct fuse_init_out out = init(0);
    assert_false(out.flags2 & PASSTHROUGH2);
    assert_int_equal(stack_depth(), 0);
    status_says("passthrough=off (the kernel has none");
    assert_int_equal(device.opens, 0);
    uint64_t node = walk(&c, SHARD).nodeid;
    struct fuse_open_out open = open_ok(node);
    read_whole(node, &open);
    release(node, &open);
    open = open_ok(node);
    assert_int_equal(open.open_flags, FOPEN_KEEP_CACHE);
    release(node, &open);
    assert_int_equal(store.begins, 0);
}

static void test_old_kernel(void **state)
{
    (void)state;
    struct fuse_init_out out = call_init(&c);
    assert_false(out.flags & INIT_EXT);
    assert_int_equal(stack_depth(), 0);
    status_says("passthrough=off (the kernel has none");
}

static void test_not_allowed(void **state)
{
    (void)state;
    device.fail = -EPERM;
    init(PASSTHROUGH2);
    status_says("passthrough=off (it takes CAP_SYS_ADMIN)\n");
    status_says("opens_passthrough=0\n");
    uint64_t node = walk(&c, SHARD).nodeid;
    struct fuse_open_out open = open_ok(node);
    assert_int_equal(open.open_flags, FOPEN_KEEP_CACHE);
    release(node, &open);
    assert_int_equal(device.opens, 1);
    assert_int_equal(device.switches, 0);
}

static void test_opens(void **state)
{
    (void)state;
    init(PASSTHROUGH2);
    uint64_t node = walk(&c, SHARD).nodeid;
    struct fuse_open_out first = open_ok(node);
    assert_int_equal(first.open_flags, FOPEN_KEEP_CACHE);
    assert_int_equal(backing_of(&first), 0);
    read_whole(node, &first);
    release(node, &first);
    wait_sealed();
    /* sealed: the kernel's own, and so are further opens, with one backing file */
    first = open_ok(node);
    assert_int_equal(first.open_flags, OPEN_PASS);
    int32_t id = backing_of(&first);
    assert_true(id > 100);
    struct fuse_open_out second = open_ok(node);
    assert_int_equal(second.open_flags, OPEN_PASS);
    assert_int_equal(backing_of(&second), id);
    assert_int_not_equal(first.fh, second.fh);
    /* what is said in between is left alone */
    struct fuse_open_out other;
    status_says("opens_passthrough=2\n");
    status_says("shards_sealed=1\n");
    assert_int_equal(call_open(&c, FUSE_OPEN, node, O_RDWR, &other), -EROFS);
    uint64_t small = walk(&c, SMALL).nodeid;
    other = open_ok(small);
    assert_int_equal(other.open_flags, FOPEN_KEEP_CACHE);
    assert_int_equal(backing_of(&other), 0);
    read_whole(small, &other);
    release(small, &other);
    release(node, &first);
    assert_int_equal(device.closes, 1);
    release(node, &second);
    assert_int_equal(device.closes, 2);
    /* a kernel that wants bytes from us all the same gets them */
    first = open_ok(node);
    assert_int_equal(first.open_flags, OPEN_PASS);
    assert_int_not_equal(backing_of(&first), id);
    size_t size;
    char *want = sfx_contents(&c.s, SHARD, &size);
    assert_int_equal(call_read(&c, FUSE_READ, node, first.fh, 1000, 65536), 0);
    assert_memory_equal(c.reply, want + 1000, 65536);
    free(want);
    /* and is left open, as when the session ends by a signal */
}

/* Whoever has it open in cached mode keeps everybody else there. */
static void test_cached_mode_holds(void **state)
{
    (void)state;
    init(PASSTHROUGH2);
    uint64_t node = walk(&c, SHARD).nodeid;
    struct fuse_open_out one = open_ok(node);
    atomic_store(&store.open_rc, -ENOENT);
    read_whole(node, &one);
    release(node, &one);
    wait_sealed();
    one = open_ok(node);
    atomic_store(&store.open_rc, 0);
    struct fuse_open_out two = open_ok(node);
    assert_int_equal(two.open_flags, FOPEN_KEEP_CACHE);
    release(node, &one);
    one = open_ok(node);
    assert_int_equal(one.open_flags, FOPEN_KEEP_CACHE);
    release(node, &one);
    release(node, &two);
    one = open_ok(node);
    assert_int_equal(one.open_flags, OPEN_PASS);
    /* evicted meanwhile: in the mode that the inode is in */
    atomic_store(&store.open_rc, -ENOENT);
    two = open_ok(node);
    assert_int_equal(backing_of(&two), backing_of(&one));
    release(node, &two);
    release(node, &one);
    two = open_ok(node);
    assert_int_equal(two.open_flags, FOPEN_KEEP_CACHE);
    release(node, &two);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_offered),     TEST(test_not_offered), TEST(test_old_kernel),
        TEST(test_not_allowed), TEST(test_opens),       TEST(test_cached_mode_holds),
    };
    return cmocka_run_group_tests_name("fuse_passthrough", tests, NULL, NULL);
}
