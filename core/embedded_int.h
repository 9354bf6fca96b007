/* embedded_int.h - shared by the embedded_*.c files only. */
#ifndef PRT_EMBEDDED_INT_H
#define PRT_EMBEDDED_INT_H
#include "embedded_pg.h"

#include <limits.h>
#include <sys/types.h>

#define PRT_PG_PORT 5432 /* part of the socket's name; config.lua's targets say the same */
#define PRT_PG_SUPERUSER "postgres"

/** Whom PostgreSQL runs as: it refuses to be root. */
struct prt_pg_owner {
    uid_t uid;
    gid_t gid;
    bool is_other; /* not us: the child changes to it */
    char name[64];
};

/** Where it lives. The descriptors are what is used: a path may lead through a directory that its
 *  owner cannot enter (a checkout in root's home). */
struct prt_pg_place {
    char dir[PATH_MAX], run_dir[PATH_MAX], bin[PATH_MAX];
    struct prt_pg_owner owner;
    int lock_fd, dir_fd, run_fd; /* -1: not open */
};

/* ---- embedded_dir.c ---- */
/** Take the lock, find the programs, make what is missing. On failure nothing is left open. */
PRT_MUST_CHECK poolrt_rc prt_pg_place_open(struct prt_pg_place *at,
                                           const struct prt_embedded_config *cfg,
                                           struct prt_err *err);
void prt_pg_place_close(struct prt_pg_place *at);
/** Processes of an earlier PostgreSQL that are still on the data directory; *pid is one of them. */
int prt_pg_place_users(const struct prt_pg_place *at, pid_t *pid);
/** Nobody is on the directory: remove the marks of one that was killed, whose process number may
 *  belong to somebody else by now. */
void prt_pg_place_tidy(const struct prt_pg_place *at);
/** The last words in file `name` below dir_fd, on one line; "" when there are none. */
void prt_pg_place_tail(const struct prt_pg_place *at, int dir_fd, const char *name, char *to,
                       size_t cap);

/* ---- embedded_spawn.c ---- */
struct prt_pg_spawn {
    const struct prt_pg_place *place;
    const char *program; /* in place->bin */
    const char *log;     /* file that gets its output, */
    int log_dir_fd;      /* below this directory */
    int dir_fd;          /* the data directory to work on */
    const char *dir;     /* and its path */
    /* NULL-terminated, without the program; "@DIR" and "@RUN" at the end of a word become paths */
    const char *const *args;
};
/** Start it, with the order to end when this thread does. */
PRT_MUST_CHECK poolrt_rc prt_pg_spawn(const struct prt_pg_spawn *s, pid_t *pid,
                                      struct prt_err *err);
/** "exited with status 1", "was killed by signal 9" */
void prt_pg_status_text(int status, char *to, size_t cap);

/* ---- embedded_roles.c ---- */
bool prt_pg_answers(const struct prt_pg_place *at);
/** Add the database, users and users' schemas that are missing. */
PRT_MUST_CHECK poolrt_rc prt_pg_roles(const struct prt_pg_place *at,
                                      const struct prt_embedded_config *cfg, struct prt_err *err);
#endif
