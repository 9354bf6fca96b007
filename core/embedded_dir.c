/* embedded_dir.c - where the embedded PostgreSQL lives: its programs, owner, directories and lock.
 * Owns: the lock, while a place is open.   Threads: control.
 * Idea: the data directory is made beside its place and renamed when it is whole, so an interrupted
 * first start leaves nothing half-made behind. A lock file beside it keeps two runtimes apart
 * before either touches anything. What lies inside belongs to an unprivileged user: it is read
 * through descriptors and with that user's file rights, never through names that the user could
 * bend. */
#include "embedded_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define INITDB_SECONDS 120

/* ---- programs ---- */

static bool has_programs(const char *bin)
{
    static const char *const needed[] = {"postgres", "initdb"};
    char path[PATH_MAX];

    for (size_t i = 0; i < 2; i++) {
        int n = snprintf(path, sizeof path, "%s/%s", bin, needed[i]);
        if (n < 0 || (size_t)n >= sizeof path || access(path, X_OK)) {
            return false;
        }
    }
    return true;
}

/* Debian's layout, /usr/lib/postgresql/15/bin: the newest one, or the one of `version` (0: any) */
static bool find_packaged(char *bin, size_t cap, int version)
{
    glob_t found;
    int best = 0;

    /* NOLINTNEXTLINE(concurrency-mt-unsafe): no tilde, so no look at the environment */
    if (glob("/usr/lib/postgresql/*/bin", 0, NULL, &found)) {
        return false;
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        int v = (int)strtol(found.gl_pathv[i] + strlen("/usr/lib/postgresql/"), NULL, 10);
        if (v > best && (!version || v == version) && has_programs(found.gl_pathv[i]) &&
            prt_str_copy(bin, cap, prt_str_of(found.gl_pathv[i]))) {
            best = v;
        }
    }
    globfree(&found);
    return best > 0;
}

static bool find_in_path(char *bin, size_t cap)
{
    const char *at = getenv("PATH"); /* NOLINT(concurrency-mt-unsafe): nobody sets it */

    while (at && *at) {
        size_t n = strcspn(at, ":");
        if (prt_str_copy(bin, cap, (struct prt_str){at, n}) && *bin == '/' && has_programs(bin)) {
            return true;
        }
        at += n + (at[n] == ':');
    }
    return false;
}

/* `version` of an existing data directory, 0: there is none yet */
static poolrt_rc find_programs(struct prt_pg_place *at, int version, struct prt_err *err)
{
    bool is_missing = PRT_FAULT("no_postgres");

    if (!is_missing && (find_packaged(at->bin, sizeof at->bin, version) ||
                        find_in_path(at->bin, sizeof at->bin))) {
        return POOLRT_OK;
    }
    if (version) {
        return prt_fail(err, POOLRT_CONFIG,
                        "postgres.embedded: %s was made by PostgreSQL %d, which is not installed: "
                        "apt-get install postgresql-%d, or move the directory away",
                        at->dir, version, version);
    }
    return prt_fail(err, POOLRT_CONFIG,
                    "postgres.embedded: PostgreSQL's server programs are not installed: "
                    "apt-get install postgresql");
}

/* ---- owner ---- */

static bool owner_of(struct prt_pg_owner *o, uid_t uid, const char *name)
{
    struct passwd pw, *found = NULL;
    char text[4096];
    int rc = name ? getpwnam_r(name, &pw, text, sizeof text, &found)
                  : getpwuid_r(uid, &pw, text, sizeof text, &found);

    if (rc || !found || !prt_str_copy(o->name, sizeof o->name, prt_str_of(pw.pw_name))) {
        return false;
    }
    o->uid = pw.pw_uid;
    o->gid = pw.pw_gid;
    o->is_other = o->uid != geteuid();
    return true;
}

/* Root runs it as the owner of the directory that is there, else as "postgres", else as "nobody".
 */
static poolrt_rc choose_owner(struct prt_pg_place *at, const struct stat *dir, struct prt_err *err)
{
    struct prt_pg_owner *o = &at->owner;

    if (dir && dir->st_uid != geteuid() && geteuid() != 0) {
        (void)owner_of(o, dir->st_uid, NULL);
        return prt_fail(err, POOLRT_CONFIG,
                        "postgres.embedded: %s belongs to user %s: start poolrt as that user or as "
                        "root, or give dir another value",
                        at->dir, *o->name ? o->name : "(unknown)");
    }
    if (geteuid() != 0) {
        *o = (struct prt_pg_owner){.uid = geteuid(), .gid = getegid()};
        return POOLRT_OK;
    }
    if (dir && dir->st_uid == 0) {
        return prt_fail(err, POOLRT_CONFIG,
                        "postgres.embedded: %s belongs to root, as whom PostgreSQL does not run: "
                        "chown it to another user, or remove it",
                        at->dir);
    }
    bool ok = dir ? owner_of(o, dir->st_uid, NULL)
                  : owner_of(o, 0, "postgres") || owner_of(o, 0, "nobody");
    if (ok) {
        return POOLRT_OK;
    }
    return prt_fail(err, POOLRT_CONFIG,
                    "postgres.embedded: no user to run PostgreSQL as: it refuses to run as root, "
                    "and there is neither a user \"postgres\" nor \"nobody\"");
}

