/* config.h - the configuration as C sees it: immutable once loaded, counted, shared by all threads.
 *
 * luahost/config.c makes it from config.lua; daemon.c hands each new one to workers and control
 * thread; the last to let go frees it. Strings end in NUL and live as long as the configuration. */
#ifndef PRT_CONFIG_H
#define PRT_CONFIG_H
#include "base/base.h"
#include "base/log.h"
#include "base/state.h"

#define PRT_FIELD_INT(name) int64_t name;
#define PRT_FIELD_BOOL(name) bool name;
#define PRT_FIELD_TIME(name) int64_t name##_us;
#define PRT_FIELD_TIME0(name) int64_t name##_us;
#define PRT_FIELD_BYTES(name) int64_t name##_bytes;

enum prt_pool_mode { PRT_MODE_SESSION, PRT_MODE_TRANSACTION, PRT_MODE_STATEMENT };
enum prt_auth_type { PRT_AUTH_TRUST, PRT_AUTH_MD5, PRT_AUTH_SCRAM };
/* of listeners: what a client may or must do */
enum prt_tls_mode { PRT_TLS_DISABLE, PRT_TLS_ALLOW, PRT_TLS_REQUIRE };
enum prt_partition_type {
    PRT_PART_TENANT,
    PRT_PART_USER,
    PRT_PART_APPLICATION,
    PRT_PART_SERVICE,
    PRT_PART_RESOURCE_GROUP,
};

struct prt_address {
    bool is_unix;
    char *host; /* TCP: numeric address or name ("*": all); unix: the directory */
    uint16_t port;
    char *text; /* as written, for messages */
};

/** A user who may log in. `secret` is a plain password, "SCRAM-SHA-256$..." or "md5...". */
struct prt_user_config {
    char *name;
    char *secret;
};

struct prt_policy_config {
    char *name;   /* "route/tenant": looked for in policy_path as route/tenant.lua */
    char *config; /* its settings as Lua source ("return {...}"), stable text for equal settings */
    char *where;  /* "config.lua: pools.app.policies[1]", for messages */
};

struct prt_partition_config {
    char *name;
    enum prt_partition_type type;
    char *match;         /* the tenant, user, ... that routes here; NULL: the partition's name */
    int max_connections; /* leased slots; 0: only the pool's limit */
    int min_connections; /* reserved for it; 0: none */
    int max_wait_queue;  /* 0: only the pool's limit */
    int priority;        /* enum prt_priority of pool/pool.h; -1: unset */
};

struct prt_tenant_config {
    enum { PRT_TENANT_NONE, PRT_TENANT_DATABASE, PRT_TENANT_APPLICATION, PRT_TENANT_USER } from;
    char *pattern; /* user name pattern with one "*": "*_app" makes acme of acme_app; NULL: all */
};

struct prt_pool_config {
    char *name;            /* key: the database name that clients ask for; "*": any other */
    char *target;          /* libpq conninfo or URL; never logged (may hold a password) */
    char *user, *password; /* NULL: as the client's own user */
    enum prt_pool_mode mode;
    struct prt_tenant_config tenant;
    uint8_t session_state[PRT_STATE_COUNT]; /* enum prt_state_rule */
#define POOL(name, type, ...) PRT_FIELD_##type(name)
#include "base/settings.def"
    int n_policies, n_partitions;
    struct prt_policy_config *policies;
    struct prt_partition_config *partitions;
};

struct prt_embedded_config { /* postgres.embedded{}; absent when dir is NULL */
    char *dir;               /* data directory */
    char *run_dir;           /* directory of its socket */
    char *database;          /* created once */
    int n_users;
    struct prt_user_config *users; /* created once, with this password */
};

struct prt_config {
    _Atomic int refs;
    char *path, *dir; /* of config.lua */
    int n_listen;
    struct prt_address *listen;
    struct prt_address admin_listen; /* host NULL: no admin listener */
    char *admin_token;               /* NULL: none configured */
    enum prt_auth_type auth_type;
    int64_t login_timeout_us;
    int n_users;
    struct prt_user_config *users; /* sorted by name */
    enum prt_tls_mode tls_mode;
    char *tls_cert, *tls_key; /* file names, resolved */
    enum prt_log_level log_level;
    bool log_connections;
    int n_policy_path;
    char **policy_path; /* resolved; the bundled folders come last */
#define TOP(name, type, ...) PRT_FIELD_##type(name)
#include "base/settings.def"
    int n_pools;
    struct prt_pool_config *pools; /* sorted by name */
    struct prt_embedded_config embedded;
};

struct prt_config *prt_config_ref(struct prt_config *c) ON_ANY;
/** Frees with the last reference, secrets wiped. NULL is accepted. */
void prt_config_unref(struct prt_config *c) ON_ANY;
/** The pool that clients of `database` use: its own row, else "*", else NULL. */
const struct prt_pool_config *prt_config_pool(const struct prt_config *c, struct prt_str database);
/** NULL: no such user. */
const struct prt_user_config *prt_config_user(const struct prt_config *c, struct prt_str name);
#endif
