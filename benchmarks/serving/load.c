// An HTTP/1.1 load generator that does not hide stalls: one thread, one core, no dependency but Linux.
//
// Closed loop (no --rate): each of N connections sends its next request as soon as the last one is answered.
// Open loop (--rate R): requests fall due on a schedule that does not wait for answers, and each latency counts from
// the moment at which the request was due. A request that finds no free connection waits here, and its latency runs on.
// How late the generator itself was (the time from due to sent or queued) is reported apart. Where it may, it runs in
// the kernel's real-time class with its memory locked: nothing else on its core then holds up a request that is due.
//
// The requests come rendered in a file, so that methods, headers and bodies are data: for each class a line
// `NAME SHARE random|once COUNT\n`, then COUNT times a length (uint32, little endian) and that many bytes. A class is
// picked by its share; `random` requests are drawn again and again, `once` requests are sent in order, never twice.
//
// One JSON document goes to stdout; `started NANOSECONDS` (CLOCK_MONOTONIC, begin of the measured time) to stderr.
//
// cc -O2 -Wall -Wextra -o load load.c -lm

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000ull
#define SECOND 1000000000ull
#define NEVER UINT64_MAX
#define TICK (5 * MS)          // how often time-outs and reconnections are looked at
#define EVENTS 16              // handled between two looks at the schedule: few, so that arrivals are not late
#define MAX_CLASSES 16
#define STATUSES 600
#define BUCKETS 4608           // 128 to an octave up to 2^42 ns: a bucket's middle is within 0.4 % of what it holds

typedef struct {
  uint64_t count, max;
  double sum;
  uint32_t bucket[BUCKETS];
} Histogram;

typedef struct {
  char name[32];
  double share;
  bool once;
  uint32_t first, count, next;
  Histogram *by_status[STATUSES];
} Class;

typedef struct {
  const char *bytes;
  uint32_t length;
  uint32_t class;
} Request;

typedef struct {
  uint32_t request;
  uint64_t due;
} Waiting;

enum { CLOSED, CUT, TIMEOUT, PROTOCOL, UNSENT, ERRORS };
static const char *const error_names[ERRORS] = {"closed", "cut", "timeout", "protocol", "unsent"};

typedef struct {
  Histogram latency;  // of answers of any status
  uint32_t statuses[STATUSES], errors;
} Window;

typedef enum { DOWN, CONNECTING, IDLE, BUSY } State;

typedef struct {
  int fd;
  State state;
  bool listed;         // stands in the ring of idle connections
  uint64_t retry;      // DOWN: when to connect again
  Waiting job;         // BUSY
  uint32_t sent;
  char *in;
  size_t have, room;
} Connection;

// What was asked for.
static struct sockaddr_in address = {.sin_family = AF_INET};
static uint32_t connections = 16;
static double seconds = 10, warmup = 2, rate = 0, timeout_s = 10, deadline_ms = 0, window_ms = 0;
static bool poisson = true, realtime = false;
static uint64_t seed = 0;
static FILE *bodies = NULL;

// What is going on.
static Class classes[MAX_CLASSES];
static uint32_t class_count;
static Request *requests;
static Connection *pool;
static uint32_t *ring, ring_head, ring_length;  // idle connections, first in, first out
static Waiting *waiting;
static size_t waiting_head, waiting_tail, waiting_room;
static int poller, timer;
static uint64_t begin, end, timeout_ns;  // of the measured time
static bool sending = true;
static uint32_t busy;

// What was seen.
static Histogram lateness, good_latency;
static uint64_t scheduled, queued, answered_inside, good_inside, reconnects, refused, with_retry_after;
static uint64_t errors[ERRORS];
static Window **windows;
static size_t window_count;

static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("load: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  exit(1);
}

