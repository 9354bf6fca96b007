/* link_int.h - what the files of this room share. Never included from outside.
 *
 * target.c   conninfo -> hosts and options         connect.c   threads, queues, the watch over both
 * request.c  what a dial asks for, copied          secret.c    a password's verifier, by libpq
 * dial.c     one connection, host by host          takeover.c  PGconn -> {fd, SSL, key, parameters}
 * cancel.c   one cancel request */
#ifndef PRT_LINK_INT_H
#define PRT_LINK_INT_H
#include "link/link.h"

#include <libpq-fe.h>
#include <pthread.h>
#include <stdio.h>
#include <uv.h>

/* ---- target.c ---- */
struct prt_target_host {
    char *host;     /* NULL: libpq's default socket directory, or only hostaddr is given */
    char *hostaddr; /* NULL: not given */
    char *port;
    char *text;   /* "host:port" */
    bool is_unix; /* host is a directory, or the default one is meant */
    /* dials that were given up while libpq held their thread in a call for this host; written under
     * the connector's mutex */
    int hung;
};

enum prt_session_attrs {
    PRT_ATTRS_ANY,
    PRT_ATTRS_READ_WRITE,
    PRT_ATTRS_READ_ONLY,
    PRT_ATTRS_PRIMARY,
    PRT_ATTRS_STANDBY,
    PRT_ATTRS_PREFER_STANDBY,
};

struct prt_target {
    _Atomic int refs; /* the pool's, and one of each dial under way */
    PQconninfoOption *options;
    int n_hosts;
    struct prt_target_host *hosts;
    char *text;
    enum prt_session_attrs attrs;
    int64_t host_timeout_us; /* connect_timeout of the conninfo: of each host; 0: none */
};
/** The value of a keyword, NULL when the conninfo does not have it. */
const char *prt_target_option(const struct prt_target *t, const char *keyword);
/** Does this libpq know the keyword? */
bool prt_target_knows(const struct prt_target *t, const char *keyword);

/* ---- connect.c ---- */
/** One dial on its way through the room: what it asks for, copied, so that a thread which libpq
 * holds never reads memory of a caller who has got his answer. */
struct prt_request {
    struct prt_dial *dial; /* under mu; NULL: answered */
    struct prt_link link;  /* under mu: in a line's inbox */
    /* set at creation */
    struct prt_target *target;
    char *dbname, *user, *password, *application_name; /* NULL: the target's own */
    char *options;                                     /* "-c name=value ..." of the settings */
    int64_t deadline_us, timeout_us;
};

/* request.c */
/** Copies what `d` asks for. NULL: refused, d->err is filled. */
struct prt_request *prt_request_new(struct prt_dial *d);
/** Passwords are wiped. NULL is accepted. */
void prt_request_free(struct prt_request *r);

struct prt_opening;

/** A connector thread with its loop. */
struct prt_line {
    /* set at creation */
    struct prt_connector *c;
    int dead_fd; /* a socket whose other end is closed, to put in the place of one that is kept */
    /* its own thread */
    uv_loop_t loop;
    uv_async_t wake; /* sent by any thread under mu while the line is in the connector's lists */
    bool is_leaving; /* its handles are closing */
    /* under mu */
    struct prt_link inbox;    /* requests */
    struct prt_link openings; /* struct prt_opening */
    struct prt_link retired_link;
    unsigned load;                /* requests in both */
    struct prt_opening *in_call;  /* libpq has the thread for this one */
    struct prt_target_host *hung; /* its `hung` counts this line */
    int64_t call_since_us;
    bool is_retired; /* another line took its place */
    pid_t tid;
};

struct prt_connector {
    pthread_mutex_t mu;
    pthread_cond_t gone; /* a thread has ended */
    /* set at creation */
    int n_lines;
    uv_loop_t loop; /* the keeper's: cancel requests and the watch over the lines */
    uv_async_t wake;
    uv_timer_t watch;
    /* the keeper's */
    struct prt_link cancels; /* struct cancel_run: under way */
    bool is_leaving, is_watching;
    /* under mu */
    struct prt_line *line[4];     /* NULL: lost, to be started anew */
    struct prt_link retired;      /* lines that libpq may never give back */
    struct prt_link cancel_inbox; /* struct prt_cancel */
    unsigned refs;                /* the owner's and one of each thread */
    unsigned threads;             /* alive, without the retired ones */
    unsigned under_way;           /* requests that are not answered */
    unsigned n_retired;
    bool is_stopping;
};

/** Around each libpq call that could hold the thread. end: false when the dial was answered
 * meanwhile (the caller then closes the opening). */
bool prt_line_call_begin(struct prt_line *l, struct prt_opening *o);
bool prt_line_call_end(struct prt_line *l);
/** Is the answer still this opening's to give? */
bool prt_line_owns(struct prt_line *l, const struct prt_opening *o);
/** Take the dial to answer it: NULL when somebody else did. */
struct prt_dial *prt_line_claim(struct prt_line *l, struct prt_opening *o);
/** The opening is over and no longer in the line's list. */
void prt_line_forget(struct prt_line *l, struct prt_opening *o);
/** Post the answer; `d` belongs to its caller from here on. */
void prt_dial_reply(struct prt_dial *d);

/* ---- dial.c ---- */
struct prt_opening {
    struct prt_line *line;
    struct prt_link link;    /* under mu: in line->openings */
    struct prt_request *req; /* NULL (under mu): handed to another line */
    /* the line's thread */
    int pass;       /* prefer-standby: 0 asks for a standby, 1 takes any */
    int host, addr; /* index of the host; of the address to be tried next */
    int n_addrs;    /* 0: the host is not looked up yet */
    char (*addrs)[64];
    int64_t until_us; /* of this attempt */
    bool is_retry;    /* the same attempt again, within its time */
    bool is_closing;
    struct resolve *resolve; /* a name is being looked up */
    PGconn *conn;
    uv_poll_t *poll;  /* NULL: not watched */
    uv_timer_t timer; /* of this attempt */
    FILE *trace;      /* what libpq says about the messages, see takeover.c */
    char *trace_text;
    size_t trace_n;
    struct prt_err err; /* of all attempts so far */
};
/** Any thread; NULL: no memory. The caller sets `req` and lists it before it runs. */
struct prt_opening *prt_opening_new(struct prt_line *l);
/** One that did not run. Takes its request. */
void prt_opening_free(struct prt_opening *o);
/** Line's thread. */
void prt_opening_run(struct prt_opening *o);
/** Answered by somebody else: tear down. Line's thread. */
void prt_opening_close(struct prt_opening *o);
const struct prt_target_host *prt_opening_host(const struct prt_opening *o);

/* ---- takeover.c ---- */
/** The session leaves libpq: fills the result part of `d`, ends the PGconn. */
PRT_MUST_CHECK poolrt_rc prt_take_over(struct prt_opening *o, struct prt_dial *d);
/** Frees the PGconn and its trace, if there are any. */
void prt_conn_drop(struct prt_opening *o);
/** Add "where: why" to err, which gathers one sentence per attempt; sqlstate: NULL when unknown. */
void prt_err_add(struct prt_err *err, const char *where, const char *why, const char *sqlstate);
/** The same from PQerrorMessage. */
void prt_err_add_pq(struct prt_err *err, const char *where, const char *message);

/* ---- cancel.c: all on the keeper's thread ---- */
void prt_cancel_start(struct prt_connector *c, struct prt_cancel *x);
void prt_cancel_abort_all(struct prt_connector *c);
#endif
