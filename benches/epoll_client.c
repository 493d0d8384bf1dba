/* The floor: an epoll client that keeps N streaming requests in flight and only counts bytes.
 * usage: epoll_client PORT CONNECTIONS SECONDS PATH BODY
 * prints: requests reads bytes cpu_us
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    int port = atoi(argv[1]), connections = atoi(argv[2]);
    double seconds = atof(argv[3]);
    static char request[1 << 16], buffer[1 << 18];
    int size = snprintf(request, sizeof request,
                        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\n\r\n%s",
                        argv[4], port, strlen(argv[5]), argv[5]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    int poll_fd = epoll_create1(0), one = 1;
    for (int i = 0; i < connections; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address)) { perror("connect"); return 1; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
        if (send(fd, request, size, 0) != size) return 1;
    }
    struct epoll_event ready[1024];
    long requests = 0, reads = 0, bytes = 0;
    double end = now_s() + seconds;
    while (now_s() < end) {
        int count = epoll_wait(poll_fd, ready, 1024, 100);
        for (int i = 0; i < count; i++) {
            ssize_t n = recv(ready[i].data.fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (n <= 0) { if (n < 0 && errno == EAGAIN) continue; return 1; }
            reads++;
            bytes += n;
            if (n >= 5 && !memcmp(buffer + n - 5, "0\r\n\r\n", 5)) {
                requests++;
                if (send(ready[i].data.fd, request, size, 0) != size) return 1;
            }
        }
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("%ld %ld %ld %.0f\n", requests, reads, bytes,
           (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 + used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    return 0;
}
