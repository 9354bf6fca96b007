/* log.h - one line per event, as logfmt: ts=… level=… event=… key=value.
 * Values are escaped here, so a client's name can neither forge a line nor a field. One write(2)
 * per line to standard error. Secrets are never passed to it, at any level. */
#ifndef PRT_LOG_H
#define PRT_LOG_H
#include "base/base.h"

enum prt_log_level { PRT_LOG_DEBUG, PRT_LOG_INFO, PRT_LOG_WARN, PRT_LOG_ERROR };

struct prt_kv {
    const char *key;
    enum { PRT_KV_STR, PRT_KV_INT, PRT_KV_NUM } kind;
    struct prt_str s;
    int64_t i;
    double d;
};
static inline struct prt_kv prt_kv_str(const char *key, struct prt_str s)
{
    return (struct prt_kv){.key = key, .kind = PRT_KV_STR, .s = s};
}
static inline struct prt_kv prt_kv_z(const char *key, const char *z)
{
    return prt_kv_str(key, prt_str_of(z));
}
static inline struct prt_kv prt_kv_int(const char *key, int64_t i)
{
    return (struct prt_kv){.key = key, .kind = PRT_KV_INT, .i = i};
}
static inline struct prt_kv prt_kv_num(const char *key, double d)
{
    return (struct prt_kv){.key = key, .kind = PRT_KV_NUM, .d = d};
}

/** prt_log(PRT_LOG_INFO, "login", prt_kv_str("user", user), prt_kv_int("ms", 3)); any thread. */
#define prt_log(level, event, ...)                                                                 \
    prt_log_write((level), NULL, (event), (const struct prt_kv[]){__VA_ARGS__},                    \
                  sizeof((const struct prt_kv[]){__VA_ARGS__}) / sizeof(struct prt_kv))

/** A place that may log often: at most one line per 10 s, which then carries `repeated=N` for the
 *  ones left out. static struct prt_log_limit limit; all zero to begin with; any thread. */
struct prt_log_limit {
    _Atomic int64_t next_us;
    _Atomic uint32_t dropped;
};
#define prt_log_limited(limit, level, event, ...)                                                  \
    prt_log_write((level), (limit), (event), (const struct prt_kv[]){__VA_ARGS__},                 \
                  sizeof((const struct prt_kv[]){__VA_ARGS__}) / sizeof(struct prt_kv))

void prt_log_write(enum prt_log_level level, struct prt_log_limit *limit, const char *event,
                   const struct prt_kv *kv, size_t n);
/** Lines below `level` are dropped. Any thread; default info. */
void prt_log_set_level(enum prt_log_level level);
bool prt_log_on(enum prt_log_level level);
/** "debug", "info", "warn", "error"; false: unknown name. */
bool prt_log_level_of(struct prt_str name, enum prt_log_level *out);
/** Tests only: lines go to `sink` instead of standard error; NULL restores it. */
void prt_log_set_sink(void (*sink)(const char *line, size_t n));
#endif
