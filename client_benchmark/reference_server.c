/* A chat-completions server with known timing, for measuring load generators.
 *
 * One thread, epoll, one timer heap. Each chunk is one send(); its time is taken just before.
 * The arrival of a request is the kernel's receive timestamp of its last packet, so that the
 * server's own lag in reading is part of what a client is expected to see.
 *
 * usage: reference_server TTFT_MS ITL_MS [IN_STEP]
 *   IN_STEP 1: chunks are due at multiples of ITL_MS on one clock for all streams, the first at
 *   the first multiple TTFT_MS or more after arrival: every stream speaks at the same moment.
 * It listens on a free port of 127.0.0.1 and prints it. It ends when stdin does.
 *   GET /log    one line a request: arrival, then the time of every content chunk; ns, monotonic
 *   GET /reset  forget the log, print nothing
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

typedef struct Request { int64_t arrival; int64_t *written; int count; } Request;
typedef struct Connection {
    int fd, generation;
    char *in; size_t used, room;
    char *out; size_t out_used, out_sent, out_room;
    int64_t arrived;
    Request *request; int tokens, next, prompt, active, completion;
} Connection;
typedef struct Due { int64_t at; Connection *connection; int generation; } Due;

static Due *heap; static size_t heap_used, heap_room;
static Request **requests; static size_t requests_used, requests_room;
static int epoll_fd, timer_fd;
static int64_t ttft_ns, itl_ns; static int in_step;

static int64_t clock_ns(clockid_t id) {
    struct timespec t; clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
static void *grow(void *old, size_t size) {
    void *fresh = realloc(old, size);
    if (!fresh) { perror("realloc"); exit(1); }
    return fresh;
}
static void push(Due due) {
    if (heap_used == heap_room) heap = grow(heap, (heap_room = heap_room * 2 + 64) * sizeof *heap);
    size_t i = heap_used++;
    while (i && heap[(i - 1) / 2].at > due.at) { heap[i] = heap[(i - 1) / 2]; i = (i - 1) / 2; }
    heap[i] = due;
}
static Due pop(void) {
    Due top = heap[0], last = heap[--heap_used];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= heap_used) break;
        if (child + 1 < heap_used && heap[child + 1].at < heap[child].at) child++;
        if (heap[child].at >= last.at) break;
        heap[i] = heap[child]; i = child;
    }
    heap[i] = last;
    return top;
}
static void watch(Connection *c, int writing) {
    struct epoll_event event = {EPOLLIN | (writing ? EPOLLOUT : 0), {.ptr = c}};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}
static void close_connection(Connection *c) {
    if (c->fd < 0) return;
    close(c->fd); c->fd = -1; c->generation++; c->active = 0; c->used = 0;
    free(c->in); free(c->out); c->in = c->out = NULL;
    c->room = c->out_room = c->out_used = c->out_sent = 0;
}
static void transmit(Connection *c, const char *data, size_t length) {
    if (c->fd < 0) return;
    if (c->out_used == c->out_sent) {
        ssize_t sent = send(c->fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN) { close_connection(c); return; }
        if (sent < 0) sent = 0;
        if ((size_t)sent == length) return;
        data += sent; length -= sent; c->out_used = c->out_sent = 0; watch(c, 1);
    }
    if (c->out_used + length > c->out_room)
        c->out = grow(c->out, c->out_room = (c->out_used + length) * 2);
    memcpy(c->out + c->out_used, data, length); c->out_used += length;
}
static void flush_out(Connection *c) {
    ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_used - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) { if (errno != EAGAIN) close_connection(c); return; }
    c->out_sent += sent;
    if (c->out_sent == c->out_used) { c->out_used = c->out_sent = 0; watch(c, 0); }
}
static void event(Connection *c, const char *data) {
    char buffer[1024];
    int size = (int)strlen(data) + 8;
    int n = snprintf(buffer, sizeof buffer, "%x\r\ndata: %s\n\n\r\n", size, data);
    transmit(c, buffer, n);
}
static const char *HEAD = "{\"id\":\"chatcmpl-7d3f1b1c\",\"object\":\"chat.completion.chunk\",\"created\":1764028800,\"model\":\"m\",";
static void speak(Connection *c) {
    char data[900];
    if (c->next == 0) {
        const char *head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        transmit(c, head, strlen(head));
        if (!c->completion) snprintf(data, sizeof data, "%s\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}", HEAD);
        if (!c->completion) event(c, data);
    }
    snprintf(data, sizeof data, c->completion ? "%s\"choices\":[{\"index\":0,\"text\":\"w%d \",\"finish_reason\":null}]}"
             : "%s\"choices\":[{\"index\":0,\"delta\":{\"content\":\"w%d \"},\"finish_reason\":null}]}", HEAD, c->next);
    c->request->written[c->next++] = now_ns();
    c->request->count = c->next;
    event(c, data);
    if (c->next < c->tokens) return;
    snprintf(data, sizeof data, c->completion ? "%s\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}"
             : "%s\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}", HEAD);
    event(c, data);
    snprintf(data, sizeof data, "%s\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}",
             HEAD, c->prompt, c->tokens, c->prompt + c->tokens);
    event(c, data);
    const char *end = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    transmit(c, end, strlen(end));
    c->active = 0;
}
static int64_t aligned(int64_t at) { return in_step && itl_ns ? (at + itl_ns - 1) / itl_ns * itl_ns : at; }
static void reply(Connection *c, const char *type, const char *body, size_t length) {
    char head[200];
    int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", type, length);
    transmit(c, head, n); transmit(c, body, length);
}
static int number(const char *body, const char *name, int otherwise) {
    const char *found = strstr(body, name);
    if (!found) return otherwise;
    found += strlen(name);
    while (*found == '"' || *found == ':' || *found == ' ') found++;
    return atoi(found) > 0 ? atoi(found) : otherwise;
}
static void send_log(Connection *c) {
    size_t size = 1;
    for (size_t i = 0; i < requests_used; i++) size += 22 * (requests[i]->count + 2);
    char *text = grow(NULL, size), *at = text;
    for (size_t i = 0; i < requests_used; i++) {
        at += sprintf(at, "%ld", requests[i]->arrival);
        for (int k = 0; k < requests[i]->count; k++) at += sprintf(at, " %ld", requests[i]->written[k]);
        *at++ = '\n';
    }
    reply(c, "text/plain", text, at - text);
    free(text);
}
static void handle(Connection *c, const char *body) {
    if (!strncmp(c->in, "GET /log", 8)) { send_log(c); return; }
    if (!strncmp(c->in, "GET /reset", 10)) {
        for (size_t i = 0; i < requests_used; i++) { free(requests[i]->written); free(requests[i]); }
        requests_used = 0; reply(c, "text/plain", "", 0); return;
    }
    if (strncmp(c->in, "POST", 4)) {
        const char *models = "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1,\"owned_by\":\"reference\"}]}";
        reply(c, "application/json", models, strlen(models)); return;
    }
    int tokens = number(body, "\"max_completion_tokens\"", number(body, "\"max_tokens\"", 16));
    int prompt = 1;
    for (const char *p = body; *p; p++) prompt += *p == ' ';
    if (!strstr(body, "\"stream\":true") && !strstr(body, "\"stream\": true")) {
        char text[600];
        snprintf(text, sizeof text, "{\"id\":\"x\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":"
                 "{\"role\":\"assistant\",\"content\":\"w1\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":1,\"total_tokens\":%d}}", prompt, prompt + 1);
        reply(c, "application/json", text, strlen(text)); return;
    }
    Request *r = calloc(1, sizeof *r);
    if (!r) exit(1);
    r->arrival = c->arrived; r->written = grow(NULL, sizeof(int64_t) * tokens);
    if (requests_used == requests_room)
        requests = grow(requests, (requests_room = requests_room * 2 + 256) * sizeof *requests);
    requests[requests_used++] = r;
    c->request = r; c->tokens = tokens; c->next = 0; c->prompt = prompt; c->active = 1;
    c->completion = !strstr(c->in, "/chat/");
    push((Due){aligned(c->arrived + ttft_ns), c, c->generation});
}
static void receive(Connection *c) {
    for (;;) {
        if (c->room - c->used < 65536) c->in = grow(c->in, c->room = c->room * 2 + 131072);
        struct iovec part = {c->in + c->used, c->room - c->used - 1};
        char control[128];
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(c->fd, &message, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) { close_connection(c); return; }
        if (got < 0) break;
        c->arrived = now_ns();
        for (struct cmsghdr *m = CMSG_FIRSTHDR(&message); m; m = CMSG_NXTHDR(&message, m))
            if (m->cmsg_level == SOL_SOCKET && m->cmsg_type == SCM_TIMESTAMPNS) {
                struct timespec t; memcpy(&t, CMSG_DATA(m), sizeof t);
                c->arrived += (int64_t)t.tv_sec * 1000000000 + t.tv_nsec - clock_ns(CLOCK_REALTIME);
            }
        c->used += got;
    }
    c->in[c->used] = 0;
    while (c->fd >= 0 && c->used) {
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return;
        size_t head = end - c->in + 4, length = 0;
        char *field = strcasestr(c->in, "\r\ncontent-length:");
        if (field && field < end) length = strtoul(field + 17, NULL, 10);
        if (c->used < head + length) return;
        char kept = c->in[head + length]; c->in[head + length] = 0;
        handle(c, c->in + head);
        if (c->fd < 0) return;
        c->in[head + length] = kept;
        memmove(c->in, c->in + head + length, c->used - head - length);
        c->used -= head + length; c->in[c->used] = 0;
    }
}
int main(int count, char **arguments) {
    if (count < 3) { fprintf(stderr, "usage: %s TTFT_MS ITL_MS [IN_STEP]\n", arguments[0]); return 2; }
    ttft_ns = (int64_t)(atof(arguments[1]) * 1e6); itl_ns = (int64_t)(atof(arguments[2]) * 1e6);
    in_step = count > 3 && atoi(arguments[3]);
    prctl(PR_SET_TIMERSLACK, 1);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (void *)&address, size) || listen(listener, 1024)) { perror("listen"); return 1; }
    getsockname(listener, (void *)&address, &size);
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    static Connection listening, timer, input;
    struct epoll_event e = {EPOLLIN, {.ptr = &listening}};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    e.data.ptr = &timer; epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
    e.data.ptr = &input; epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &e);
    printf("%d\n", ntohs(address.sin_port)); fflush(stdout);
    for (;;) {
        int64_t now = now_ns();
        for (int written = 0; heap_used && heap[0].at <= now && written < 64; written++) {
            Due due = pop();
            Connection *c = due.connection;
            if (c->generation != due.generation || !c->active) continue;
            speak(c);
            if (c->fd >= 0 && c->active) push((Due){aligned(due.at + itl_ns), c, due.generation});
        }
        int wait = -1;
        if (heap_used) {
            int64_t left = heap[0].at - now_ns();
            if (left <= 0) wait = 0;
            else {
                struct itimerspec t = {.it_value = {left / 1000000000, left % 1000000000}};
                timerfd_settime(timer_fd, 0, &t, NULL);
            }
        }
        struct epoll_event events[256];
        int found = epoll_wait(epoll_fd, events, 256, wait);
        for (int i = 0; i < found; i++) {
            Connection *c = events[i].data.ptr;
            if (c == &listening) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
                    Connection *fresh = calloc(1, sizeof *fresh);
                    fresh->fd = fd;
                    struct epoll_event in = {EPOLLIN, {.ptr = fresh}};
                    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &in);
                }
            } else if (c == &timer) {
                uint64_t ticks; if (read(timer_fd, &ticks, sizeof ticks) < 0) continue;
            } else if (c == &input) {
                char ignored[64]; if (read(0, ignored, sizeof ignored) <= 0) return 0;
            } else {
                if (events[i].events & EPOLLOUT && c->fd >= 0) flush_out(c);
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && c->fd >= 0) receive(c);
            }
        }
    }
}
