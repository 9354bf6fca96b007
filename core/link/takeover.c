/* takeover.c - from a logged-in PGconn to a bare session, and from libpq's errors to ours.
 * Owns: nothing beyond the call.   Threads: the line's.
 * Idea: a PGconn keeps 16 to 100 KB per connection and is not made to be moved between threads, so
 * the session leaves it, by public calls only: the socket is duplicated, a dead one is put in its
 * place, and PQfinish closes that. With TLS the SSL object is kept by a reference of our own and
 * gets the duplicate; while PQfinish runs, both shutdown flags are set, so it writes nothing.
 *
 * The secret key and the list of reported parameters have no public call. PQtrace prints both; the
 * print is for people, so nothing of it is believed that a public call does not confirm: the
 * process id next to the key must be PQbackendPID, a parameter's value is what PQparameterStatus
 * says. */
#include "link/link_int.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- what the trace tells ----
 * "B \t length \t Name \t values", one line per message from the server. */
#define KEY_LINE "BackendKeyData\t"
#define PARAM_LINE "ParameterStatus\t"

/* The next line of the server's that has `name`; *at moves behind it. NULL: none. */
static const char *next_message(const char **at, const char *name)
{
    while (*at && **at) {
        const char *line = *at, *tab;
        *at = strchr(line, '\n');
        *at = *at ? *at + 1 : NULL;
        tab = line[0] == 'B' && line[1] == '\t' ? strchr(line + 2, '\t') : NULL;
        if (tab && strncmp(tab + 1, name, strlen(name)) == 0) {
            return tab + 1 + strlen(name);
        }
    }
    return NULL;
}

/* Names of users and databases are in the trace too, and may hold line ends: so the last line with
 * the right process id counts, which the server wrote after it had read all of them. */
static bool read_key(const char *trace, int pid, struct prt_dial *d)
{
    const char *at = trace, *values;
    bool found = false;
    int line_pid, secret;

    while ((values = next_message(&at, KEY_LINE))) {
        if (sscanf(values, "%d %d", &line_pid, &secret) == 2 && line_pid == pid) {
            prt_put32(d->key, (uint32_t)secret);
            found = true;
        }
    }
    d->pid = (uint32_t)pid;
    d->key_n = found ? 4 : 0;
    return found || pid == 0; /* a server without cancellation sends no key at all */
}

static const struct prt_params *read_params(const char *trace, PGconn *conn)
{
    const struct prt_params *set = prt_params_ref(prt_params_empty());
    const char *at = trace, *values;
    char name[128];

    while ((values = next_message(&at, PARAM_LINE))) {
        const char *value;
        if (sscanf(values, " \"%127[^\"\n]\"", name) == 1 &&
            (value = PQparameterStatus(conn, name)) != NULL) {
            set = prt_params_with(set, prt_str_of(name), prt_str_of(value));
        }
    }
    return set;
}

/* ---- the socket ---- */
static void print_address(struct prt_dial *d)
{
    char ip[INET6_ADDRSTRLEN] = "?";

    if (d->addr.ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)&d->addr;
        (void)inet_ntop(AF_INET, &in->sin_addr, ip, sizeof ip);
        (void)snprintf(d->server_addr, sizeof d->server_addr, "%s:%u", ip, ntohs(in->sin_port));
    } else if (d->addr.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)&d->addr;
        (void)inet_ntop(AF_INET6, &in->sin6_addr, ip, sizeof ip);
        (void)snprintf(d->server_addr, sizeof d->server_addr, "[%s]:%u", ip, ntohs(in->sin6_port));
    } else {
        const struct sockaddr_un *un = (const struct sockaddr_un *)&d->addr;
        size_t n = d->addr_n > offsetof(struct sockaddr_un, sun_path)
                       ? d->addr_n - offsetof(struct sockaddr_un, sun_path)
                       : 0;
        (void)snprintf(d->server_addr, sizeof d->server_addr, "%s%.*s",
                       n && !un->sun_path[0] ? "@" : "", (int)(n && !un->sun_path[0] ? n - 1 : n),
                       n && !un->sun_path[0] ? un->sun_path + 1 : un->sun_path);
    }
}

/* The duplicate lives on; libpq is left with a socket that nobody listens to. */
static poolrt_rc steal_socket(PGconn *conn, int dead_fd, int *fd)
{
    int theirs = PQsocket(conn);

    *fd = fcntl(theirs, F_DUPFD_CLOEXEC, 3);
    if (*fd < 0) {
        return POOLRT_IO;
    }
    if (dup3(dead_fd, theirs, O_CLOEXEC) < 0) {
        (void)close(*fd);
        *fd = -1;
        return POOLRT_IO;
    }
    return POOLRT_OK;
}

static poolrt_rc keep_session(struct prt_opening *o, struct prt_dial *d)
{
    SSL *ssl = PQsslStruct(o->conn, "OpenSSL");
    poolrt_rc rc = steal_socket(o->conn, o->line->dead_fd, &d->fd);

    if (rc || !ssl) {
        return rc;
    }
    /* libpq's own input and output of the SSL point into the PGconn: they go first */
    if (!SSL_set_fd(ssl, d->fd) || !SSL_up_ref(ssl)) {
        (void)close(d->fd);
        d->fd = -1;
        return POOLRT_NOMEM;
    }
    SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    d->ssl = ssl;
    return POOLRT_OK;
}

