/* access.c - may this request be answered, and as whose?
 * Owns: the token's digest, the table of wrong tries.   Threads: control.
 * Idea: three gates in this order. Host: a page in somebody's browser can make requests to a name
 * that resolves to our address (DNS rebinding), but it cannot choose another Host, so only the
 * listener's own names are answered. Tries: an address with ten wrong tokens behind it pays one
 * second for each, and until then no token of it is looked at. Token: digests of fixed length are
 * compared, so neither the length nor the beginning of the right one can be measured. */
#include "admin/admin_int.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/sha.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define TRY_COST_US 1000000
#define TRY_BURST_US (10 * TRY_COST_US)

/* ---- addresses ---- */

static const uint8_t v4_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

/* as an IPv6 address; false: neither v4 nor v6 */
static bool address_of(const struct sockaddr *sa, uint8_t out[16])
{
    if (sa->sa_family == AF_INET) {
        memcpy(out, v4_prefix, sizeof v4_prefix);
        memcpy(out + 12, &((const struct sockaddr_in *)(const void *)sa)->sin_addr, 4);
        return true;
    }
    if (sa->sa_family == AF_INET6) {
        memcpy(out, &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr, 16);
        return true;
    }
    return false;
}

static bool is_v4(const uint8_t a[16])
{
    return memcmp(a, v4_prefix, sizeof v4_prefix) == 0;
}

bool prt_sockaddr_is_loopback(const struct sockaddr *sa)
{
    uint8_t a[16];

    if (!address_of(sa, a)) {
        return false;
    }
    return is_v4(a) ? a[12] == 127 : memcmp(a, &in6addr_loopback, 16) == 0;
}

static bool is_any(const struct sockaddr *sa)
{
    static const uint8_t zero[4];
    uint8_t a[16];

    if (!address_of(sa, a)) {
        return false;
    }
    return is_v4(a) ? memcmp(a + 12, zero, 4) == 0 : memcmp(a, &in6addr_any, 16) == 0;
}

/* ---- set-up ---- */

void prt_access_set_token(struct prt_access *a, const char *token)
{
    bool is_given = token && *token;

    prt_secret_wipe(a->digest, sizeof a->digest);
    if (is_given) {
        SHA256((const unsigned char *)token, strlen(token), a->digest);
    }
    a->has_token = is_given;
}

void prt_access_init(struct prt_access *a, const struct prt_config *cfg,
                     const struct sockaddr *bound)
{
    memset(a, 0, sizeof *a);
    a->is_loopback = prt_sockaddr_is_loopback(bound);
    a->is_wildcard = is_any(bound);
    if (!prt_str_copy(a->host, sizeof a->host, prt_str_of(cfg->admin_listen.host))) {
        a->host[0] = '\0'; /* longer than a name can be: no Host is equal to it */
    }
    if (gethostname(a->machine, sizeof a->machine - 1) != 0) {
        a->machine[0] = '\0';
    }
    prt_access_set_token(a, cfg->admin_token);
}

/* ---- Host ---- */

static bool is_port(struct prt_str s)
{
    unsigned n = 0;

    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9' || i >= 5) {
            return false;
        }
        n = n * 10 + (unsigned)(s.p[i] - '0');
    }
    return n > 0 && n <= 65535;
}

/* "name", "name:port", "[v6]", "[v6]:port" -> the name without brackets; n 0: malformed. The port
 * may be any: a tunnel (ssh -L 9000:localhost:8080) changes it, and it proves nothing. */
static struct prt_str host_name(struct prt_str host)
{
    const struct prt_str none = {NULL, 0};
    bool bracket = host.n && host.p[0] == '[';
    const char *end = host.n ? memchr(host.p, bracket ? ']' : ':', host.n) : NULL;
    struct prt_str name = host, rest = {NULL, 0};

    if (end) {
        name.n = (size_t)(end - host.p);
        rest = (struct prt_str){end + bracket, host.n - name.n - bracket};
    }
    if (bracket) {
        name = end ? (struct prt_str){name.p + 1, name.n - 1} : none;
    }
    if (rest.n && (rest.p[0] != ':' || !is_port((struct prt_str){rest.p + 1, rest.n - 1}))) {
        return none;
    }
    return name;
}