static void *checked(void *memory) {
  if (!memory) fail("out of memory");
  return memory;
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static double uniform(void) {  // splitmix64, in (0, 1]
  uint64_t z = (seed += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return (double)(((z ^ (z >> 31)) >> 11) + 1) / 9007199254740992.0;
}

// ---------------------------------------------------------------------------------------------------- histograms

static void add(Histogram *h, uint64_t ns) {
  h->count++;
  h->sum += (double)ns;
  if (ns > h->max) h->max = ns;
  if (ns >= 1ull << 42) ns = (1ull << 42) - 1;
  int shift = ns < 256 ? 0 : 56 - __builtin_clzll(ns);
  h->bucket[((uint32_t)shift << 7) + (uint32_t)(ns >> shift)]++;
}

static double percentile_ms(const Histogram *h, double q) {
  if (!h->count) return 0;
  uint64_t rank = (uint64_t)ceil(q * (double)h->count), seen = 0;
  if (!rank) rank = 1;
  for (uint32_t i = 0; i < BUCKETS; i++) {
    if ((seen += h->bucket[i]) < rank) continue;
    uint32_t shift = i < 256 ? 0 : (i >> 7) - 1;
    double middle = (double)((uint64_t)(i - (shift << 7)) << shift) + (double)((1ull << shift) - 1) / 2;
    return fmin(middle, (double)h->max) / MS;
  }
  return (double)h->max / MS;
}

static void print_histogram(const Histogram *h) {
  printf("{\"count\": %llu, \"mean\": %.6f, \"p50\": %.6f, \"p90\": %.6f, \"p99\": %.6f, \"p99_9\": %.6f, \"max\": %.6f}",
         (unsigned long long)h->count, h->count ? h->sum / (double)h->count / MS : 0, percentile_ms(h, 0.5),
         percentile_ms(h, 0.9), percentile_ms(h, 0.99), percentile_ms(h, 0.999), (double)h->max / MS);
}

// ---------------------------------------------------------------------------------------------------- what is sent

static void read_requests(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) fail("%s: %s", path, strerror(errno));
  char line[128], order[16];
  uint32_t total = 0;
  double shares = 0;
  while (fgets(line, sizeof line, file)) {
    if (class_count == MAX_CLASSES) fail("%s: more than %d classes", path, MAX_CLASSES);
    Class *c = &classes[class_count];
    if (sscanf(line, "%31s %lf %15s %u", c->name, &c->share, order, &c->count) != 4 || !c->count || !(c->share >= 0))
      fail("%s: bad class line '%s'", path, line);
    c->once = !strcmp(order, "once");
    c->first = total;
    shares += c->share;
    requests = checked(realloc(requests, sizeof *requests * (total + c->count)));
    for (uint32_t i = 0; i < c->count; i++) {
      uint32_t length;
      if (fread(&length, sizeof length, 1, file) != 1) fail("%s: ends within class %s", path, c->name);
      char *bytes = checked(malloc(length + 1));
      if (fread(bytes, 1, length, file) != length) fail("%s: ends within class %s", path, c->name);
      requests[total++] = (Request){bytes, length, class_count};
    }
    class_count++;
  }
  fclose(file);
  if (!(shares > 0)) fail("%s: no class has a share", path);
  for (uint32_t i = 0; i < class_count; i++) classes[i].share /= shares;
}

static uint32_t pick(void) {
  double u = uniform();
  Class *c = classes;
  while (u > c->share && c < classes + class_count - 1) u -= c++->share;
  if (!c->once) return c->first + (uint32_t)((uniform() - 0x1p-53) * c->count) % c->count;
  if (c->next == c->count) fail("class %s has only %u requests, each to be sent once", c->name, c->count);
  return c->first + c->next++;
}

// ---------------------------------------------------------------------------------------------------- what came of it

static Window *window_of(uint64_t due) {
  if (!window_ms || due < begin) return NULL;
  size_t i = (size_t)((double)(due - begin) / (window_ms * MS));
  if (i >= window_count) return NULL;
  if (!windows[i]) windows[i] = checked(calloc(1, sizeof **windows));
  return windows[i];
}

static void answered(Connection *c, int status, const char *body, size_t length, bool retry_after) {
  uint64_t done = now_ns(), latency = done - c->job.due;
  bool good = status == 200 && (!deadline_ms || (double)latency <= deadline_ms * MS);
  bool inside = done >= begin && done < end;
  answered_inside += inside;
  good_inside += inside && good;
  if (rate ? c->job.due < begin || c->job.due >= end : !inside) return;
  Histogram **h = &classes[requests[c->job.request].class].by_status[status];
  if (!*h) *h = checked(calloc(1, sizeof **h));
  add(*h, latency);
  if (status == 200) add(&good_latency, latency);
  with_retry_after += retry_after;
  Window *w = window_of(c->job.due);
  if (w) add(&w->latency, latency), w->statuses[status]++;
  if (bodies) {
    uint32_t head[3] = {c->job.request, (uint32_t)status, (uint32_t)length};
    double times[2] = {(double)(int64_t)(c->job.due - begin) / SECOND, (double)latency / MS};
    fwrite(head, sizeof head, 1, bodies);
    fwrite(times, sizeof times, 1, bodies);
    fwrite(body, 1, length, bodies);
  }
}

static void lost(uint64_t due, int error) {
  if (due < begin || due >= end) return;
  errors[error]++;
  Window *w = window_of(due);
  if (w) w->errors++;
}

// ---------------------------------------------------------------------------------------------------- connections

static void watch(Connection *c, uint32_t events, int operation) {
  struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(c - pool)};
  if (epoll_ctl(poller, operation, c->fd, &event)) fail("epoll: %s", strerror(errno));
}

