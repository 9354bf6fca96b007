/* auth.c - who may log in: the users of the configuration, and one proof at a time.
 * Owns: the secrets of one configuration (immutable).   Threads: built by control, used by workers.
 * Idea: what takes long, deriving SCRAM keys from a plain password, is done once when the
 * configuration is loaded and carried over a reload; a login costs hashes only. An unknown user
 * goes through the same messages with a made-up secret, so nobody learns who exists (TRUST L11). */
#include "proxy/proxy_int.h"

#include <stdlib.h>
#include <string.h>

enum {
    AUTH_CODE_OK = 0,
    AUTH_CODE_MD5 = 5,
    AUTH_CODE_SASL = 10,
    AUTH_CODE_SASL_CONTINUE = 11,
    AUTH_CODE_SASL_FINAL = 12
};

struct user {
    struct prt_map_node node; /* key: name */
    char *name, *secret;
    bool has_scram;
    struct prt_scram_secret scram;
};
struct prt_auth {
    enum prt_auth_type type;
    struct prt_map users;
    struct user *all;
    int n;
};

/* ---- the table ---- */

static const struct user *find(const struct prt_auth *a, struct prt_str name)
{
    struct prt_map_node *n = prt_map_get(&a->users, name);

    return n ? prt_container_of(n, struct user, node) : NULL;
}

static bool is_verifier(const char *secret)
{
    return strncmp(secret, "SCRAM-SHA-256$", 14) == 0;
}

static bool is_md5(const char *secret)
{
    return strncmp(secret, "md5", 3) == 0 && strlen(secret) == 35;
}

static bool derive(struct user *u, enum prt_auth_type type, const struct user *before)
{
    if (is_verifier(u->secret)) {
        u->has_scram = prt_scram_secret_parse(prt_str_of(u->secret), &u->scram);
        return u->has_scram;
    }
    if (type != PRT_AUTH_SCRAM || is_md5(u->secret)) {
        return true; /* an md5 hash cannot prove SCRAM: such a login is denied */
    }
    if (before && before->has_scram && strcmp(before->secret, u->secret) == 0) {
        u->scram = before->scram;
        u->has_scram = true;
        return true;
    }
    u->has_scram = prt_password_secret(prt_str_of(u->secret), &u->scram);
    return u->has_scram;
}

static poolrt_rc add_user(struct prt_auth *a, const struct prt_user_config *row,
                          const struct prt_auth *old, struct prt_err *err)
{
    struct user *u = &a->all[a->n];

    u->name = strdup(row->name);
    u->secret = strdup(row->secret ? row->secret : "");
    a->n++;
    if (!u->name || !u->secret || !prt_map_put(&a->users, &u->node, prt_str_of(u->name))) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for the users");
    }
    if (!derive(u, a->type, old ? find(old, prt_str_of(row->name)) : NULL)) {
        return prt_fail(err, POOLRT_CONFIG,
                        "auth.users.%s: the secret is neither a password nor a usable verifier "
                        "(SCRAM-SHA-256$iterations:salt$stored:server, at most 100000 iterations)",
                        row->name);
    }
    return POOLRT_OK;
}

poolrt_rc prt_auth_new(struct prt_auth **out, const struct prt_config *cfg,
                       const struct prt_auth *old, struct prt_err *err)
{
    struct prt_auth *a = calloc(1, sizeof *a);
    poolrt_rc rc = POOLRT_OK;

    *out = NULL;
    if (a) {
        a->type = cfg->auth_type;
        a->all = calloc((size_t)cfg->n_users + 1, sizeof *a->all);
    }
    if (!a || !a->all) {
        free(a);
        return prt_fail(err, POOLRT_NOMEM, "no memory for the users");
    }
    for (int i = 0; i < cfg->n_users && !rc; i++) {
        rc = add_user(a, &cfg->users[i], old, err);
    }
    if (rc) {
        prt_auth_free(a);
        return rc;
    }
    *out = a;
    return POOLRT_OK;
}

void prt_auth_free(struct prt_auth *a)
{
    if (!a) {
        return;
    }
    for (int i = 0; i < a->n; i++) {
        struct user *u = &a->all[i];
        if (u->secret) {
            prt_secret_wipe(u->secret, strlen(u->secret));
        }
        prt_secret_wipe(&u->scram, sizeof u->scram);
        free(u->name);
        free(u->secret);
    }
    free(a->all);
    prt_map_fini(&a->users);
    free(a);
}

/* ---- one login ----
 *
 *   TRUST: nothing to prove      MD5: one answer      SASL: first, then final */
struct prt_auth_try {
    enum { TRY_TRUST, TRY_MD5, TRY_SASL_FIRST, TRY_SASL_FINAL } state;
    struct prt_scram *scram;
    uint8_t salt[4];
    bool is_known;
    char user[PRT_NAME_MAX + 1];
    char *secret; /* md5: owned copy, so that a reload in between is harmless */
};

