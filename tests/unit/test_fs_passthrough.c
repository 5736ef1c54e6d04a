/* SPDX-License-Identifier: Apache-2.0 */
/* Which mode an inode is in, over a device that does and says what it is told; and the
 * patches of the kernel's protocol. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it. */
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "fs/fuse_wire.h"
#include "fs/passthrough.h"

#define IDS 64

struct device {
    int fail;  /* returned instead of an id */
    int calls; /* of open */
    int last;  /* fd of the last open */
    int next;  /* id */
    bool open[IDS];
    int switches[8];
    int switch_count;
};

static int device_open(void *arg, int fd)
{
    struct device *d = arg;
    d->calls++;
    d->last = fd;
    if (d->fail != 0)
        return d->fail;
    do
        d->next = d->next % (IDS - 1) + 1;
    while (d->open[d->next]);
    d->open[d->next] = true;
    return d->next;
}

static void device_close(void *arg, int id)
{
    struct device *d = arg;
    assert_true(id > 0 && id < IDS);
    assert_true(d->open[id]);
    d->open[id] = false;
}

static void switched(void *arg, bool on)
{
    struct device *d = arg;
    assert_true(d->switch_count < 8);
    d->switches[d->switch_count++] = on;
}

static int open_count(const struct device *d)
{
    int count = 0;
    for (int i = 0; i < IDS; i++)
        count += d->open[i];
    return count;
}

static qf_passthrough *begin(struct device *d, bool start)
{
    qf_passthrough *pt;
    *d = (struct device){0};
    qf_log_set_level(QF_LOG_ERROR);
    assert_int_equal(qf_passthrough_new(switched, d, &pt), 0);
    struct qf_passthrough_device device = {device_open, device_close, d};
    if (start) {
        qf_passthrough_start(pt, &device);
        d->calls = 0;
    }
    return pt;
}

static void start(qf_passthrough *pt, struct device *d)
{
    struct qf_passthrough_device device = {device_open, device_close, d};
    qf_passthrough_start(pt, &device);
}

static void describes(qf_passthrough *pt, const char *want)
{
    struct qf_buf buf = {0};
    qf_passthrough_describe(pt, &buf);
    char *text = qf_buf_take(&buf, NULL);
    assert_non_null(text);
    if (strstr(text, want) == NULL)
        fail_msg("'%s' does not say '%s'", text, want);
    free(text);
}

static void test_start(void **state)
{
    (void)state;
    struct device d;
    qf_passthrough *pt = begin(&d, false);
    assert_true(qf_passthrough_wanted(pt));
    describes(pt, "off (");
    /* not asked for yet: cached, and no question to the device */
    assert_int_equal(qf_passthrough_open(pt, 1, 1, 5), 0);
    assert_int_equal(d.calls, 0);
    start(pt, &d);
    describes(pt, "on");
    assert_int_equal(d.calls, 1); /* tried with a file of our own, which is closed */
    assert_int_equal(open_count(&d), 0);
    assert_int_equal(d.switch_count, 1);
    assert_int_equal(d.switches[0], true);
    start(pt, &d);
    assert_int_equal(d.calls, 1);
    /* an inode from before stays cached */
    assert_int_equal(qf_passthrough_open(pt, 1, 1, 5), 0);
    assert_true(qf_passthrough_open(pt, 2, 1, 5) > 0);
    for (int i = 0; i < 2; i++)
        qf_passthrough_release(pt, 1, 1);
    qf_passthrough_release(pt, 2, 1);
    assert_int_equal(open_count(&d), 0);
    qf_passthrough_free(pt);
    qf_passthrough_free(NULL);
}

