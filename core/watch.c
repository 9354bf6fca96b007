/* watch.c - which directories may hold news.
 * Owns: one libuv event handle per directory, two timers.   Threads: control.
 * Idea: any event in a directory means "look", whatever its file name: editors rename, and
 * Kubernetes swaps the link ..data, which names no file of ours. Whoever looks compares contents,
 * so a look for nothing is only time. Every 2 s the directories are asked for their device and
 * inode: one that was replaced is silent to the kernel's watch and is watched anew; where no watch
 * can be had, that poll is what remains. */
#include "watch.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define LOOK_MS 30 /* from the first event: an editor's second step belongs to the same look */
#define LOOK_CALM_MS 500 /* when looks keep finding nothing */
#define POLL_MS 2000

struct stamp { /* all zero: not there */
    dev_t dev;
    ino_t ino;
    int64_t mtime_ns;
    off_t size;
};

struct dir {
    struct dir *next;
    struct prt_watch *w;
    uv_fs_event_t event;
    struct stamp stamp;   /* when last looked at */
    struct stamp watched; /* of what the kernel watches */
    bool is_watched;
    bool is_wanted; /* named by the last each_dir */
    char path[];
};

struct prt_watch {
    struct prt_watch_ops ops;
    uv_loop_t *loop;
    const char *file;
    struct stamp file_stamp;
    struct dir *dirs;
    uv_timer_t look, poll;
    unsigned look_ms;
    int open_handles; /* of libuv, directories included */
    bool is_stopping;
};

static struct stamp stamp_of(const char *path)
{
    struct stat st;

    if (stat(path, &st)) {
        return (struct stamp){0};
    }
    return (struct stamp){.dev = st.st_dev,
                          .ino = st.st_ino,
                          .mtime_ns = st.st_mtim.tv_sec * 1000000000LL + st.st_mtim.tv_nsec,
                          .size = st.st_size};
}

static bool is_same_file(struct stamp a, struct stamp b)
{
    return a.dev == b.dev && a.ino == b.ino;
}

static bool is_same(struct stamp a, struct stamp b)
{
    return is_same_file(a, b) && a.mtime_ns == b.mtime_ns && a.size == b.size;
}

/* ---- looking ---- */

static void on_event(uv_fs_event_t *h, const char *name, int events, int status);

static void watch_by_kernel(struct dir *d)
{
    static struct prt_log_limit limit;

    if (d->is_watched) {
        (void)uv_fs_event_stop(&d->event);
    }
    d->watched = stamp_of(d->path); /* first: one replaced in between is then watched once more */
    int rc = uv_fs_event_start(&d->event, on_event, d->path, 0);
    d->is_watched = rc == 0;
    if (rc && rc != UV_ENOENT) {
        prt_log_limited(&limit, PRT_LOG_WARN, "watch_failed", prt_kv_z("dir", d->path),
                        prt_kv_z("error", uv_strerror(rc)),
                        prt_kv_z("hint", "changes there are found by a look every 2 s"));
    }
}

/* true: it is not as it was. One that took the place of another is watched anew. */
static bool restamp_dir(struct dir *d)
{
    struct stamp now = stamp_of(d->path);
    bool is_there = now.ino != 0, is_news = !is_same(d->stamp, now);

    if (is_there && (!d->is_watched || !is_same_file(d->watched, now))) {
        watch_by_kernel(d);
        is_news = true;
    }
    d->stamp = now;
    return is_news;
}

static bool restamp(struct prt_watch *w)
{
    struct stamp now = stamp_of(w->file);
    bool is_news = !is_same(w->file_stamp, now);

    w->file_stamp = now;
    for (struct dir *d = w->dirs; d; d = d->next) {
        is_news |= restamp_dir(d);
    }
    return is_news;
}

static void look_now(uv_timer_t *t)
{
    struct prt_watch *w = t->data;

    prt_assert_control();
    /* before the look: what changes after this is another change */
    (void)restamp(w);
    w->ops.changed(w->ops.ctx);
}

