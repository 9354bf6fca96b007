/* secret.c - the verifier of a password, as libpq on the client's side will prove it.
 * Owns: nothing.   Threads: any; about 2 ms of CPU.
 * Idea: SCRAM runs the password through SASLprep first, which changes some characters outside of
 * ASCII (a no-break space, ligatures, letters that were not composed). libpq has the tables, and
 * one public call that ends in a verifier, so both sides prepare alike by construction, raw bytes
 * included for what is not UTF-8. The call wants a PGconn: one that fails before it touches a
 * socket does. */
#include "link/link_int.h"

#include <stdlib.h>
#include <string.h>

static char *verifier_text(char *password)
{
    const char *const keywords[] = {"sslmode", "password", NULL};
    const char *const values[] = {"none of these", "-",
                                  NULL}; /* a password: no file is looked at */
    PGconn *conn = PQconnectStartParams(keywords, values, 0);
    char *text = conn ? PQencryptPasswordConn(conn, password, "", "scram-sha-256") : NULL;

    PQfinish(conn);
    return text;
}

bool prt_password_secret(struct prt_str password, struct prt_scram_secret *out)
{
    char *z, *text;
    bool ok;

    *out = (struct prt_scram_secret){0};
    if (password.n == 0 || password.n > PRT_SCRAM_MESSAGE_MAX ||
        memchr(password.p, '\0', password.n)) {
        return false;
    }
    z = strndup(password.p, password.n);
    text = z ? verifier_text(z) : NULL;
    ok = text && prt_scram_secret_parse(prt_str_of(text), out);
    if (text) {
        prt_secret_wipe(text, strlen(text));
        PQfreemem(text);
    }
    if (z) {
        prt_secret_wipe(z, password.n);
        free(z);
    }
    return ok;
}
