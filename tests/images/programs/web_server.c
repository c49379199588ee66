/* Stands in for nginx and httpd in the test images: what a test can see of them, and no more.
 *
 * Installed as `nginx` it shows the process title and the pid file of nginx's master process, installed as anything else
 * it prints that it serves. It answers every connection on 0.0.0.0 and [::] with status 200 and one page. A number among
 * its arguments is the port, else 80. */
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TITLE_SUFFIX ": master process"

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void end(int signal_number) {
    (void)signal_number;
    _exit(0);
}

/* The title is argv[0]: the program starts itself once more with a better one. */
static void take_title(char **argv, const char *name) {
    static char title[128];
    if (strstr(argv[0], TITLE_SUFFIX))
        return;
    snprintf(title, sizeof title, "%s" TITLE_SUFFIX " %s", name, argv[0]);
    argv[0] = title;
    execv("/proc/self/exe", argv);
    fail("exec /proc/self/exe");
}

static void write_pid_file(void) {
    FILE *file = fopen("/var/run/nginx.pid", "w");
    if (!file || fprintf(file, "%d\n", getpid()) < 0 || fclose(file) != 0)
        fail("/var/run/nginx.pid");
}

static int listen_on(int port) {
    int one = 1, zero = 0;
    struct sockaddr_in6 both = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any};
    struct sockaddr_in only_v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener >= 0) {
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
        if (bind(listener, (struct sockaddr *)&both, sizeof both) == 0 && listen(listener, 64) == 0)
            return listener;
        close(listener);
    }
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&only_v4, sizeof only_v4) != 0 || listen(listener, 64) != 0)
        fail("listen");
    return listener;
}

static void answer(int connection) {
    static const char page[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n"
                               "Connection: close\r\n\r\nIt works\n";
    struct timeval patience = {.tv_sec = 10};
    char request[4096];
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (read(connection, request, sizeof request) > 0)
        (void)!write(connection, page, sizeof page - 1);
    close(connection);
}

int main(int argc, char **argv) {
    const char *program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    int is_nginx = strncmp(program, "nginx", 5) == 0 || strstr(argv[0], "nginx" TITLE_SUFFIX) != NULL;
    int port = 80, listener, connection;
    for (int i = 1; i < argc; i++)
        if (atoi(argv[i]) > 0)
            port = atoi(argv[i]);
    if (is_nginx)
        take_title(argv, "nginx");
    /* PID 1 of a container has no default actions. */
    signal(SIGTERM, end);
    signal(SIGINT, end);
    signal(SIGQUIT, end);
    signal(SIGPIPE, SIG_IGN);
    listener = listen_on(port);
    if (is_nginx) {
        write_pid_file();
    } else {
        printf("httpd: serving on port %d\n", port);
        fflush(stdout);
    }
    while ((connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0)
        answer(connection);
    fail("accept");
}
