/* loader.c - the thread that loads while everything else goes on.
 * Owns: the thread, its one job.   Threads: control asks and receives; the loader thread runs a
 * job.
 *
 *   IDLE --ask--> RUNNING --result received--> IDLE, or RUNNING again if asked meanwhile
 *
 * Idea: building and testing a policy takes as long as the policy likes, up to its limits, so
 * signals, REST and draining never wait for it. The job is plain memory that belongs to the thread
 * from its start to its end; the join is what hands it back. */
#include "loader.h"

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_MAX (16u << 20) /* a longer configuration counts as unreadable here */

struct prt_loader {
    uv_loop_t *loop; /* set at creation, as all down to ctx */
    struct prt_policies *policies;
    const char *file;
    void (*done)(void *ctx, struct prt_load *load);
    void *ctx;
    uv_async_t ended;
    bool is_running, is_closed;
    bool is_asked, is_asked_all; /* for the next job */
    pthread_t thread;
    /* the job: the thread's while it runs */
    bool all;
    char seen[PRT_SHA256_HEX];
    struct prt_load load;
};

/* ---- the text of the configuration ---- */

static char *read_text(int fd, size_t *n)
{
    size_t cap = 64u << 10;
    char *text = malloc(cap);
    ssize_t got = 1;

    *n = 0;
    while (text && got) {
        got = read(fd, text + *n, cap - *n);
        if (got < 0 && errno != EINTR) {
            break;
        }
        *n += got > 0 ? (size_t)got : 0;
        if (*n == cap) {
            char *more = cap < TEXT_MAX ? realloc(text, cap * 2) : NULL;
            if (!more) {
                break;
            }
            text = more;
            cap *= 2;
        }
    }
    if (text && !got) {
        return text;
    }
    free(text);
    return NULL;
}

void prt_loader_hash(const char *file, char out[PRT_SHA256_HEX])
{
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    size_t n = 0;
    char *text = fd >= 0 ? read_text(fd, &n) : NULL;

    out[0] = '\0';
    if (text) {
        prt_sha256_hex(text, n, out);
        prt_secret_wipe(text, n); /* it may hold passwords */
    }
    free(text);
    if (fd >= 0) {
        (void)close(fd);
    }
}

/* ---- the thread ---- */

static void load_all(struct prt_loader *l)
{
    struct prt_load *load = &l->load;

    load->is_config = true;
    load->rc = prt_config_load(l->file, &load->cfg, &load->err);
    if (load->rc) {
        load->cfg = NULL;
        return;
    }
    load->rc = prt_policies_prepare(l->policies, load->cfg, &load->plan, &load->err);
    if (load->rc) {
        prt_config_unref(load->cfg);
        load->cfg = NULL;
        load->plan = NULL;
    }
}

static void *loader_main(void *arg)
{
    struct prt_loader *l = arg;
    int64_t begin = prt_now_us();
    char now[PRT_SHA256_HEX];

    prt_thread_is(PRT_THREAD_LOADER, 0);
    /* before the load: a change during it is found by the next one */
    prt_loader_hash(l->file, now);
    /* an editor may have taken the file away for a moment: that alone is no news */
    bool is_news = *now && strcmp(now, l->seen) != 0;
    if (*now) {
        (void)memcpy(l->seen, now, sizeof now);
    }
    if (l->all || is_news) {
        load_all(l);
    } else {
        l->load.rc = prt_policies_refresh(l->policies, &l->load.plan, &l->load.err);
    }
    l->load.took_us = prt_now_us() - begin;
    (void)uv_async_send(&l->ended);
    return NULL;
}

static int start_thread(struct prt_loader *l)
{
    sigset_t all, before;

    (void)sigfillset(&all); /* signals are the control thread's */
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&l->thread, NULL, loader_main, l);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

/* ---- control ---- */

static void begin(struct prt_loader *l)
{
    l->all = l->is_asked_all;
    l->is_asked = l->is_asked_all = false;
    l->load = (struct prt_load){0};
    int rc = start_thread(l);
    if (rc) {
        l->load.rc = prt_fail(&l->load.err, POOLRT_IO, "cannot start a thread to load: %s",
                              strerrordesc_np(rc));
        l->load.is_config = l->all;
        l->done(l->ctx, &l->load);
        return;
    }
    l->is_running = true;
}

static void on_ended(uv_async_t *h)
{
    struct prt_loader *l = h->data;

    prt_assert_control();
    if (!l->is_running) {
        return; /* wakes may be more than ends */
    }
    (void)pthread_join(l->thread, NULL);
    l->is_running = false;
    l->done(l->ctx, &l->load);
    if (l->is_asked) {
        begin(l);
    }
}

void prt_loader_ask(struct prt_loader *l, bool all)
{
    l->is_asked = true;
    l->is_asked_all |= all;
    if (!l->is_running) {
        begin(l);
    }
}

poolrt_rc prt_loader_start(struct prt_loader **out, uv_loop_t *loop, struct prt_policies *policies,
                           const char *file, const char seen[PRT_SHA256_HEX],
                           void (*done)(void *ctx, struct prt_load *load), void *ctx,
                           struct prt_err *err)
{
    struct prt_loader *l = calloc(1, sizeof *l);

    if (!l) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for the loader");
    }
    l->loop = loop;
    l->policies = policies;
    l->file = file;
    l->done = done;
    l->ctx = ctx;
    (void)memcpy(l->seen, seen, sizeof l->seen);
    int rc = uv_async_init(loop, &l->ended, on_ended);
    if (rc) {
        free(l);
        return prt_fail(err, POOLRT_IO, "cannot start the loader: %s", uv_strerror(rc));
    }
    l->ended.data = l;
    *out = l;
    return POOLRT_OK;
}

static void closed(uv_handle_t *h)
{
    ((struct prt_loader *)h->data)->is_closed = true;
}

void prt_loader_stop(struct prt_loader *l)
{
    if (!l) {
        return;
    }
    if (l->is_running) {
        (void)pthread_join(l->thread, NULL);
        l->is_running = false;
        prt_policies_abandon(l->policies, l->load.plan);
        prt_config_unref(l->load.cfg);
    }
    uv_close((uv_handle_t *)&l->ended, closed);
    while (!l->is_closed) {
        (void)uv_run(l->loop, UV_RUN_NOWAIT);
    }
    free(l);
}