static bool same_name(struct prt_str a, const char *z)
{
    return *z && a.n == strlen(z) && strncasecmp(a.p, z, a.n) == 0;
}

/* No page can be served from a bare address that is not ours, so any address may name the machine.
 */
static bool is_literal(struct prt_str name)
{
    char text[INET6_ADDRSTRLEN];
    uint8_t bytes[16];

    return prt_str_copy(text, sizeof text, name) &&
           (inet_pton(AF_INET, text, bytes) == 1 || inet_pton(AF_INET6, text, bytes) == 1);
}

static bool is_our_host(const struct prt_access *a, struct prt_str host)
{
    struct prt_str name = host_name(host);

    if (name.n == 0) {
        return false;
    }
    if (same_name(name, "127.0.0.1") || same_name(name, "localhost") || same_name(name, "::1") ||
        same_name(name, a->host)) {
        return true;
    }
    return a->is_wildcard && (is_literal(name) || same_name(name, a->machine));
}

/* ---- tries ---- */

/* A v6 network of 64 bits belongs to one customer: it counts as one address. */
static void key_of(const struct sockaddr *peer, uint8_t key[16])
{
    memset(key, 0, 16);
    if (address_of(peer, key) && !is_v4(key)) {
        memset(key + 8, 0, 8);
    }
}

/* The entry of the address, or the one that is over soonest: who must be forgotten because 256
 * others fail at the same time owes the least. */
static struct prt_access_try *try_of(struct prt_access *a, const uint8_t key[16])
{
    struct prt_access_try *oldest = &a->tries[0];

    for (int i = 0; i < PRT_ACCESS_TABLE; i++) {
        struct prt_access_try *t = &a->tries[i];
        if (t->until_us && memcmp(t->addr, key, 16) == 0) {
            return t;
        }
        if (t->until_us < oldest->until_us) {
            oldest = t;
        }
    }
    return oldest;
}

static bool is_held(struct prt_access *a, const uint8_t key[16], int64_t now_us)
{
    const struct prt_access_try *t = try_of(a, key);

    return memcmp(t->addr, key, 16) == 0 && t->until_us - now_us >= TRY_BURST_US;
}

static void note_failure(struct prt_access *a, const uint8_t key[16], int64_t now_us)
{
    struct prt_access_try *t = try_of(a, key);

    if (memcmp(t->addr, key, 16) != 0 || t->until_us < now_us) {
        memcpy(t->addr, key, 16);
        t->until_us = now_us;
    }
    t->until_us += TRY_COST_US;
    a->failures++;
}

/* ---- the token ---- */

static bool is_token_right(const struct prt_access *a, struct prt_str authorization)
{
    static const char scheme[] = "Bearer ";
    const size_t skip = sizeof scheme - 1;
    uint8_t digest[32];

    if (authorization.n <= skip || strncasecmp(authorization.p, scheme, skip) != 0) {
        return false;
    }
    SHA256((const unsigned char *)authorization.p + skip, authorization.n - skip, digest);
    return prt_secret_eq(digest, a->digest, sizeof digest);
}

struct prt_refusal prt_access_check(struct prt_access *a, const struct prt_http_head *h,
                                    const struct sockaddr *peer, int64_t now_us, bool *is_admin)
{
    uint8_t key[16];

    *is_admin = false;
    if (!is_our_host(a, h->host)) {
        return (struct prt_refusal){421, "misdirected", "this Host is not served here"};
    }
    if (!a->has_token || !h->authorization.p) {
        /* Without a token only loopback is listened on; should a reload take the token away from a
         * listener that others reach, nobody is let in. */
        *is_admin = !a->has_token && a->is_loopback;
        return (struct prt_refusal){.status = 0};
    }
    key_of(peer, key);
    if (is_held(a, key, now_us)) {
        return (struct prt_refusal){429, "too_many_requests", "too many wrong tokens"};
    }
    if (!is_token_right(a, h->authorization)) {
        note_failure(a, key, now_us);
        return (struct prt_refusal){401, "unauthorized", "a valid bearer token is needed"};
    }
    *is_admin = true;
    return (struct prt_refusal){.status = 0};
}
