/* embedded_roles.c - the database and the users that postgres.embedded{} names.
 * Owns: one libpq connection while it works.   Threads: control, before clients are served.
 * Idea: what is there is left as it is, so an operator may change it; what is missing is added at
 * each start. Every user gets a schema of its own name, which comes first in its search_path:
 * tenants of one database can create tables without seeing each other's. */
#include "embedded_int.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void no_notice(void *arg, const char *text)
{
    /* "schema exists, skipping" is what is hoped for */
}

static poolrt_rc open_db(const struct prt_pg_place *at, const char *dbname, PGconn **out,
                         struct prt_err *err)
{
    char port[8];
    const char *const key[] = {
        "host", "port", "dbname", "user", "connect_timeout", "sslmode", "application_name", NULL};
    const char *const value[] = {at->run_dir, port,      dbname,   PRT_PG_SUPERUSER,
                                 "10",        "disable", "poolrt", NULL};

    (void)snprintf(port, sizeof port, "%d", PRT_PG_PORT);
    PGconn *db = PQconnectdbParams(key, value, 0);
    if (PQstatus(db) != CONNECTION_OK) {
        poolrt_rc rc = prt_fail(err, POOLRT_CONNECT_FAILED,
                                "the embedded PostgreSQL refuses its own superuser: %s",
                                db ? PQerrorMessage(db) : "no memory");
        PQfinish(db);
        return rc;
    }
    (void)PQsetNoticeProcessor(db, no_notice, NULL);
    *out = db;
    return POOLRT_OK;
}

bool prt_pg_answers(const struct prt_pg_place *at)
{
    char port[8];
    const char *const key[] = {"host", "port", "dbname", "user", "connect_timeout", NULL};
    const char *const value[] = {at->run_dir, port, "postgres", PRT_PG_SUPERUSER, "5", NULL};

    (void)snprintf(port, sizeof port, "%d", PRT_PG_PORT);
    return PQpingParams(key, value, 0) == PQPING_OK;
}

/* Without the statement: it may hold a verifier. */
static poolrt_rc failed(PGconn *db, const char *what, const char *name, struct prt_err *err)
{
    return prt_fail(err, POOLRT_CONFIG, "the embedded PostgreSQL cannot create %s \"%s\": %s", what,
                    name, PQerrorMessage(db));
}

/* "head "name" tail"; takes `tail`, which may be NULL only when there was no memory for it. */
static poolrt_rc create(PGconn *db, const char *what, const char *name, char *tail,
                        struct prt_err *err)
{
    char *quoted = PQescapeIdentifier(db, name, strlen(name)), *sql = NULL;
    poolrt_rc rc = POOLRT_OK;

    if (!quoted || !tail || asprintf(&sql, "CREATE %s %s%s", what, quoted, tail) < 0) {
        rc = prt_fail(err, POOLRT_NOMEM, "no memory to create \"%s\"", name);
        sql = NULL;
    } else {
        PGresult *done = PQexec(db, sql);
        if (PQresultStatus(done) != PGRES_COMMAND_OK) {
            rc = failed(db, what, name, err);
        }
        PQclear(done);
        prt_secret_wipe(sql, strlen(sql));
    }
    free(sql);
    free(tail);
    PQfreemem(quoted);
    return rc;
}

static poolrt_rc is_there(PGconn *db, const char *query, const char *name, bool *found,
                          struct prt_err *err)
{
    const char *const value[] = {name};
    PGresult *r = PQexecParams(db, query, 1, NULL, value, NULL, NULL, 0);
    poolrt_rc rc = POOLRT_OK;

    if (PQresultStatus(r) == PGRES_TUPLES_OK) {
        *found = PQntuples(r) > 0;
    } else {
        rc = prt_fail(err, POOLRT_IO, "the embedded PostgreSQL: %s", PQerrorMessage(db));
    }
    PQclear(r);
    return rc;
}

/* The verifier is made here: the password itself never reaches PostgreSQL's log. */
static char *login_clause(PGconn *db, const struct prt_user_config *user)
{
    char *verifier = PQencryptPasswordConn(db, user->secret, user->name, "scram-sha-256");
    char *quoted = verifier ? PQescapeLiteral(db, verifier, strlen(verifier)) : NULL;
    char *out = NULL;

    if (quoted && asprintf(&out, " LOGIN PASSWORD %s", quoted) < 0) {
        out = NULL;
    }
    PQfreemem(quoted);
    PQfreemem(verifier);
    return out;
}

static poolrt_rc add_roles(PGconn *db, const struct prt_embedded_config *cfg, struct prt_err *err)
{
    poolrt_rc rc = POOLRT_OK;
    bool found = false;

    for (int i = 0; i < cfg->n_users && !rc; i++) {
        const struct prt_user_config *u = &cfg->users[i];
        rc = is_there(db, "SELECT FROM pg_roles WHERE rolname = $1", u->name, &found, err);
        if (!rc && !found) {
            rc = create(db, "ROLE", u->name, login_clause(db, u), err);
        }
    }
    if (!rc) {
        rc = is_there(db, "SELECT FROM pg_database WHERE datname = $1", cfg->database, &found, err);
    }
    return rc || found ? rc : create(db, "DATABASE", cfg->database, strdup(""), err);
}

static poolrt_rc add_schemas(PGconn *db, const struct prt_embedded_config *cfg, struct prt_err *err)
{
    poolrt_rc rc = POOLRT_OK;

    for (int i = 0; i < cfg->n_users && !rc; i++) {
        const char *name = cfg->users[i].name;
        char *quoted = PQescapeIdentifier(db, name, strlen(name)), *tail = NULL;
        if (quoted && asprintf(&tail, " AUTHORIZATION %s", quoted) < 0) {
            tail = NULL;
        }
        PQfreemem(quoted);
        rc = create(db, "SCHEMA IF NOT EXISTS", name, tail, err);
    }
    return rc;
}

poolrt_rc prt_pg_roles(const struct prt_pg_place *at, const struct prt_embedded_config *cfg,
                       struct prt_err *err)
{
    PGconn *db = NULL;
    poolrt_rc rc = open_db(at, "postgres", &db, err);

    if (rc) {
        return rc;
    }
    rc = add_roles(db, cfg, err);
    PQfinish(db);
    if (rc) {
        return rc;
    }
    rc = open_db(at, cfg->database, &db, err);
    if (rc) {
        return rc;
    }
    rc = add_schemas(db, cfg, err);
    PQfinish(db);
    return rc;
}