static void test_start_refused(void **state)
{
    (void)state;
    static const struct {
        int rc;
        const char *says;
    } cases[] = {{-EPERM, "off (it takes CAP_SYS_ADMIN"},
                 {-ELOOP, "off (the cache lies on a stacked"},
                 {-ENOTTY, "off (the kernel refuses"},
                 {-ENOMEM, "off (the kernel took no file"}};
    for (size_t i = 0; i < 4; i++) {
        struct device d;
        qf_passthrough *pt = begin(&d, false);
        d.fail = cases[i].rc;
        start(pt, &d);
        describes(pt, cases[i].says);
        assert_int_equal(d.switch_count, 0);
        assert_false(qf_passthrough_wanted(pt));
        d.fail = 0;
        start(pt, &d);
        assert_int_equal(qf_passthrough_open(pt, 1, 1, 5), 0);
        qf_passthrough_release(pt, 1, 1);
        assert_int_equal(d.calls, 1);
        qf_passthrough_free(pt);
    }
}

static void test_off(void **state)
{
    (void)state;
    struct device d;
    qf_passthrough *pt = begin(&d, false);
    qf_passthrough_off(pt, "because");
    qf_passthrough_off(pt, "another reason");
    describes(pt, "off (because)");
    start(pt, &d);
    assert_int_equal(d.calls, 0);
    assert_int_equal(d.switch_count, 0);
    qf_passthrough_free(pt);
}

static void test_modes(void **state)
{
    (void)state;
    struct device d;
    qf_passthrough *pt = begin(&d, true);
    /* passthrough: one backing file for all opens, whatever they bring */
    int id = qf_passthrough_open(pt, 7, 3, 10);
    assert_true(id > 0);
    assert_int_equal(d.last, 10);
    assert_int_equal(qf_passthrough_open(pt, 7, 3, 11), id);
    assert_int_equal(qf_passthrough_open(pt, 7, 3, -1), id);
    assert_int_equal(d.calls, 1);
    assert_int_equal(qf_passthrough_opens(pt), 3);
    /* another version, another inode */
    int newer = qf_passthrough_open(pt, 7, 5, 12);
    assert_true(newer > 0 && newer != id);
    qf_passthrough_release(pt, 7, 3);
    qf_passthrough_release(pt, 7, 3);
    assert_int_equal(open_count(&d), 2);
    qf_passthrough_release(pt, 7, 3);
    assert_int_equal(open_count(&d), 1);
    qf_passthrough_release(pt, 7, 5);
    assert_int_equal(open_count(&d), 0);
    /* cached: until the last release */
    assert_int_equal(qf_passthrough_open(pt, 7, 3, -1), 0);
    assert_int_equal(qf_passthrough_open(pt, 7, 3, 10), 0);
    qf_passthrough_release(pt, 7, 3);
    assert_int_equal(qf_passthrough_open(pt, 7, 3, 10), 0);
    qf_passthrough_release(pt, 7, 3);
    assert_int_equal(d.calls, 2);
    qf_passthrough_release(pt, 7, 3);
    assert_true(qf_passthrough_open(pt, 7, 3, 10) > 0);
    assert_int_equal(qf_passthrough_opens(pt), 5);
    qf_passthrough_free(pt); /* with a file open, as after a signal */
}

static void test_device_fails_later(void **state)
{
    (void)state;
    struct device d;
    qf_passthrough *pt = begin(&d, true);
    int id = qf_passthrough_open(pt, 1, 1, 10);
    assert_true(id > 0);
    /* of no lasting meaning: the next file is tried again */
    d.fail = -EMFILE;
    assert_int_equal(qf_passthrough_open(pt, 2, 1, 11), 0);
    assert_int_equal(qf_passthrough_open(pt, 2, 1, 11), 0);
    assert_int_equal(d.calls, 2);
    assert_int_equal(d.switch_count, 1);
    describes(pt, "on");
    d.fail = 0;
    assert_int_equal(qf_passthrough_open(pt, 2, 1, 11), 0); /* its mode is decided */
    assert_true(qf_passthrough_open(pt, 3, 1, 12) > 0);
    /* lasting: off, told once, never tried again */
    d.fail = -ELOOP;
    assert_int_equal(qf_passthrough_open(pt, 4, 1, 13), 0);
    assert_int_equal(qf_passthrough_open(pt, 5, 1, 14), 0);
    assert_int_equal(d.calls, 4);
    assert_int_equal(d.switch_count, 2);
    assert_int_equal(d.switches[1], false);
    describes(pt, "stacked");
    /* what passes through goes on */
    assert_int_equal(qf_passthrough_open(pt, 1, 1, 10), id);
    qf_passthrough_release(pt, 1, 1);
    qf_passthrough_release(pt, 1, 1);
    for (int i = 0; i < 3; i++)
        qf_passthrough_release(pt, 2, 1);
    qf_passthrough_release(pt, 3, 1);
    qf_passthrough_release(pt, 4, 1);
    qf_passthrough_release(pt, 5, 1);
    assert_int_equal(open_count(&d), 0);
    qf_passthrough_free(pt);
}