static void drop(Connection *c, uint64_t retry) {
  if (c->state == BUSY) busy--;
  close(c->fd);
  c->state = DOWN;
  c->retry = retry;
  c->have = 0;
}

// The connection failed its request.
static void abandon(Connection *c, int error) {
  lost(c->job.due, error);
  drop(c, 0);
}

static void send_more(Connection *c) {
  const Request *r = &requests[c->job.request];
  while (c->sent < r->length) {
    ssize_t n = send(c->fd, r->bytes + c->sent, r->length - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) {
      watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
      return;
    }
    if (n < 0) {
      abandon(c, CLOSED);
      return;
    }
    c->sent += (uint32_t)n;
  }
}

static void start(Connection *c, Waiting job) {
  c->state = BUSY;
  c->job = job;
  c->sent = 0;
  busy++;
  send_more(c);
}

// A connection is free: it takes the request that waits longest, or stands by.
static void release(Connection *c) {
  uint64_t now = now_ns();
  c->state = IDLE;
  if (waiting_head < waiting_tail) {
    start(c, waiting[waiting_head++]);
  } else if (!rate && now < end) {
    start(c, (Waiting){pick(), now});
  } else if (!c->listed) {
    c->listed = true;
    ring[(ring_head + ring_length++) % connections] = (uint32_t)(c - pool);
  }
}

static Connection *idle_connection(void) {
  while (ring_length) {
    Connection *c = &pool[ring[ring_head]];
    ring_head = (ring_head + 1) % connections;
    ring_length--;
    c->listed = false;
    if (c->state == IDLE) return c;
  }
  return NULL;
}

static void open_connection(Connection *c, bool wait) {
  int yes = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (wait ? 0 : SOCK_NONBLOCK), 0);
  if (c->fd < 0) fail("socket: %s", strerror(errno));
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  int failed = connect(c->fd, (struct sockaddr *)&address, sizeof address);
  if (failed && wait) fail("cannot connect to port %d: %s", ntohs(address.sin_port), strerror(errno));
  if (failed && errno != EINPROGRESS) {
    refused++;
    drop(c, now_ns() + 10 * MS);
    return;
  }
  if (wait) fcntl(c->fd, F_SETFL, O_NONBLOCK);
  watch(c, failed ? EPOLLOUT : EPOLLIN, EPOLL_CTL_ADD);
  c->state = CONNECTING;
  if (!failed && !wait) release(c);
}

static void connected(Connection *c) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) {
    refused++;
    drop(c, now_ns() + 10 * MS);
    return;
  }
  watch(c, EPOLLIN, EPOLL_CTL_MOD);
  release(c);
}

// ---------------------------------------------------------------------------------------------------- answers

// The value of a header among the lines that end at `stop`, or NULL.
static const char *header(const char *lines, const char *stop, const char *name) {
  size_t length = strlen(name);
  for (const char *line = lines; line < stop; line++) {
    if (!strncasecmp(line, name, length) && line[length] == ':') {
      line += length + 1;
      while (*line == ' ') line++;
      return line;
    }
    line = memchr(line, '\n', (size_t)(stop - line));
    if (!line) break;
  }
  return NULL;
}