/* Until leave_owner(), this thread's file accesses have the owner's rights, no more. */
static void enter_owner(const struct prt_pg_owner *o)
{
    if (o->is_other) {
        (void)setfsgid(o->gid);
        (void)setfsuid(o->uid);
    }
}

static void leave_owner(const struct prt_pg_owner *o)
{
    if (o->is_other) {
        (void)setfsuid(geteuid());
        (void)setfsgid(getegid());
    }
}

/* ---- directories ---- */

static poolrt_rc cannot(struct prt_err *err, const char *what, const char *path)
{
    return prt_fail(err, POOLRT_CONFIG, "postgres.embedded: cannot %s %s: %s", what, path,
                    strerrordesc_np(errno));
}

/* mkdir -p for the directories above `path` */
static poolrt_rc make_parents(const char *path, struct prt_err *err)
{
    char part[PATH_MAX];

    for (const char *at = strchr(path + 1, '/'); at; at = strchr(at + 1, '/')) {
        if (!prt_str_copy(part, sizeof part, (struct prt_str){path, (size_t)(at - path)})) {
            return prt_fail(err, POOLRT_CONFIG, "postgres.embedded: %s is too long", path);
        }
        if (mkdir(part, 0755) && errno != EEXIST) {
            return cannot(err, "create directory", part);
        }
    }
    return POOLRT_OK;
}

/* A private directory of the owner: made, or found to be one. Its descriptor, or -1. */
static int open_private(const struct prt_pg_owner *o, const char *path, struct prt_err *err)
{
    struct stat st;
    bool is_new = mkdir(path, 0700) == 0;

    if (!is_new && errno != EEXIST) {
        (void)cannot(err, "create directory", path);
        return -1;
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) || (is_new && o->is_other && fchown(fd, o->uid, o->gid))) {
        (void)cannot(err, "use directory", path);
    } else if (!is_new && (st.st_uid != o->uid || (st.st_mode & 077))) {
        (void)prt_fail(err, POOLRT_CONFIG,
                       "postgres.embedded: %s must belong to the user that PostgreSQL runs as and "
                       "be closed to others (mode 0700): choose another one, or remove it",
                       path);
    } else {
        return fd;
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    return -1;
}

static poolrt_rc take_lock(struct prt_pg_place *at, struct prt_err *err)
{
    char path[PATH_MAX], holder[16] = "";
    int n = snprintf(path, sizeof path, "%s.lock", at->dir);

    if (n < 0 || (size_t)n >= sizeof path) {
        return prt_fail(err, POOLRT_CONFIG, "postgres.embedded: %s is too long", at->dir);
    }
    at->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (at->lock_fd < 0) {
        return cannot(err, "open", path);
    }
    if (flock(at->lock_fd, LOCK_EX | LOCK_NB)) {
        ssize_t got = pread(at->lock_fd, holder, sizeof holder - 1, 0);
        holder[got > 0 ? strcspn(holder, "\n") : 0] = '\0';
        return prt_fail(err, POOLRT_CONFIG,
                        "postgres.embedded: %s is in use by another poolrt%s%s: stop it, or give "
                        "this one a dir of its own",
                        at->dir, *holder ? ", process " : "", holder);
    }
    n = snprintf(holder, sizeof holder, "%d\n", (int)getpid());
    if (ftruncate(at->lock_fd, 0) || pwrite(at->lock_fd, holder, (size_t)n, 0) != n) {
        return cannot(err, "write", path);
    }
    return POOLRT_OK;
}

/* ---- a first start ---- */