void prt_conn_drop(struct prt_opening *o)
{
    if (o->conn) {
        PQuntrace(o->conn);
        PQfinish(o->conn);
        o->conn = NULL;
    }
    if (o->trace) {
        (void)fclose(o->trace);
        prt_secret_wipe(o->trace_text, o->trace_n);
        free(o->trace_text);
        o->trace = NULL, o->trace_text = NULL, o->trace_n = 0;
    }
}

poolrt_rc prt_take_over(struct prt_opening *o, struct prt_dial *d)
{
    const char *where = prt_opening_host(o)->text;
    poolrt_rc rc;

    /* what came whole behind the first ReadyForQuery is still libpq's to read */
    (void)PQisBusy(o->conn);
    PQuntrace(o->conn);
    if (fflush(o->trace) != 0 || !read_key(o->trace_text, PQbackendPID(o->conn), d)) {
        rc = POOLRT_CONNECT_FAILED;
        prt_err_add(&o->err, where, "libpq does not tell the key for cancel requests", NULL);
        goto fail;
    }
    d->addr_n = sizeof d->addr;
    if (getpeername(PQsocket(o->conn), (struct sockaddr *)&d->addr, &d->addr_n) < 0) {
        rc = POOLRT_CONNECT_FAILED;
        prt_err_add(&o->err, where, uv_strerror(-errno), NULL);
        goto fail;
    }
    print_address(d);
    rc = keep_session(o, d);
    if (rc) {
        prt_err_add(&o->err, where, rc == POOLRT_NOMEM ? "out of memory" : uv_strerror(-errno),
                    "53000");
        goto fail;
    }
    d->params = read_params(o->trace_text, o->conn);
    prt_conn_drop(o);
    if (d->ssl) {
        SSL_set_shutdown(d->ssl, 0);
    }
    return POOLRT_OK;
fail:
    d->key_n = 0, d->pid = 0;
    prt_conn_drop(o);
    return rc;
}

/* ---- errors ---- */
static void add_text(struct prt_err *err, const char *s, size_t n)
{
    size_t at = strlen(err->text), room = sizeof err->text - 1 - at;

    n = n < room ? n : room;
    memcpy(err->text + at, s, n);
    err->text[at + n] = '\0';
}

static void add_z(struct prt_err *err, const char *s)
{
    add_text(err, s, strlen(s));
}

void prt_err_add(struct prt_err *err, const char *where, const char *why, const char *sqlstate)
{
    err->rc = POOLRT_CONNECT_FAILED;
    add_z(err, err->text[0] ? "; " : "");
    add_z(err, where);
    add_z(err, ": ");
    add_z(err, why);
    (void)snprintf(err->sqlstate, sizeof err->sqlstate, "%.5s", sqlstate ? sqlstate : "");
}

/* "FATAL:  28P01: password ..." is how libpq prints a server's error when asked for all of it.
 * Returns what follows; sqlstate[6] is filled, or left alone when the line is something else. */
static const char *read_sqlstate(const char *line, size_t n, char *sqlstate)
{
    for (size_t i = 0; n >= 10 && i <= n - 10; i++) {
        const char *s = line + i;
        size_t k = 3;
        if (memcmp(s, ":  ", 3) != 0) {
            continue;
        }
        while (k < 8 && (isupper((unsigned char)s[k]) || isdigit((unsigned char)s[k]))) {
            k++;
        }
        if (k == 8 && s[8] == ':' && s[9] == ' ') {
            (void)snprintf(sqlstate, 6, "%.5s", s + 3);
            return s + 10;
        }
    }
    return line;
}

/* One line of PQerrorMessage without what `where` says already. */
static struct prt_str line_text(const char *line, size_t n, char *sqlstate)
{
    static const char prefix[] = "connection to server ", failed[] = " failed: ";
    const char *end = line + n, *at;

    if (n > sizeof prefix && memcmp(line, prefix, sizeof prefix - 1) == 0 &&
        (at = memmem(line, n, failed, sizeof failed - 1)) != NULL) {
        line = at + sizeof failed - 1;
    }
    line = read_sqlstate(line, (size_t)(end - line), sqlstate);
    while (line < end && isspace((unsigned char)*line)) {
        line++;
    }
    return (struct prt_str){line, (size_t)(end - line)};
}

void prt_err_add_pq(struct prt_err *err, const char *where, const char *message)
{
    struct prt_str last = {NULL, 0};
    char sqlstate[6] = "";

    prt_err_add(err, where, "", NULL);
    for (const char *line = message; line && *line;) {
        size_t n = strcspn(line, "\n");
        struct prt_str text = line_text(line, n, sqlstate);
        /* the same twice: libpq tried with TLS and without */
        if (text.n && !prt_str_eq(text, last) &&
            !(text.n > 9 && memcmp(text.p, "LOCATION:", 9) == 0)) {
            add_z(err, last.n ? " " : "");
            add_text(err, text.p, text.n);
            last = text;
        }
        line += n + (line[n] == '\n');
    }
    add_z(err, last.n ? "" : "libpq gives no reason");
    memcpy(err->sqlstate, sqlstate, sizeof sqlstate);
}
