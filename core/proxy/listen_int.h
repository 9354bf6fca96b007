/* listen_int.h - what listen.c, hub.c and hear.c share: who wants which channel, and the connection
 * that hears. Never leaves these files.
 *
 *   client -- sub --+                                       +-- order --> LISTEN, UNLISTEN
 *   client -- sub --+-- branch (a worker's channel) --+     |
 *                            branch of another worker -+-- channel -- hub, on its home worker
 *
 * A branch is its worker's, but for the time that its mail is out: then the fields of the second
 * group are the home's. The mail goes there with LISTEN or FORGET and always comes back, so nothing
 * is allocated to ask, and no two questions of a worker about a channel can overtake each other. */
#ifndef PRT_LISTEN_INT_H
#define PRT_LISTEN_INT_H
#include "proxy/proxy_int.h"

#define PRT_LISTEN_USERS 8 /* of a hub: as whom it may try to log in */

/** What a branch asks, and what it is answered. */
enum prt_branch_word {
    PRT_ASK_LISTEN, /* for those who are `asked`: listen, and say when that is so */
    PRT_ASK_FORGET, /* nobody here wants the channel */
    PRT_IS_HEARD,   /* listens */
    PRT_NOT_YET,    /* no connection for now (`why`); ask again if somebody still waits */
    PRT_REFUSED,    /* will not listen (`why`); those who asked are not subscribed */
    PRT_FORGOTTEN,  /* nothing more will come for it */
};
/** One channel as one worker wants it. */
struct prt_branch {
    /* owner worker */
    struct prt_map_node node; /* hub->side[lane] */
    struct prt_hub *hub;
    unsigned lane;
    bool is_out;           /* the mail is at the home, or on its way */
    struct prt_link heard; /* subs that hear, in order of subscription */
    struct prt_link asked; /* subs that the question which is out is for */
    struct prt_link fresh; /* subs that have come since */
    struct prt_err *last;  /* what the last answer said that was no success. Owned */
    /* whoever has the mail */
    struct prt_mail mail;
    uint8_t word;        /* enum prt_branch_word */
    struct prt_err *why; /* of NOT_YET, REFUSED; NULL: no memory for it. Owned */
    /* home */
    struct prt_link of_channel; /* channel->branches */
    struct prt_link of_answer;  /* channel->waiting or ->riding */
    char name[PRT_NAME_MAX + 1];
};
/** A whole NotificationResponse on its way to a worker. The branch outlives it: home sends nothing
 * behind its FORGOTTEN. */
struct prt_letter {
    struct prt_mail mail;
    struct prt_branch *branch;
    size_t n;
    uint8_t m[];
};

/* ---- the home's side ----
 *
 *  OFF --ask--> DIALING --ok--> OPEN --no channel for a minute--> OFF
 *   ^            |   ^           |
 *   |            v   |retry      | lost, or to be made anew
 *   +-no channel- PAUSE <--------+
 *
 * OFF      no connection, no channel; busy does not count it
 * DIALING  a connector has `dial`
 * OPEN     the socket is in the set; orders are out or not
 * PAUSE    `timer` says when to dial again
 */
enum prt_hub_state { PRT_HUB_OFF, PRT_HUB_DIALING, PRT_HUB_OPEN, PRT_HUB_PAUSE };

enum prt_order_kind {
    PRT_ORDER_NONE,
    PRT_ORDER_QUEUED, /* in hub->todo; what it will be is seen when it is sent */
    PRT_ORDER_LISTEN,
    PRT_ORDER_UNLISTEN,
    PRT_ORDER_PING,
};
/** A query to the server. */
struct prt_order {
    struct prt_link link; /* hub->todo or hub->sent */
    uint8_t kind;         /* enum prt_order_kind */
    bool is_answered;     /* its tag or its error has come; ReadyForQuery not yet */
};
/** One channel as the server knows it. */
struct prt_channel {
    struct prt_map_node node; /* hub->channels */
    struct prt_order order;
    bool is_on;               /* this connection listens */
    bool was_on;              /* somebody has been told that it hears: must come back */
    struct prt_link branches; /* workers that want it */
    struct prt_link waiting;  /* branches to be answered when the next LISTEN is through */
    struct prt_link riding;   /* branches to be answered when the one that is out is through */
    char name[PRT_NAME_MAX + 1];
};
/** The ears of a pool's database: one connection, and who is told what it hears. Made at the first
 * LISTEN, freed with its pool. */