// Joins the chunks of a body in place. Returns its length, -1 if more must come, -2 if it is malformed.
static ssize_t dechunk(char *body, size_t have, bool apply) {
  size_t at = 0, out = 0;
  for (;;) {
    char *stop = NULL, *line_end = memmem(body + at, have - at, "\r\n", 2);
    if (!line_end) return -1;
    unsigned long size = strtoul(body + at, &stop, 16);
    if (stop == body + at) return -2;
    size_t data = (size_t)(line_end - body) + 2;
    if (data + size + 2 > have) return -1;
    if (apply) memmove(body + out, body + data, size);
    out += size;
    at = data + size + 2;
    if (!size) return (ssize_t)out;
  }
}

// Looks at what has come. Closed says that nothing more will.
static void take_answer(Connection *c, bool closed) {
  c->in[c->have] = 0;
  char *stop = memmem(c->in, c->have, "\r\n\r\n", 4);
  if (!stop) {
    if (closed) abandon(c, c->have ? CUT : CLOSED);
    return;
  }
  int status = c->have > 12 && !memcmp(c->in, "HTTP/1.", 7) ? atoi(c->in + 9) : 0;
  if (status < 200 || status >= STATUSES) {
    abandon(c, PROTOCOL);
    return;
  }
  char *body = stop + 4;
  size_t have = c->have - (size_t)(body - c->in), length = 0;
  const char *value = header(c->in, stop + 2, "content-length"), *close_it = header(c->in, stop + 2, "connection");
  const char *coding = header(c->in, stop + 2, "transfer-encoding");
  bool close_after = (close_it && !strncasecmp(close_it, "close", 5)) || c->in[7] == '0';
  bool excess = false;
  if (coding) {
    ssize_t found = dechunk(body, have, false);
    if (found == -2) abandon(c, PROTOCOL);
    if (found == -1 && closed) abandon(c, CUT);
    if (found < 0) return;
    length = (size_t)dechunk(body, have, true);
  } else if (value) {
    length = strtoul(value, NULL, 10);
    if (have < length) {
      if (closed) abandon(c, CUT);
      return;
    }
    excess = have > length;  // bytes that belong to no answer: the two sides no longer agree on where one ends
  } else if (status != 204 && status != 304) {
    if (!closed) return;  // the body ends where the connection does
    length = have;
  }
  if (excess) {
    abandon(c, PROTOCOL);
    return;
  }
  busy--;
  answered(c, status, body, length, header(c->in, stop + 2, "retry-after") != NULL);
  c->have = 0;
  c->state = IDLE;
  if (closed || close_after)
    drop(c, 0);
  else
    release(c);
}

