/* guard.c - stops Lua code that does not end.
 * Owns: the signal SIGRTMIN+3, one CPU timer per guarded thread.   Threads: each its own guard.
 * Idea: a timer on the thread's own CPU clock sends it a signal every 4 ms of work (never when it
 * is idle, and being preempted does not count). The handler finds the same call still running:
 *
 *   stage 1   sets a debug hook, which raises an ordinary Lua error: the state stays usable.
 * Compiled code does not look at hooks, and a pcall may swallow the error, so there is stage 2
 * siglongjmp out of the call. The state is in an unknown condition and is abandoned: about 160 KiB
 * lost, and the worker goes on.
 *
 * The jump is safe because nothing that outlives the state is held meanwhile: a state's memory is
 * its own and lock-free, no lock of ours is held in Lua, and functions of ours that take a lock or
 * write declare it (prt_guard_enter_host). A watchdog thread or an instruction hook would be the
 * alternatives: the first needs the same jump, the second does not reach compiled code. */
#include "luahost/luahost_int.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
#define GUARD_SIGNAL (SIGRTMIN + 3)

/* initial-exec: the handler must not be the one who allocates it */
static _Thread_local struct prt_guard *volatile mine __attribute__((tls_model("initial-exec")));

static void raise_overrun(lua_State *L, lua_Debug *ar)
{
    prt_vm_raise_at(L, ar, "the policy ran too long and was stopped");
}

static void on_tick(int signo)
{
    struct prt_guard *g = mine;
    uint64_t call = g ? g->call : 0;

    if (!(call & 1)) {
        return;
    }
    if (call != g->seen) {
        g->seen = call;
        g->ticks = 0;
        return;
    }
    g->ticks = g->ticks + 1;
    if (g->ticks == g->ask_at) {
        g->stopped = 1;
        /* lua_sethook may be called from a signal handler, its manual says */
        lua_sethook(g->L, raise_overrun, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
    } else if (g->ticks >= g->kill_at && !g->in_host) {
        siglongjmp(g->out, 1);
    }
}

static void install_handler(void)
{
    struct sigaction sa = {.sa_handler = on_tick};

    /* NODEFER: after the jump the signal must not stay blocked */
    sa.sa_flags = SA_NODEFER | SA_RESTART;
    (void)sigemptyset(&sa.sa_mask);
    (void)sigaction(GUARD_SIGNAL, &sa, NULL);
}

static void unblock_signal(void)
{
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, GUARD_SIGNAL);
    (void)pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

poolrt_rc prt_guard_start(struct prt_guard *g)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID};
    const struct itimerspec every = {{0, PRT_GUARD_TICK_NS}, {0, PRT_GUARD_TICK_NS}};

    (void)pthread_once(&once, install_handler);
    unblock_signal();
    g->call = g->seen = 0;
    g->in_host = g->stopped = 0;
    g->outer = mine;
    mine = g;
    ev.sigev_signo = GUARD_SIGNAL;
    ev.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    g->has_timer = timer_create(CLOCK_THREAD_CPUTIME_ID, &ev, &g->timer) == 0;
    if (!g->has_timer) {
        return POOLRT_IO;
    }
    return timer_settime(g->timer, 0, &every, NULL) ? POOLRT_IO : POOLRT_OK;
}

void prt_guard_stop(struct prt_guard *g)
{
    if (g->has_timer) {
        (void)timer_delete(g->timer);
        g->has_timer = false;
    }
    /* a tick that is still on its way finds the outer guard, or none */
    mine = g->outer;
}

void prt_guard_enter_host(void)
{
    if (mine) {
        mine->in_host = 1;
        atomic_signal_fence(memory_order_seq_cst);
    }
}

void prt_guard_leave_host(void)
{
    if (mine) {
        atomic_signal_fence(memory_order_seq_cst);
        mine->in_host = 0;
    }
}

/* The fences keep the compiler from moving the call out from between the two counts; the handler
 * runs on this thread, so nothing more is needed. */
static inline void enter(struct prt_guard *g, lua_State *L)
{
    g->L = L;
    g->call = g->call + 1;
    atomic_signal_fence(memory_order_seq_cst);
}

/* An overrun leaves one value on the stack, as an error does, even where a pcall of the policy
 * swallowed the error and the call returned. */
PRT_COLD static enum prt_run overran(struct prt_guard *g, lua_State *L, int rc, int nresults)
{
    g->stopped = 0;
    lua_sethook(L, NULL, 0, 0);
    if (!rc) {
        lua_pop(L, nresults);
        lua_pushnil(L);
    }
    return PRT_RUN_STOPPED;
}

static inline enum prt_run leave(struct prt_guard *g, lua_State *L, int rc, int nresults)
{
    atomic_signal_fence(memory_order_seq_cst);
    g->call = g->call + 1;
    if (__builtin_expect(g->stopped, 0)) {
        return overran(g, L, rc, nresults);
    }
    return rc ? PRT_RUN_ERROR : PRT_RUN_OK;
}

PRT_COLD static enum prt_run jumped_out(struct prt_guard *g)
{
    g->stopped = 0;
    g->in_host = 0;
    g->call = g->call + 1;
    return PRT_RUN_KILLED;
}

enum prt_run prt_guard_call(struct prt_guard *g, lua_State *L, int nargs, int nresults)
{
    int rc;

    if (__builtin_expect(sigsetjmp(g->out, 0), 0)) {
        return jumped_out(g);
    }
    enter(g, L);
    rc = lua_pcall(L, nargs, nresults, 0);
    return leave(g, L, rc, nresults);
}

enum prt_run prt_guard_cpcall(struct prt_guard *g, lua_State *L, lua_CFunction f, void *arg)
{
    int rc;

    if (__builtin_expect(sigsetjmp(g->out, 0), 0)) {
        return jumped_out(g);
    }
    enter(g, L);
    rc = lua_cpcall(L, f, arg);
    return leave(g, L, rc, 0);
}