struct prt_hub {
    /* set at creation */
    struct prt_hub *next; /* pool->hubs, under px->hub_mu */
    struct prt_proxy_pool *pool;
    struct prt_worker *home;
    char *dbname;
    char encoding[32]; /* of its clients; empty: the server's own */
    char settings[64]; /* for the startup packet */
    size_t settings_n;
    /* under px->hub_mu */
    char user[PRT_LISTEN_USERS][PRT_NAME_MAX + 1]; /* those who listen; a ring */
    unsigned users;                                /* ever entered */
    /* atomic, any thread */
    _Atomic uint32_t busy; /* branches, the connection, mail from control: not to be freed */
    _Atomic bool is_over;  /* the pool is gone */
    _Atomic bool is_told;  /* redial_mail is on its way */
    prt_counter channels_on, open, notifications, gaps;
    struct prt_mail close_mail, redial_mail;
    /* home worker */
    uint8_t state;        /* enum prt_hub_state */
    bool is_stale;        /* DIALING: to a target that is not ours any more */
    bool is_quiet;        /* OPEN: nothing was heard since the last beat */
    bool is_deaf;         /* a gap: connection lost, channels not all back */
    unsigned turn, tried; /* which user is next; how many were refused in a row */
    unsigned missing;     /* channels that were on and are not */
    int64_t deaf_since_us;
    struct prt_link link; /* home->hubs, unless OFF */
    struct prt_timer timer;
    struct prt_map channels;
    struct prt_link todo, sent; /* orders */
    unsigned n_sent;
    struct prt_order ping;
    struct prt_sock sock;
    struct prt_frame frame;
    struct prt_txn txn;
    struct prt_buf in, out;
    struct prt_dial dial;
    char login[PRT_NAME_MAX + 1]; /* DIALING: copies for the connector */
    char *password;
    /* owner: the worker of that lane */
    struct prt_map side[]; /* branches */
};

/* ---- listen.c ---- */
/** A branch's mail is back. */
void prt_branch_answered(void *owner, struct prt_mail *mail);
/** A letter has come. */
void prt_letter_come(void *owner, struct prt_mail *mail);
/** As whom to log in at the n-th try. */
void prt_hub_user(struct prt_hub *h, unsigned n, char out[PRT_NAME_MAX + 1],
                  unsigned *users) ON_ANY;

/* ---- hub.c ---- */
void prt_hub_close(void *owner, struct prt_mail *mail);
void prt_hub_redial(void *owner, struct prt_mail *mail);
/** OFF, PAUSE: open a connection. */
void prt_hub_dial(struct prt_hub *h) ON_WORKER;
/** OPEN: send what is in `out`. As with servers, failure is not looked at: the reader will see. */
void prt_hub_flush(struct prt_hub *h) ON_WORKER;
/** OPEN: when to look next; anew when the first channel has come or the last one gone. */
void prt_hub_set_alarm(struct prt_hub *h) ON_WORKER;
/** A channel is gone: without any there is nothing to dial for. */
void prt_hub_unwanted(struct prt_hub *h) ON_WORKER;
/** OPEN: the connection is no good. It is not to be looked at afterwards, nor is the hub, unless
 * something else holds it. */
void prt_hub_lost(struct prt_hub *h, const struct prt_err *why) ON_WORKER;
/** The same in words; PROTOCOL is counted as a violation. Returns false. */
bool prt_hub_broken(struct prt_hub *h, poolrt_rc rc, const char *text) ON_WORKER;
bool prt_hub_is_ending(const struct prt_hub *h);

/* ---- hear.c ---- */
/** A branch's mail, at the home. */
void prt_hub_asked(void *owner, struct prt_mail *mail);
/** OPEN: ask for all that is wanted. */
void prt_hear_begin(struct prt_hub *h) ON_WORKER;
/** Whether it is still there. */
void prt_hear_ping(struct prt_hub *h) ON_WORKER;
/** Bytes of the server: how many of the n were used. SIZE_MAX: the connection is over. */
size_t prt_hear_bytes(struct prt_hub *h, const uint8_t *p, size_t n) ON_WORKER;
/** No connection could be had: whoever waits is told why. */
void prt_hear_not_yet(struct prt_hub *h, const struct prt_err *why) ON_WORKER;
/** The connection is gone: a gap, if it was heard. */
void prt_hear_lost(struct prt_hub *h, const struct prt_err *why) ON_WORKER;
/** There will be none again: whoever waits is refused. */
void prt_hear_end(struct prt_hub *h) ON_WORKER;
#endif
