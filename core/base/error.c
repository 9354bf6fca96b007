/* error.c - one row per result code: its name, sentence, SQLSTATE and HTTP status.
 * Owns: the table.   Threads: any.
 * Idea: C, Lua, REST and the wire speak of the same failures, so the words stand in one place. */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

static const struct prt_error_row rows[] = {
    {POOLRT_OK, "ok", "ok", "00000", 200},
    {POOLRT_PENDING, "pending", "the answer comes later", "00000", 202},
    {POOLRT_TIMEOUT, "timeout", "no server connection became free in time", "53300", 504},
    {POOLRT_EXHAUSTED, "exhausted", "no server connection is free", "53300", 503},
    {POOLRT_QUEUE_FULL, "queue_full", "too many clients are waiting for a server connection",
     "53300", 503},
    {POOLRT_BACKPRESSURE, "backpressure", "the pool is too busy", "53300", 503},
    {POOLRT_CLOSED, "closed", "the pool is closed", "57P01", 503},
    {POOLRT_DRAINING, "draining", "the pool is being drained", "57P01", 503},
    {POOLRT_CONNECT_FAILED, "connect_failed", "no server connection could be opened", "08001", 502},
    {POOLRT_VALIDATION_FAILED, "validation_failed", "the server connection failed its check",
     "08006", 502},
    {POOLRT_CANCELLED, "cancelled", "cancelled", "57014", 409},
    {POOLRT_STALE, "stale", "the lease is no longer valid", "58000", 404},
    {POOLRT_NOT_FOUND, "not_found", "there is no such object", "58000", 404},
    {POOLRT_BUSY, "busy", "in use", "55006", 409},
    {POOLRT_IN_TRANSACTION, "in_transaction", "in a transaction", "55006", 409},
    {POOLRT_POLICY, "policy", "refused by a policy", "53300", 403},
    {POOLRT_CONFIG, "config", "a value was refused", "F0000", 400},
    {POOLRT_NOMEM, "nomem", "out of memory", "53200", 507},
    {POOLRT_FORKED, "forked", "used in a forked process", "58000", 0},
    {POOLRT_WRONG_PHASE, "wrong_phase", "not allowed at this point", "58000", 0},
    {POOLRT_DEADLOCK, "deadlock", "waiting in a circle", "40P01", 409},
    {POOLRT_PROTOCOL, "protocol", "the protocol does not allow this", "08P01", 502},
    {POOLRT_IO, "io", "a system call failed", "58000", 500},
};

const struct prt_error_row *prt_error_row(poolrt_rc rc)
{
    const size_t n = sizeof rows / sizeof rows[0];

    for (size_t i = 0; i < n; i++) {
        if (rows[i].rc == rc) {
            return &rows[i];
        }
    }
    return &rows[n - 1];
}

poolrt_rc prt_fail(struct prt_err *err, poolrt_rc rc, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
        err->rc = rc;
        err->sqlstate[0] = '\0';
    }
    return rc;
}