static void receive(Connection *c) {
  if (c->room - c->have < 4096) c->in = checked(realloc(c->in, (c->room = 2 * c->room + 8192) + 1));
  ssize_t n = recv(c->fd, c->in + c->have, c->room - c->have, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (c->state == BUSY) {
    if (n > 0) c->have += (size_t)n;
    take_answer(c, n <= 0);
    return;
  }
  if (n > 0) errors[PROTOCOL]++;  // bytes that nobody asked for
  drop(c, 0);
}

// ---------------------------------------------------------------------------------------------------- the loop

static void arrive(uint64_t due) {
  bool inside = due >= begin && due < end;
  Waiting job = {pick(), due};
  Connection *c = idle_connection();
  if (inside) {
    uint64_t now = now_ns();
    scheduled++;
    queued += !c;
    add(&lateness, now > due ? now - due : 0);
  }
  if (c) {
    start(c, job);
    return;
  }
  if (waiting_tail == waiting_room)
    waiting = checked(realloc(waiting, sizeof *waiting * (waiting_room = 2 * waiting_room + 1024)));
  waiting[waiting_tail++] = job;
}

static void tick(uint64_t now) {
  for (Connection *c = pool; c < pool + connections; c++) {
    if (c->state == BUSY && now > c->job.due + timeout_ns) abandon(c, TIMEOUT);
    if (c->state == DOWN && c->retry <= now && (sending || waiting_head < waiting_tail)) {
      reconnects++;
      open_connection(c, false);
    }
  }
  while (waiting_head < waiting_tail && now > waiting[waiting_head].due + timeout_ns)
    lost(waiting[waiting_head++].due, UNSENT);
}

static void sleep_until(uint64_t when) {
  struct itimerspec at = {.it_value = {(time_t)(when / SECOND), (long)(when % SECOND)}};
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

// Ahead of everything else on this core, if the system allows it.
static void go_first(void) {
  struct sched_param first = {.sched_priority = 1};
  realtime = !sched_setscheduler(0, SCHED_FIFO, &first) && !mlockall(MCL_CURRENT);
}

static void run(void) {
  uint64_t start_time = now_ns(), next_tick = start_time;
  double mean_gap = rate ? SECOND / rate : 0;
  begin = start_time + (uint64_t)(warmup * SECOND);
  end = begin + (uint64_t)(seconds * SECOND);
  uint64_t next = rate ? start_time : NEVER;
  double exact = (double)start_time;  // kept apart: a rounded gap would shift the rate
  fprintf(stderr, "started %llu\n", (unsigned long long)begin);
  for (Connection *c = pool; c < pool + connections; c++) release(c);
  for (;;) {
    uint64_t now = now_ns();
    while (next <= now && next < end) {
      arrive(next);
      exact += mean_gap * (poisson ? -log(uniform()) : 1);
      next = (uint64_t)llround(exact);
      now = now_ns();
    }
    if (next >= end) next = NEVER;
    if (now >= end) sending = false;
    if (now >= next_tick) {
      tick(now);
      next_tick = now + TICK;
    }
    if (!sending && !busy && waiting_head == waiting_tail) return;
    if (now >= end + timeout_ns + TICK * 4) return;
    sleep_until(next < next_tick ? next : next_tick);
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(poller, events, EVENTS, 1000);
    for (int i = 0; i < ready; i++) {
      if (events[i].data.u32 == UINT32_MAX) {
        uint64_t expirations;
        if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) fail("timer: %s", strerror(errno));
        continue;
      }
      Connection *c = &pool[events[i].data.u32];
      if (c->state == CONNECTING) {
        connected(c);
        continue;
      }
      if (c->state == BUSY && events[i].events & EPOLLOUT) {
        watch(c, EPOLLIN, EPOLL_CTL_MOD);
        send_more(c);
      }
      if (c->state >= IDLE && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
    }
  }
}

// ---------------------------------------------------------------------------------------------------- the report

static void print_statuses(const uint32_t *counts) {
  const char *comma = "";
  printf("{");
  for (int s = 0; s < STATUSES; s++)
    if (counts[s]) printf("%s\"%d\": %u", comma, s, counts[s]), comma = ", ";
  printf("}");
}

static void print_report(void) {
  uint32_t statuses[STATUSES] = {0};
  for (uint32_t i = 0; i < class_count; i++)
    for (int s = 0; s < STATUSES; s++)
      if (classes[i].by_status[s]) statuses[s] += (uint32_t)classes[i].by_status[s]->count;
  printf("{\"mode\": \"%s\", \"connections\": %u, \"seconds\": %g, \"warmup\": %g, \"started_ns\": %llu, \"realtime\": %s,\n",
         rate ? "open" : "closed", connections, seconds, warmup, (unsigned long long)begin, realtime ? "true" : "false");
  if (rate) printf(" \"rate\": %g, \"arrivals\": \"%s\", ", rate, poisson ? "poisson" : "constant");
  printf(" \"throughput\": %.3f, \"goodput\": %.3f,\n", (double)answered_inside / seconds, (double)good_inside / seconds);
  printf(" \"scheduled\": %llu, \"queued\": %llu, \"reconnects\": %llu, \"refused\": %llu, \"retry_after\": %llu,\n",
         (unsigned long long)scheduled, (unsigned long long)queued, (unsigned long long)reconnects,
         (unsigned long long)refused, (unsigned long long)with_retry_after);
  printf(" \"statuses\": ");
  print_statuses(statuses);
  printf(",\n \"errors\": {");
  const char *comma = "";
  for (int e = 0; e < ERRORS; e++)
    if (errors[e]) printf("%s\"%s\": %llu", comma, error_names[e], (unsigned long long)errors[e]), comma = ", ";
  printf("},\n \"lateness_ms\": ");
  print_histogram(&lateness);
  printf(",\n \"latency_ms\": ");
  print_histogram(&good_latency);
  printf(",\n \"classes\": {");
  for (uint32_t i = 0; i < class_count; i++) {
    printf("%s\"%s\": {", i ? ",\n  " : "", classes[i].name);
    comma = "";
    for (int s = 0; s < STATUSES; s++) {
      if (!classes[i].by_status[s]) continue;
      printf("%s\"%d\": ", comma, s);
      print_histogram(classes[i].by_status[s]);
      comma = ", ";
    }
    printf("}");
  }
  printf("},\n \"windows\": [");
  comma = "";
  for (size_t i = 0; i < window_count; i++) {
    static Window none;
    const Window *w = windows[i] ? windows[i] : &none;
    printf("%s\n  {\"at\": %.3f, \"count\": %llu, \"p50\": %.4f, \"p99\": %.4f, \"max\": %.4f, \"errors\": %u, \"statuses\": ",
           comma, (double)i * window_ms / 1000, (unsigned long long)w->latency.count, percentile_ms(&w->latency, 0.5),
           percentile_ms(&w->latency, 0.99), (double)w->latency.max / MS, w->errors);
    print_statuses(w->statuses);
    printf("}");
    comma = ",";
  }
  printf("]}\n");
}

static double number(const char *name, double least) {
  char *stop;
  double value = strtod(optarg, &stop);
  if (*stop || stop == optarg || !(value >= least) || !isfinite(value))
    fail("--%s %s: not a number of at least %g", name, optarg, least);
  return value;
}

static const char *parse(int argc, char **argv) {
  enum { PORT, REQUESTS, CONNECTIONS, SECONDS, WARMUP, RATE, ARRIVALS, SEED, LIMIT, DEADLINE, WINDOW, BODIES };
  static const struct option options[] = {
      {"port", 1, 0, PORT},         {"requests", 1, 0, REQUESTS}, {"connections", 1, 0, CONNECTIONS},
      {"seconds", 1, 0, SECONDS},   {"warmup", 1, 0, WARMUP},     {"rate", 1, 0, RATE},
      {"arrivals", 1, 0, ARRIVALS}, {"seed", 1, 0, SEED},         {"timeout", 1, 0, LIMIT},
      {"deadline-ms", 1, 0, DEADLINE}, {"window-ms", 1, 0, WINDOW}, {"bodies", 1, 0, BODIES},
      {0, 0, 0, 0}};
  const char *file = NULL;
  int option, index = 0;
  while ((option = getopt_long(argc, argv, "", options, &index)) >= 0) {
    const char *name = options[index].name;
    if (option == PORT) address.sin_port = htons((uint16_t)number(name, 1));
    else if (option == REQUESTS) file = optarg;
    else if (option == CONNECTIONS) connections = (uint32_t)number(name, 1);
    else if (option == SECONDS) seconds = number(name, 0.001);
    else if (option == WARMUP) warmup = number(name, 0);
    else if (option == RATE) rate = number(name, 0.001);
    else if (option == SEED) seed = (uint64_t)number(name, 0);
    else if (option == LIMIT) timeout_s = number(name, 0.001);
    else if (option == DEADLINE) deadline_ms = number(name, 0.001);
    else if (option == WINDOW) window_ms = number(name, 1);
    else if (option == ARRIVALS) {
      poisson = !strcmp(optarg, "poisson");
      if (!poisson && strcmp(optarg, "constant")) fail("--arrivals %s: neither poisson nor constant", optarg);
    } else if (option == BODIES) {
      bodies = fopen(optarg, "wb");
      if (!bodies) fail("%s: %s", optarg, strerror(errno));
    } else exit(2);
  }
  if (optind < argc) fail("unexpected argument %s", argv[optind]);
  if (!file || !address.sin_port) fail("--port and --requests are needed");
  return file;
}

int main(int argc, char **argv) {
  read_requests(parse(argc, argv));
  signal(SIGPIPE, SIG_IGN);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  timeout_ns = (uint64_t)(timeout_s * SECOND);
  poller = epoll_create1(EPOLL_CLOEXEC);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
  if (poller < 0 || timer < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event)) fail("epoll: %s", strerror(errno));
  pool = checked(calloc(connections, sizeof *pool));
  ring = checked(calloc(connections, sizeof *ring));
  if (window_ms) {
    window_count = (size_t)ceil(seconds * 1000 / window_ms);
    windows = checked(calloc(window_count, sizeof *windows));
  }
  for (Connection *c = pool; c < pool + connections; c++) open_connection(c, true);
  go_first();
  run();
  if (bodies && fclose(bodies)) fail("writing the bodies: %s", strerror(errno));
  print_report();
  return 0;
}
