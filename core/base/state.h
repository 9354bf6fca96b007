/* state.h - the kinds of session state that only one server connection has: what a client leaves
 * there cannot be made again on another one. The configuration says per kind what is to happen,
 * pg/session.c sees them come and go. */
#ifndef PRT_STATE_H
#define PRT_STATE_H

/* id, name in config.lua, REST and metrics */
#define PRT_STATES(X)                                                                              \
    X(TEMP, "temp")         /* temporary tables, views, sequences; anything in pg_temp */          \
    X(HOLD, "hold")         /* WITH HOLD cursors */                                                \
    X(ADVISORY, "advisory") /* session-level advisory locks */                                     \
    X(LISTEN, "listen")     /* LISTEN where the fan-out could not take it */                       \
    X(PREPARE, "prepare")   /* SQL PREPARE */                                                      \
    X(ROLE, "role")         /* SET ROLE, SET SESSION AUTHORIZATION */                              \
    X(SETTING, "setting")   /* SET or set_config() that cannot be made again elsewhere */          \
    X(OPAQUE, "opaque")     /* DO, CALL, LOAD, setseed(): whatever they did */
enum prt_state_kind {
#define X(id, name) PRT_STATE_##id,
    PRT_STATES(X)
#undef X
        PRT_STATE_COUNT
};
#define PRT_STATE_BIT(id) (1u << PRT_STATE_##id)

/** What a pool whose servers are shared does about a kind of state. */
enum prt_state_rule {
    PRT_STATE_PIN,    /* the server stays with its client until the state is gone */
    PRT_STATE_RESET,  /* the state ends with the transaction: it is removed at the release */
    PRT_STATE_REFUSE, /* the statement that would make it is refused */
    PRT_STATE_OFF,    /* nobody looks: the next client finds it */
};
#endif