/* Not put off by further events: a directory that never rests is looked at all the same. */
static void look_soon(struct prt_watch *w)
{
    if (!w->is_stopping && !uv_is_active((uv_handle_t *)&w->look)) {
        (void)uv_timer_start(&w->look, look_now, w->look_ms, 0);
    }
}

static void on_event(uv_fs_event_t *h, const char *name, int events, int status)
{
    struct dir *d = h->data;

    prt_assert_control();
    look_soon(d->w);
}

/* ---- the list of directories ---- */

static void dir_closed(uv_handle_t *h)
{
    struct dir *d = h->data;

    d->w->open_handles--;
    free(d);
}

static void want(void *arg, const char *path)
{
    struct prt_watch *w = arg;
    size_t n = strlen(path);

    for (struct dir *d = w->dirs; d; d = d->next) {
        if (strcmp(d->path, path) == 0) {
            d->is_wanted = true;
            return;
        }
    }
    struct dir *d = calloc(1, sizeof *d + n + 1);
    if (!d || uv_fs_event_init(w->loop, &d->event)) {
        free(d); /* tried again at the next poll */
        return;
    }
    d->w = w;
    d->event.data = d;
    d->is_wanted = true;
    (void)memcpy(d->path, path, n + 1);
    d->stamp = stamp_of(path);
    d->next = w->dirs;
    w->dirs = d;
    w->open_handles++;
    watch_by_kernel(d);
}

static void drop_unwanted(struct prt_watch *w)
{
    for (struct dir **at = &w->dirs; *at;) {
        struct dir *d = *at;
        if (d->is_wanted) {
            at = &d->next;
        } else {
            *at = d->next;
            uv_close((uv_handle_t *)&d->event, dir_closed);
        }
    }
}

static void read_list(struct prt_watch *w)
{
    for (struct dir *d = w->dirs; d; d = d->next) {
        d->is_wanted = false;
    }
    w->ops.each_dir(w->ops.ctx, want, w);
    drop_unwanted(w);
}

static void on_poll(uv_timer_t *t)
{
    struct prt_watch *w = t->data;

    prt_assert_control();
    read_list(w);
    if (restamp(w)) {
        look_soon(w);
    }
}

void prt_watch_looked(struct prt_watch *w, bool found)
{
    unsigned longer = w->look_ms * 2 < LOOK_CALM_MS ? w->look_ms * 2 : LOOK_CALM_MS;

    w->look_ms = found ? LOOK_MS : longer;
    if (found && !w->is_stopping) {
        read_list(w);
    }
}

/* ---- birth and end ---- */

static void timer_closed(uv_handle_t *h)
{
    struct prt_watch *w = h->data;

    w->open_handles--;
}

poolrt_rc prt_watch_start(struct prt_watch **out, uv_loop_t *loop, const char *file,
                          const struct prt_watch_ops *ops, struct prt_err *err)
{
    struct prt_watch *w = calloc(1, sizeof *w);

    if (!w) {
        return prt_fail(err, POOLRT_NOMEM, "no memory to watch files");
    }
    *w = (struct prt_watch){.ops = *ops, .loop = loop, .file = file, .look_ms = LOOK_MS};
    (void)uv_timer_init(loop, &w->look); /* cannot fail */
    (void)uv_timer_init(loop, &w->poll);
    w->look.data = w->poll.data = w;
    w->open_handles = 2;
    w->file_stamp = stamp_of(file);
    read_list(w);
    (void)uv_timer_start(&w->poll, on_poll, POLL_MS, POLL_MS);
    *out = w;
    return POOLRT_OK;
}

void prt_watch_stop(struct prt_watch *w)
{
    if (!w) {
        return;
    }
    w->is_stopping = true;
    for (struct dir *d = w->dirs; d; d = d->next) {
        d->is_wanted = false;
    }
    drop_unwanted(w);
    uv_close((uv_handle_t *)&w->look, timer_closed);
    uv_close((uv_handle_t *)&w->poll, timer_closed);
    while (w->open_handles > 0) {
        (void)uv_run(w->loop, UV_RUN_NOWAIT);
    }
    free(w);
}