ON_WORKER static bool begin_scram(struct prt_auth_try *t, const struct user *u, struct ssl_st *ssl,
                                  struct prt_buf *out)
{
    struct prt_buf list = {0};
    struct prt_scram_secret secret;
    uint8_t binding[64];
    size_t binding_n = ssl ? prt_tls_end_point(ssl, binding) : 0;
    bool is_mock = !u || !u->has_scram;

    if (is_mock) {
        prt_scram_secret_mock(prt_str_of(t->user), &secret);
    } else {
        secret = u->scram;
    }
    t->state = TRY_SASL_FIRST;
    t->scram = prt_scram_new(&secret, is_mock, binding, binding_n);
    prt_secret_wipe(&secret, sizeof secret);
    if (!t->scram) {
        return false;
    }
    prt_scram_mechanisms(t->scram, &list);
    prt_put_auth(out, AUTH_CODE_SASL, prt_buf_data(&list), prt_buf_len(&list));
    bool ok = !list.failed && !out->failed;
    prt_buf_free(&list);
    return ok;
}

static bool begin_md5(struct prt_auth_try *t, const struct user *u, struct prt_buf *out)
{
    t->state = TRY_MD5;
    t->is_known = u != NULL;
    t->secret = strdup(u ? u->secret : "");
    prt_random(t->salt, sizeof t->salt);
    prt_put_auth(out, AUTH_CODE_MD5, t->salt, sizeof t->salt);
    return t->secret && !out->failed;
}

struct prt_auth_try *prt_auth_begin(const struct prt_auth *a, struct prt_str user,
                                    struct ssl_st *ssl, struct prt_buf *out)
{
    struct prt_auth_try *t = calloc(1, sizeof *t);
    const struct user *u = find(a, user);
    bool ok = true;

    if (!t || !prt_str_copy(t->user, sizeof t->user, user)) {
        free(t);
        return NULL;
    }
    if (a->type == PRT_AUTH_SCRAM || (a->type == PRT_AUTH_MD5 && u && u->has_scram)) {
        ok = begin_scram(t, u, ssl, out);
    } else if (a->type == PRT_AUTH_MD5) {
        ok = begin_md5(t, u, out);
    }
    if (!ok) {
        prt_auth_end(t);
        return NULL;
    }
    return t;
}

bool prt_auth_wants_proof(const struct prt_auth_try *t)
{
    return t->state != TRY_TRUST;
}

static enum prt_auth_rc answer_md5(struct prt_auth_try *t, const struct prt_msg *m)
{
    struct prt_str proof;

    if (!prt_msg_string(m, 0, &proof) || proof.n + 1 != m->len) {
        return PRT_AUTH_BAD;
    }
    bool fits = prt_md5_check(prt_str_of(t->secret), prt_str_of(t->user), t->salt, proof);
    return fits && t->is_known && t->secret[0] ? PRT_AUTH_OK : PRT_AUTH_DENIED;
}

static enum prt_auth_rc answer_sasl(struct prt_auth_try *t, const struct prt_msg *m,
                                    struct prt_buf *out)
{
    struct prt_buf data = {0};
    enum prt_auth_rc rc = PRT_AUTH_BAD;

    switch (prt_scram_step(t->scram, m->body, m->len, &data)) {
    case PRT_SCRAM_CONTINUE:
        rc = t->state == TRY_SASL_FIRST ? PRT_AUTH_MORE : PRT_AUTH_BAD;
        t->state = TRY_SASL_FINAL;
        prt_put_auth(out, AUTH_CODE_SASL_CONTINUE, prt_buf_data(&data), prt_buf_len(&data));
        break;
    case PRT_SCRAM_DONE:
        rc = PRT_AUTH_OK;
        prt_put_auth(out, AUTH_CODE_SASL_FINAL, prt_buf_data(&data), prt_buf_len(&data));
        break;
    case PRT_SCRAM_DENIED:
        rc = PRT_AUTH_DENIED;
        break;
    case PRT_SCRAM_BAD:
        break;
    }
    prt_buf_free(&data);
    return rc;
}

enum prt_auth_rc prt_auth_answer(struct prt_auth_try *t, const struct prt_msg *m,
                                 struct prt_buf *out)
{
    switch (t->state) {
    case TRY_MD5:
        return answer_md5(t, m);
    case TRY_SASL_FIRST:
    case TRY_SASL_FINAL:
        return answer_sasl(t, m, out);
    case TRY_TRUST:
        break;
    }
    return PRT_AUTH_BAD;
}

void prt_auth_end(struct prt_auth_try *t)
{
    if (!t) {
        return;
    }
    prt_scram_free(t->scram);
    if (t->secret) {
        prt_secret_wipe(t->secret, strlen(t->secret));
    }
    free(t->secret);
    free(t);
}
