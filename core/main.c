/* main.c - the command line.
 * Owns: nothing.   Threads: the one that starts the program.
 * Idea: exit 0 when all was well, 1 when what was asked for was refused, 2 when it was not
 * understood. */
#include "daemon.h"
#include "luahost/luahost.h"

#include <ctype.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_REFUSED 1
#define EXIT_USAGE 2
#define TEXT_MAX (1u << 20)

static const char usage[] =
    "usage: poolrt CONFIG          serve the configuration in the foreground\n"
    "       poolrt check FILE      check a configuration or a policy, start nothing\n"
    "       poolrt --version\n"
    "       poolrt --help\n"
    "\n"
    "signals: HUP reads configuration and policies again; TERM and INT stop when transactions\n"
    "have ended, a second one at once. Saved files are noticed without a signal.\n";

static int bad_usage(const char *what, const char *word)
{
    (void)fprintf(stderr, "poolrt: %s%s\n%s", what, word, usage);
    return EXIT_USAGE;
}

static int refused(const struct prt_err *err)
{
    (void)fprintf(stderr, "poolrt: %s\n", err->text);
    return EXIT_REFUSED;
}

/* ---- check ---- */

/* Does the line say `api = 1`, which policies must and configurations never do? */
static bool is_api_line(const char *at, const char *end)
{
    while (at < end && (isspace((unsigned char)*at) || *at == '{' || *at == ',')) {
        at++;
    }
    const char *mark = at;
    while ((at = memmem(mark, (size_t)(end - mark), "api", 3))) {
        bool is_word = at == mark || !(isalnum((unsigned char)at[-1]) || at[-1] == '_');
        mark = at + 3;
        while (mark < end && isspace((unsigned char)*mark)) {
            mark++;
        }
        if (is_word && mark + 1 < end && *mark == '=' && mark[1] != '=') {
            return true;
        }
    }
    return false;
}

/* A policy and a configuration are both a Lua chunk that returns a table. Looked for in the text,
 * so that a file with a syntax error is told apart as well. */
static bool looks_like_policy(const char *file)
{
    FILE *in = fopen(file, "re");
    char line[1024];
    size_t seen = 0;
    bool found = false;

    while (in && !found && seen < TEXT_MAX && fgets(line, sizeof line, in)) {
        const char *comment = strstr(line, "--");
        size_t n = strlen(line);
        seen += n;
        found = is_api_line(line, comment ? comment : line + n);
    }
    if (in) {
        (void)fclose(in);
    }
    return found;
}

static poolrt_rc check_policies(const struct prt_config *cfg, struct prt_err *err)
{
    struct prt_policies *policies = NULL;
    struct prt_policy_plan *plan = NULL;
    poolrt_rc rc = prt_policies_new(&policies, 1, NULL, NULL, err);

    rc = rc ? rc : prt_policies_prepare(policies, cfg, &plan, err);
    if (!rc) {
        prt_policies_abandon(policies, plan);
    }
    prt_policies_free(policies);
    return rc;
}

static poolrt_rc check_config(const char *file, struct prt_err *err)
{
    struct prt_config *cfg = NULL;
    poolrt_rc rc = prt_config_load(file, &cfg, err);

    if (rc) {
        return rc;
    }
    rc = check_policies(cfg, err);
    prt_config_unref(cfg);
    return rc;
}

/* The smallest configuration that uses the policy: one pool, its own folder, no settings. */
static poolrt_rc check_policy(const char *file, struct prt_err *err)
{
    char full[PATH_MAX], dir[PATH_MAX], name[PATH_MAX];
    static char pool_name[] = "check", settings[] = "return {}", where[] = "its settings";

    if (!realpath(file, full) || !prt_str_copy(dir, sizeof dir, prt_str_of(full)) ||
        !prt_str_copy(name, sizeof name, prt_str_of(strrchr(full, '/') + 1))) {
        return prt_fail(err, POOLRT_CONFIG, "%s cannot be read", file);
    }
    size_t n = strlen(name);
    if (n < 5 || strcmp(name + n - 4, ".lua") != 0) {
        return prt_fail(err, POOLRT_CONFIG, "%s: a policy's file name must end in .lua", file);
    }
    name[n - 4] = '\0';
    *strrchr(dir, '/') = '\0';
    char *path[] = {dir};
    struct prt_policy_config policy = {.name = name, .config = settings, .where = where};
    struct prt_pool_config pool = {.name = pool_name, .n_policies = 1, .policies = &policy};
    struct prt_config cfg = {.path = full,
                             .dir = path[0],
                             .n_policy_path = 1,
                             .policy_path = path,
                             .n_pools = 1,
                             .pools = &pool};
    return check_policies(&cfg, err);
}

static int check(const char *file)
{
    struct prt_err err = {0};
    poolrt_rc rc = looks_like_policy(file) ? check_policy(file, &err) : check_config(file, &err);

    if (rc) {
        return refused(&err);
    }
    printf("%s: ok\n", file);
    return 0;
}

/* ---- the rest ---- */

static int serve(const char *file)
{
    struct prt_err err = {0};

    return prt_daemon_run(file, &err) ? refused(&err) : 0;
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";

    /* before any other use of OpenSSL: a libpq call that hangs may outlive main() */
    (void)OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, NULL);
    if (argc < 2) {
        return bad_usage("a configuration file is needed", "");
    }
    if (strcmp(word, "check") == 0) {
        return argc == 3 ? check(argv[2]) : bad_usage("check needs one file", "");
    }
    if (argc > 2) {
        return bad_usage("too many arguments, from ", argv[2]);
    }
    if (strcmp(word, "--version") == 0) {
        printf("poolrt %s\n", PRT_VERSION);
        return 0;
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        printf("%s", usage);
        return 0;
    }
    if (*word == '-') {
        return bad_usage("unknown option ", word);
    }
    return serve(word);
}
