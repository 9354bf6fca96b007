/* notify.c - one datagram to the service manager.
 * Owns: nothing.   Threads: any.
 * Idea: the protocol is a line of text to a socket whose name is in NOTIFY_SOCKET; a library for
 * that would be a dependency for ten lines. */
#include "daemon.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void prt_notify(const char *state)
{
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): nobody changes the environment */
    const char *name = getenv("NOTIFY_SOCKET");
    size_t n = name ? strlen(name) : 0;
    struct sockaddr_un to = {.sun_family = AF_UNIX};

    if (n < 2 || n >= sizeof to.sun_path || (*name != '/' && *name != '@')) {
        return;
    }
    (void)memcpy(to.sun_path, name, n);
    if (*name == '@') {
        to.sun_path[0] = '\0'; /* abstract: no file */
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return;
    }
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
    /* a manager that does not listen any more is no reason to do anything else */
    (void)sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&to, size);
    (void)close(fd);
}