struct walker {
    qf_passthrough *pt;
    uint64_t seed;
};

/* Opens and releases a few inodes; the device asserts that ids are used rightly. */
static void *walk(void *arg)
{
    const struct walker *w = arg;
    uint64_t x = w->seed;
    unsigned held[8] = {0};
    for (int i = 0; i < 20000; i++) {
        x = x * UINT64_C(6364136223846793005) + 1442695040888963407u;
        unsigned node = (unsigned)(x >> 60) % 8;
        if (held[node] > 0 && (x >> 40) % 2 == 0) {
            qf_passthrough_release(w->pt, node, 1);
            held[node]--;
        } else {
            assert_true(qf_passthrough_open(w->pt, node, 1, (x >> 41) % 2 ? 3 : -1) >=
                        0);
            held[node]++;
        }
    }
    for (unsigned node = 0; node < 8; node++)
        for (; held[node] > 0; held[node]--)
            qf_passthrough_release(w->pt, node, 1);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct device d;
    struct walker walkers[4];
    pthread_t threads[4];
    qf_passthrough *pt = begin(&d, true);
    for (unsigned i = 0; i < 4; i++) {
        walkers[i] = (struct walker){pt, i + 1};
        assert_int_equal(pthread_create(&threads[i], NULL, walk, &walkers[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(open_count(&d), 0);
    assert_true(qf_passthrough_opens(pt) > 100);
    qf_passthrough_free(pt);
}

static void *open_early(void *arg)
{
    return (void *)(intptr_t)qf_passthrough_open(arg, 1, 1, 5);
}

/* An open that comes before the answer waits for it. */
static void test_asking(void **state)
{
    (void)state;
    for (int on = 0; on < 2; on++) {
        struct device d;
        pthread_t thread;
        void *id;
        qf_passthrough *pt = begin(&d, false);
        qf_passthrough_ask(pt);
        assert_int_equal(pthread_create(&thread, NULL, open_early, pt), 0);
        usleep(20000);
        if (on)
            start(pt, &d);
        else
            qf_passthrough_off(pt, "no answer");
        pthread_join(thread, &id);
        assert_int_equal((intptr_t)id > 0, on);
        describes(pt, on ? "on" : "off (no answer)");
        qf_passthrough_ask(pt); /* too late */
        qf_passthrough_release(pt, 1, 1);
        assert_int_equal(open_count(&d), 0);
        qf_passthrough_free(pt);
    }
}

/* ---- the protocol ---- */

static void put32(void *to, size_t at, uint32_t value)
{
    memcpy((char *)to + at, &value, 4);
}

static uint32_t get32(const void *from, size_t at)
{
    uint32_t value;
    memcpy(&value, (const char *)from + at, 4);
    return value;
}

static void test_init_request(void **state)
{
    (void)state;
    unsigned char in[40 + 64] = {0};
    struct qf_wire_offer offer = {true, true};
    put32(in, 4, 26);
    put32(in, 40 + 12, UINT32_C(1) << 30);
    put32(in, 40 + 16, 1u << 5);
    assert_true(qf_wire_is_init(in, sizeof in, &offer));
    assert_true(offer.passthrough);
    assert_false(offer.resend);
    put32(in, 40 + 16, 1u << 7);
    assert_true(qf_wire_is_init(in, sizeof in, &offer));
    assert_false(offer.passthrough);
    assert_true(offer.resend);
    assert_true(qf_wire_is_init(in, 40 + 16, &offer)); /* an old kernel's */
    assert_false(offer.passthrough || offer.resend);
    put32(in, 40 + 16, ~(1u << 5 | 1u << 7));
    assert_true(qf_wire_is_init(in, sizeof in, &offer));
    assert_false(offer.passthrough || offer.resend);
    put32(in, 40 + 16, 1u << 5);
    put32(in, 40 + 12, ~(UINT32_C(1) << 30)); /* flags2 is not to be looked at */
    assert_true(qf_wire_is_init(in, sizeof in, &offer));
    assert_false(offer.passthrough);
    put32(in, 4, 14);
    assert_false(qf_wire_is_init(in, sizeof in, &offer));
    put32(in, 4, 26);
    assert_false(qf_wire_is_init(in, 39, &offer));
}

static void test_unique(void **state)
{
    (void)state;
    unsigned char in[40] = {0};
    bool again = true;
    put32(in, 8, 7);
    assert_int_equal(qf_wire_unique(in, sizeof in, &again), 7);
    assert_false(again);
    put32(in, 12, UINT32_C(1) << 31);
    assert_int_equal(qf_wire_unique(in, sizeof in, &again), 7);
    assert_true(again);
    assert_int_equal(qf_wire_unique(in, 39, &again), 0);
    assert_false(again);
    unsigned char notify[QF_WIRE_NOTIFY_SIZE];
    qf_wire_resend(notify);
    assert_int_equal(get32(notify, 0), 16);
    assert_int_equal(get32(notify, 4), 7); /* FUSE_NOTIFY_RESEND */
    assert_int_equal(get32(notify, 8) | get32(notify, 12), 0);
}

/* Going on from a daemon before us. */
static void test_restore(void **state)
{
    (void)state;
    struct device d;
    qf_passthrough *pt = begin(&d, false);
    /* it has given the kernel 1 to 4; 2 and 4 back inodes that are open */
    for (int id = 1; id <= 4; id++)
        assert_int_equal(device_open(&d, 9), id);
    d.calls = 0;
    qf_passthrough_resume(pt);
    assert_int_equal(qf_passthrough_restore(pt, 10, 1, 2), 0);
    assert_int_equal(qf_passthrough_restore(pt, 10, 1, 2), 0);
    assert_int_equal(qf_passthrough_restore(pt, 11, 1, 4), 0);
    assert_int_equal(qf_passthrough_restore(pt, 12, 1, 0), 0);
    start(pt, &d);
    assert_int_equal(open_count(&d), 2);
    assert_true(d.open[2] && d.open[4]);
    /* the kernel takes an inode in the mode, and over the file, that it has it in */
    assert_int_equal(qf_passthrough_open(pt, 10, 1, 5), 2);
    assert_int_equal(qf_passthrough_open(pt, 12, 1, 5), 0);
    assert_int_equal(d.calls, 1);
    for (int i = 0; i < 3; i++) {
        assert_true(d.open[2]);
        qf_passthrough_release(pt, 10, 1);
    }
    assert_false(d.open[2]);
    qf_passthrough_release(pt, 11, 1);
    assert_int_equal(open_count(&d), 0);
    qf_passthrough_release(pt, 12, 1);
    qf_passthrough_release(pt, 12, 1);
    assert_true(qf_passthrough_open(pt, 12, 1, 5) > 0);
    qf_passthrough_release(pt, 12, 1);
    qf_passthrough_free(pt);
}

/* Nothing is open any more: what it has left backs nothing. */
static void test_resume_without_opens(void **state)
{
    (void)state;
    struct device d;
    for (int resumed = 0; resumed < 2; resumed++) {
        qf_passthrough *pt = begin(&d, false);
        for (int id = 1; id <= 3; id++)
            assert_int_equal(device_open(&d, 9), id);
        if (resumed != 0)
            qf_passthrough_resume(pt);
        start(pt, &d);
        assert_int_equal(open_count(&d), resumed != 0 ? 0 : 3);
        qf_passthrough_free(pt);
    }
}

static void test_init_reply(void **state)
{
    (void)state;
    unsigned char header[16] = {0}, body[64], before[64];
    struct iovec iov[2] = {{header, 16}, {body, 64}};
    struct qf_wire_reply out;
    memset(body, 0, sizeof body);
    put32(body, 12, 0x20);
    put32(body, 32, 0xffff); /* of no meaning without FUSE_INIT_EXT */
    memcpy(before, body, 64);
    assert_true(qf_wire_patch_init(iov, 2, &out));
    assert_memory_equal(body, before, 64);
    assert_ptr_equal(out.iov[0].iov_base, header);
    assert_int_equal(out.iov[1].iov_len, 64);
    const unsigned char *to = out.iov[1].iov_base;
    assert_int_equal(get32(to, 12), 0x20u | UINT32_C(1) << 30);
    assert_int_equal(get32(to, 32), 1u << 5);
    assert_int_equal(get32(to, 36), 1);
    put32(body, 12, 0x20u | UINT32_C(1) << 30);
    put32(body, 32, 3);
    assert_true(qf_wire_patch_init(iov, 2, &out));
    assert_int_equal(get32(out.body, 32), 3u | 1u << 5);
    put32(body, 12, 1u << 16); /* writeback cache */
    assert_false(qf_wire_patch_init(iov, 2, &out));
    put32(body, 12, 0);
    iov[1].iov_len = 24; /* the reply to an old kernel */
    assert_false(qf_wire_patch_init(iov, 2, &out));
    iov[1].iov_len = 64;
    assert_false(qf_wire_patch_init(iov, 1, &out));
    put32(header, 4, (uint32_t)-EPROTO);
    assert_false(qf_wire_patch_init(iov, 2, &out));
}

static void test_open_reply(void **state)
{
    (void)state;
    unsigned char header[16] = {0}, body[300] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct iovec iov[2] = {{header, 16}, {body, 16}};
    struct qf_wire_reply out;
    put32(body, 8, 3); /* DIRECT_IO and KEEP_CACHE */
    assert_true(qf_wire_patch_open(iov, 2, 77, &out));
    assert_memory_equal(out.body, body, 8);
    assert_int_equal(get32(out.body, 8), 1u << 7);
    assert_int_equal(get32(out.body, 12), 77);
    for (size_t size = 0; size <= 300; size += 15) {
        iov[1].iov_len = size;
        assert_false(qf_wire_patch_open(iov, 2, 77, &out));
    }
    iov[1].iov_len = 16;
    put32(header, 4, (uint32_t)-EIO);
    assert_false(qf_wire_patch_open(iov, 2, 77, &out));
}

/* On something that is no FUSE device. */
static void test_backing_of_no_device(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(qf_wire_backing_open(ends[0], ends[1]), -ENOTTY);
    assert_int_equal(qf_wire_backing_open(-1, ends[1]), -EBADF);
    qf_wire_backing_close(ends[0], 1);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_start_refused),
        cmocka_unit_test(test_off),
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_device_fails_later),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_asking),
        cmocka_unit_test(test_unique),
        cmocka_unit_test(test_restore),
        cmocka_unit_test(test_resume_without_opens),
        cmocka_unit_test(test_init_request),
        cmocka_unit_test(test_init_reply),
        cmocka_unit_test(test_open_reply),
        cmocka_unit_test(test_backing_of_no_device),
    };
    return cmocka_run_group_tests_name("fs_passthrough", tests, NULL, NULL);
}