static void nap(void)
{
    (void)nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

static poolrt_rc await_initdb(struct prt_pg_place *at, pid_t pid, struct prt_err *err)
{
    int64_t end = prt_now_us() + INITDB_SECONDS * 1000000LL;
    char how[48] = "did not end in time", tail[256];
    int status = 0;
    pid_t got;

    while ((got = waitpid(pid, &status, WNOHANG)) == 0 && prt_now_us() < end) {
        nap();
    }
    if (got == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return POOLRT_OK;
    }
    if (got == 0) {
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
    } else {
        prt_pg_status_text(status, how, sizeof how);
    }
    prt_pg_place_tail(at, at->run_fd, "initdb.log", tail, sizeof tail);
    return prt_fail(err, POOLRT_CONFIG, "postgres.embedded: initdb for %s %s: %s", at->dir, how,
                    tail);
}

static poolrt_rc run_initdb(struct prt_pg_place *at, int dir_fd, const char *dir,
                            struct prt_err *err)
{
    /* only whoever may enter the 0700 directory of its socket gets to "trust" */
    static const char *const args[] = {"-D",    "@DIR", "-U",   PRT_PG_SUPERUSER,   "-A",
                                       "trust", "-E",   "UTF8", "--locale=C.UTF-8", NULL};
    struct prt_pg_spawn s = {.place = at,
                             .program = "initdb",
                             .log = "initdb.log",
                             .log_dir_fd = at->run_fd,
                             .dir_fd = dir_fd,
                             .dir = dir,
                             .args = args};
    pid_t pid;
    poolrt_rc rc = prt_pg_spawn(&s, &pid, err);

    return rc ? rc : await_initdb(at, pid, err);
}

/* NULL at the end. */
static struct dirent *next_of(DIR *d)
{
    return readdir(d); /* NOLINT(concurrency-mt-unsafe): each stream has one reader */
}

static int remove_entry(int parent_fd, const char *name);

static void remove_children(int fd)
{
    DIR *d = fdopendir(fd); /* takes fd */

    if (!d) {
        (void)close(fd);
        return;
    }
    for (struct dirent *e = next_of(d); e; e = next_of(d)) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            (void)remove_entry(dirfd(d), e->d_name);
        }
    }
    (void)closedir(d);
}

/* rm -r that follows no link; as deep as initdb makes directories */
static int remove_entry(int parent_fd, const char *name)
{
    int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

    if (fd < 0) {
        return unlinkat(parent_fd, name, 0);
    }
    remove_children(fd);
    return unlinkat(parent_fd, name, AT_REMOVEDIR);
}

/* Made as DIR.new, given its name when it is whole. */
static poolrt_rc make_cluster(struct prt_pg_place *at, struct prt_err *err)
{
    char fresh[PATH_MAX];
    int n = snprintf(fresh, sizeof fresh, "%s.new", at->dir);

    if (n < 0 || (size_t)n >= sizeof fresh) {
        return prt_fail(err, POOLRT_CONFIG, "postgres.embedded: %s is too long", at->dir);
    }
    (void)remove_entry(AT_FDCWD, fresh); /* of a start that was interrupted; we have the lock */
    int fd = open_private(&at->owner, fresh, err);
    if (fd < 0) {
        return err ? err->rc : POOLRT_CONFIG;
    }
    poolrt_rc rc = run_initdb(at, fd, fresh, err);
    if (!rc && rename(fresh, at->dir)) {
        rc = errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR
                 ? prt_fail(err, POOLRT_CONFIG,
                            "postgres.embedded: %s is there but holds no PostgreSQL data: choose "
                            "another dir, or empty it",
                            at->dir)
                 : cannot(err, "create directory", at->dir);
    }
    if (rc) {
        (void)remove_entry(AT_FDCWD, fresh);
        (void)close(fd);
        return rc;
    }
    at->dir_fd = fd;
    return POOLRT_OK;
}

/* PG_VERSION of the directory; 0: it holds no PostgreSQL data */
static int version_of(const char *dir)
{
    char path[PATH_MAX], text[16] = "";
    int n = snprintf(path, sizeof path, "%s/PG_VERSION", dir);
    int fd = n > 0 && (size_t)n < sizeof path ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;

    if (fd < 0) {
        return 0;
    }
    ssize_t got = read(fd, text, sizeof text - 1);
    (void)close(fd);
    return got > 0 ? (int)strtol(text, NULL, 10) : 0;
}

static poolrt_rc open_all(struct prt_pg_place *at, const struct prt_embedded_config *cfg,
                          struct prt_err *err)
{
    struct stat st;
    int version = 0;
    bool is_there = stat(at->dir, &st) == 0;
    poolrt_rc rc = choose_owner(at, is_there ? &st : NULL, err);

