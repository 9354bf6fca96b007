/* embedded_spawn.c - start a program of PostgreSQL as its owner, bound to our life.
 * Owns: nothing after the start.   Threads: control, whose end is the child's order to stop.
 * Idea: fork and exec by hand, because three things are wanted between the two that uv_spawn does
 * not do: the signal at our death (a runtime killed with -9 leaves no server), a session of its own
 * (the terminal's Ctrl-C is ours alone: transactions end first, then PostgreSQL), and the choice
 * between a directory's path and /proc/self/fd/N. The second works where the owner may not pass a
 * directory above, as in a checkout below root's home. All memory is ready before the fork, since
 * other threads may hold malloc's lock at that moment. */
#include "embedded_int.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGS_MAX 48
#define WORD_MAX (PATH_MAX + 128)
#define FIRST_FD 64 /* inherited descriptors lie above what a program uses itself */

struct words {
    char *argv[ARGS_MAX + 2];
};

struct child {
    const struct prt_pg_spawn *s;
    pid_t parent;
    char exe[WORD_MAX];
    struct words by_path, by_fd;
    int dir_fd, run_fd; /* close-on-exec until the child wants them */
};

static void words_free(struct words *w)
{
    for (int i = 0; w->argv[i]; i++) {
        free(w->argv[i]);
    }
}

/* `word` with "@DIR" or "@RUN" at its end replaced */
static char *expand(const char *word, const char *dir, const char *run)
{
    const char *at = strchr(word, '@');
    char *out = NULL;

    if (!at) {
        return strdup(word);
    }
    const char *path = strcmp(at, "@DIR") == 0 ? dir : run;
    return asprintf(&out, "%.*s%s", (int)(at - word), word, path) < 0 ? NULL : out;
}

static bool words_init(struct words *w, const struct child *c, const char *dir, const char *run)
{
    int n = 0;

    w->argv[n] = strdup(c->exe);
    for (; w->argv[n] && c->s->args[n] && n < ARGS_MAX; n++) {
        w->argv[n + 1] = expand(c->s->args[n], dir, run);
    }
    return w->argv[n] && !c->s->args[n];
}

static void child_fini(struct child *c)
{
    words_free(&c->by_path);
    words_free(&c->by_fd);
    if (c->dir_fd >= 0) {
        (void)close(c->dir_fd);
    }
    if (c->run_fd >= 0) {
        (void)close(c->run_fd);
    }
}

static poolrt_rc child_init(struct child *c, const struct prt_pg_spawn *s, struct prt_err *err)
{
    char dir[48], run[48];

    c->s = s;
    c->parent = getpid();
    c->dir_fd = fcntl(s->dir_fd, F_DUPFD_CLOEXEC, FIRST_FD);
    c->run_fd = fcntl(s->place->run_fd, F_DUPFD_CLOEXEC, FIRST_FD);
    if (c->dir_fd < 0 || c->run_fd < 0) {
        poolrt_rc rc =
            prt_fail(err, POOLRT_IO, "cannot start %s: %s", s->program, strerrordesc_np(errno));
        child_fini(c);
        return rc;
    }
    (void)snprintf(c->exe, sizeof c->exe, "%s/%s", s->place->bin, s->program);
    (void)snprintf(dir, sizeof dir, "/proc/self/fd/%d", c->dir_fd);
    (void)snprintf(run, sizeof run, "/proc/self/fd/%d", c->run_fd);
    if (!words_init(&c->by_path, c, s->dir, s->place->run_dir) ||
        !words_init(&c->by_fd, c, dir, run)) {
        child_fini(c);
        return prt_fail(err, POOLRT_NOMEM, "no memory to start %s", s->program);
    }
    return POOLRT_OK;
}

/* ---- in the child: only calls that are safe after a fork ---- */

static _Noreturn void give_up(const char *what)
{
    static const char head[] = "poolrt: cannot start PostgreSQL: ", end[] = "\n";

    if (write(STDERR_FILENO, head, sizeof head - 1) < 0 ||
        write(STDERR_FILENO, what, strlen(what)) < 0 ||
        write(STDERR_FILENO, end, sizeof end - 1) < 0) {
        _exit(126);
    }
    _exit(127);
}

static void plain_signals(void)
{
    static const int all[] = {SIGHUP, SIGINT, SIGTERM, SIGQUIT, SIGPIPE, SIGCHLD, SIGUSR1, SIGUSR2};
    sigset_t none;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        (void)signal(all[i], SIG_DFL);
    }
    (void)sigemptyset(&none);
    (void)pthread_sigmask(SIG_SETMASK, &none, NULL);
}

static void become_owner(const struct prt_pg_owner *o)
{
    if (o->is_other && (setgroups(0, NULL) || setgid(o->gid) || setuid(o->uid))) {
        give_up("no right to change to another user (setuid)");
    }
}

static void log_to(const struct child *c)
{
    int in = open("/dev/null", O_RDONLY);
    int out = openat(c->s->log_dir_fd, c->s->log, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600);

    if (in < 0 || out < 0 || dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 ||
        dup2(out, STDERR_FILENO) < 0) {
        give_up("its log file cannot be opened");
    }
    (void)close(in);
    (void)close(out);
}

static bool may_enter(const char *dir)
{
    return access(dir, R_OK | W_OK | X_OK) == 0;
}

static _Noreturn void run_child(const struct child *c)
{
    static char path[] = "PATH=/usr/bin:/bin", home[] = "HOME=/", locale[] = "LC_ALL=C.UTF-8";
    char *const env[] = {path, home, locale, NULL};
    bool by_path;

    plain_signals();
    (void)setsid();
    (void)umask(077);
    become_owner(&c->s->place->owner);
    /* after the change of user, which forgets it */
    if (prctl(PR_SET_PDEATHSIG, SIGINT) || getppid() != c->parent) {
        _exit(125);
    }
    log_to(c);
    by_path = may_enter(c->s->dir) && may_enter(c->s->place->run_dir);
    if (!by_path && (fcntl(c->dir_fd, F_SETFD, 0) || fcntl(c->run_fd, F_SETFD, 0))) {
        give_up("fcntl failed");
    }
    if (chdir("/")) {
        give_up("chdir failed");
    }
    (void)execve(c->exe, by_path ? c->by_path.argv : c->by_fd.argv, env);
    give_up("its program cannot be run");
}

poolrt_rc prt_pg_spawn(const struct prt_pg_spawn *s, pid_t *pid, struct prt_err *err)
{
    struct child c = {.dir_fd = -1, .run_fd = -1};
    sigset_t all, before;
    poolrt_rc rc = child_init(&c, s, err);

    if (rc) {
        return rc;
    }
    /* a signal between fork and exec must not run our handlers in the child */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    *pid = fork();
    if (*pid == 0) {
        run_child(&c);
    }
    int why = errno;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (*pid < 0) {
        rc = prt_fail(err, POOLRT_IO, "cannot start %s: %s", s->program, strerrordesc_np(why));
    }
    child_fini(&c);
    return rc;
}

void prt_pg_status_text(int status, char *to, size_t cap)
{
    if (WIFSIGNALED(status)) {
        (void)snprintf(to, cap, "was killed by signal %d", WTERMSIG(status));
    } else {
        (void)snprintf(to, cap, "exited with status %d", WEXITSTATUS(status));
    }
}