    rc = rc ? rc : make_parents(at->dir, err);
    rc = rc ? rc : make_parents(at->run_dir, err);
    rc = rc ? rc : take_lock(at, err);
    if (rc) {
        return rc;
    }
    is_there = stat(at->dir, &st) == 0; /* who had the lock may have made it since */
    rc = choose_owner(at, is_there ? &st : NULL, err);
    if (!rc && is_there) {
        version = version_of(at->dir);
    }
    rc = rc ? rc : find_programs(at, version, err);
    if (rc) {
        return rc;
    }
    at->run_fd = open_private(&at->owner, at->run_dir, err);
    if (at->run_fd < 0) {
        return err ? err->rc : POOLRT_CONFIG;
    }
    if (!version) {
        return make_cluster(at, err);
    }
    at->dir_fd = open(at->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return at->dir_fd < 0 ? cannot(err, "use directory", at->dir) : POOLRT_OK;
}

poolrt_rc prt_pg_place_open(struct prt_pg_place *at, const struct prt_embedded_config *cfg,
                            struct prt_err *err)
{
    *at = (struct prt_pg_place){.lock_fd = -1, .dir_fd = -1, .run_fd = -1};
    if (!prt_str_copy(at->dir, sizeof at->dir, prt_str_of(cfg->dir)) ||
        !prt_str_copy(at->run_dir, sizeof at->run_dir, prt_str_of(cfg->run_dir))) {
        return prt_fail(err, POOLRT_CONFIG, "postgres.embedded: the path of dir is too long");
    }
    poolrt_rc rc = open_all(at, cfg, err);
    if (rc) {
        prt_pg_place_close(at);
    }
    return rc;
}

void prt_pg_place_close(struct prt_pg_place *at)
{
    int *const fds[] = {&at->dir_fd, &at->run_fd, &at->lock_fd};

    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (*fds[i] >= 0) {
            (void)close(*fds[i]);
            *fds[i] = -1;
        }
    }
}

/* ---- who is on it ---- */

static bool is_postgres(int proc_fd, const char *pid)
{
    char path[48], text[32] = "";
    int n = snprintf(path, sizeof path, "%.16s/comm", pid);
    int fd = n > 0 ? openat(proc_fd, path, O_RDONLY | O_CLOEXEC) : -1;

    if (fd < 0) {
        return false;
    }
    ssize_t got = read(fd, text, sizeof text - 1);
    (void)close(fd);
    return got > 0 && strncmp(text, "postgres\n", 9) == 0;
}

static bool works_in(int proc_fd, const char *pid, const struct stat *dir)
{
    char path[48];
    struct stat st;
    int n = snprintf(path, sizeof path, "%.16s/cwd", pid);

    return n > 0 && fstatat(proc_fd, path, &st, 0) == 0 && st.st_dev == dir->st_dev &&
           st.st_ino == dir->st_ino;
}

int prt_pg_place_users(const struct prt_pg_place *at, pid_t *pid)
{
    struct stat dir;
    int count = 0;

    *pid = 0;
    /* as the owner: looking at another user's process takes a right that root in a container lacks
     */
    enter_owner(&at->owner);
    DIR *proc = opendir("/proc");
    if (proc && fstat(at->dir_fd, &dir) == 0) {
        for (struct dirent *e = next_of(proc); e; e = next_of(proc)) {
            if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && is_postgres(dirfd(proc), e->d_name) &&
                works_in(dirfd(proc), e->d_name, &dir)) {
                *pid = (pid_t)strtol(e->d_name, NULL, 10);
                count++;
            }
        }
    }
    if (proc) {
        (void)closedir(proc);
    }
    leave_owner(&at->owner);
    return count;
}

void prt_pg_place_tidy(const struct prt_pg_place *at)
{
    char name[32];

    (void)unlinkat(at->dir_fd, "postmaster.pid", 0);
    (void)snprintf(name, sizeof name, ".s.PGSQL.%d", PRT_PG_PORT);
    (void)unlinkat(at->run_fd, name, 0);
    (void)snprintf(name, sizeof name, ".s.PGSQL.%d.lock", PRT_PG_PORT);
    (void)unlinkat(at->run_fd, name, 0);
}

/* ---- its last words ---- */

/* The last lines of text, joined by " | ", as far as they have room: an end is worth more than a
 * beginning. */
static void join_last(const char *text, size_t n, char *to, size_t cap)
{
    size_t from = n, lines = 0, width = 0, out = 0;

    while (from > 0 && width + 4 < cap) {
        lines += from < n && text[from - 1] == '\n';
        if (lines == 4) {
            break;
        }
        from--;
        width += text[from] == '\n' ? 3 : 1;
    }
    for (size_t i = from; i < n; i++) {
        if (text[i] != '\n') {
            to[out++] = text[i];
        } else if (i + 1 < n && out) {
            (void)memcpy(to + out, " | ", 3);
            out += 3;
        }
    }
    to[out] = '\0';
}

void prt_pg_place_tail(const struct prt_pg_place *at, int dir_fd, const char *name, char *to,
                       size_t cap)
{
    char text[1024];
    struct stat st;
    ssize_t got = -1;

    to[0] = '\0';
    enter_owner(&at->owner);
    int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    leave_owner(&at->owner);
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        off_t from = st.st_size > (off_t)sizeof text ? st.st_size - (off_t)sizeof text : 0;
        got = pread(fd, text, sizeof text, from);
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    if (got > 0 && cap > 4) {
        join_last(text, (size_t)got, to, cap);
    }
}
