/* A small network of this machine's own: namespaces, and a switch between them with a delay and a rate.
 *
 *   switch HOSTS                          one namespace with a loopback for all hosts
 *   switch HOSTS RATE_MBIT RTT_MS MTU     a namespace each, 10.88.0.1 and up, joined by the switch
 *
 * Kernels without netem cannot delay packets, so this does. It prints one line of JSON that names the namespaces (as
 * files under /proc, good for nsenter) and runs until its standard input ends; namespaces and devices have no names in
 * the system and vanish with it and the processes inside. Needs root.
 *
 * The model: full-duplex links of one rate between each host and the switch, and half the round trip on the way.
 *
 *     host s --uplink (rate, queue)--> [ RTT / 2 ] --> downlink (rate, queue)--> host d
 *
 * A packet leaves its uplink when all before it from that host have left and its own bits have passed, reaches the
 * switch RTT/2 later, then waits for the receiver's downlink alike. Queues end after QUEUE_NS of waiting; what comes
 * then is dropped, as routers do. An Ethernet frame costs FRAMING bytes more than its packet.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HOSTS = 32, MAX_MTU = 9200, FRAMING = 38, BURST = 32, CONTROL = MAX_HOSTS, TIMER };
static const int64_t QUEUE_NS = 200 * 1000 * 1000;
static const int64_t NEVER = INT64_MAX;

struct packet {
  struct packet *next;
  int64_t due; /* when the stage it waits in is done with it */
  int64_t cost; /* nanoseconds of a link */
  int to, size;
  unsigned char bytes[MAX_MTU];
};

struct stage { /* one direction of one link, first in first out */
  struct packet *first, **last;
  int64_t free_at;
};

struct host {
  int device;
  struct stage up, down;
};

static struct host hosts[MAX_HOSTS];
static struct packet *spare;
static unsigned long long passed, dropped;

static void die(const char *what) {
  fprintf(stderr, "switch: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int64_t clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* -- namespaces ----------------------------------------------------------------------------------- */

static void interface_ioctl(int sock, unsigned long request, struct ifreq *r, const char *what) {
  if (ioctl(sock, request, r) < 0) die(what);
}

static void bring_up(int sock, const char *name) {
  struct ifreq r = {0};
  strncpy(r.ifr_name, name, IFNAMSIZ - 1);
  interface_ioctl(sock, SIOCGIFFLAGS, &r, name);
  r.ifr_flags |= IFF_UP;
  interface_ioctl(sock, SIOCSIFFLAGS, &r, name);
}

/* Enters a new namespace whose loopback is up; returns a descriptor that keeps it alive. */
static int new_namespace(void) {
  if (unshare(CLONE_NEWNET) < 0) die("unshare");
  int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (sock < 0) die("socket");
  bring_up(sock, "lo");
  close(sock);
  int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  if (fd < 0) die("namespace");
  return fd;
}

/* A TUN device "eth0" in the namespace this process is in now. */
static int new_device(int k, int mtu) {
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) die("/dev/net/tun");
  struct ifreq r = {0};
  strcpy(r.ifr_name, "eth0");
  r.ifr_flags = IFF_TUN | IFF_NO_PI;
  interface_ioctl(fd, TUNSETIFF, &r, "TUNSETIFF");
  int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x0A580001u + (unsigned)k)};
  memcpy(&r.ifr_addr, &address, sizeof address);
  interface_ioctl(sock, SIOCSIFADDR, &r, "address");
  address.sin_addr.s_addr = htonl(0xFFFFFF00u);
  memcpy(&r.ifr_netmask, &address, sizeof address);
  interface_ioctl(sock, SIOCSIFNETMASK, &r, "netmask");
  r.ifr_mtu = mtu;
  interface_ioctl(sock, SIOCSIFMTU, &r, "mtu");
  r.ifr_qlen = 10000; /* the queue that counts is ours, so this one must not overflow */
  interface_ioctl(sock, SIOCSIFTXQLEN, &r, "queue length");
  bring_up(sock, "eth0");
  close(sock);
  return fd;
}

/* -- queues ---------------------------------------------------------------------------------------- */

static void append(struct stage *s, struct packet *p) {
  p->next = NULL;
  if (s->first)
    *s->last = p;
  else
    s->first = p;
  s->last = &p->next;
}

static struct packet *take(struct stage *s) {
  struct packet *p = s->first;
  s->first = p->next;
  return p;
}

static void forget(struct packet *p) {
  p->next = spare;
  spare = p;
}

static struct packet *fresh(void) {
  struct packet *p = spare;
  if (p)
    spare = p->next;
  else if (!(p = malloc(sizeof *p)))
    die("memory");
  return p;
}

static int64_t due(const struct stage *s) { return s->first ? s->first->due : NEVER; }

/* Puts a packet that comes at `at` onto a link; false, and dropped, where its queue is too long. */
static int enqueue(struct stage *s, struct packet *p, int64_t at, int64_t then) {
  if (s->free_at - at > QUEUE_NS) {
    ++dropped;
    forget(p);
    return 0;
  }
  s->free_at = (s->free_at > at ? s->free_at : at) + p->cost;
  p->due = s->free_at + then;
  append(s, p);
  return 1;
}

/* -- the switch ------------------------------------------------------------------------------------ */

static void read_host(int k, int count, double ns_per_byte, int64_t one_way) {
  for (int burst = 0; burst < BURST; ++burst) {
    struct packet *p = fresh();
    ssize_t size = read(hosts[k].device, p->bytes, sizeof p->bytes);
    const unsigned char *b = p->bytes;
    const int to = size >= 20 && b[0] >> 4 == 4 && b[16] == 10 && b[17] == 88 && b[18] == 0 ? b[19] - 1 : -1;
    if (size <= 0 || to < 0 || to >= count) { /* nothing left, or no packet between our hosts */
      forget(p);
      if (size <= 0) return;
      continue;
    }
    p->size = (int)size;
    p->to = to;
    p->cost = (int64_t)((double)(size + FRAMING) * ns_per_byte);
    enqueue(&hosts[k].up, p, clock_ns(), one_way);
  }
}

/* Moves every packet whose time has come, in order of time over all links; returns when the next one is due. */
static int64_t advance(int count) {
  for (;;) {
    struct stage *next = NULL;
    for (int k = 0; k < count; ++k) {
      if (due(&hosts[k].up) < (next ? due(next) : NEVER)) next = &hosts[k].up;
      if (due(&hosts[k].down) < (next ? due(next) : NEVER)) next = &hosts[k].down;
    }
    if (!next || due(next) > clock_ns()) return next ? due(next) : NEVER;
    struct packet *p = take(next);
    struct host *to = &hosts[p->to];
    if (next != &to->down) {
      enqueue(&to->down, p, p->due, 0);
      continue;
    }
    if (write(to->device, p->bytes, (size_t)p->size) < 0)
      ++dropped;
    else
      ++passed;
    forget(p);
  }
}

static void watch(int epoll, int fd, unsigned tag) {
  struct epoll_event e = {.events = EPOLLIN, .data.u32 = tag};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0) die("epoll");
}

static void run(int count, double ns_per_byte, int64_t one_way) {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  watch(epoll, 0, CONTROL);
  watch(epoll, timer, TIMER);
  for (int k = 0; k < count; ++k) watch(epoll, hosts[k].device, (unsigned)k);
  for (;;) {
    const int64_t next = advance(count);
    struct itimerspec t = {0};
    if (next != NEVER) t.it_value = (struct timespec){next / 1000000000, next % 1000000000};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &t, NULL);
    struct epoll_event events[MAX_HOSTS + 2];
    const int ready = epoll_wait(epoll, events, MAX_HOSTS + 2, -1);
    for (int i = 0; i < ready; ++i) {
      const unsigned tag = events[i].data.u32;
      if (tag == CONTROL) return; /* the driver closed the pipe, or is gone */
      if (tag == TIMER) {
        uint64_t ticks;
        if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
      } else {
        read_host((int)tag, count, ns_per_byte, one_way);
      }
    }
  }
}

int main(int argc, char **argv) {
  const int count = argc > 1 ? atoi(argv[1]) : 0;
  const int shaped = argc == 5;
  if ((argc != 2 && !shaped) || count < 1 || count > MAX_HOSTS) {
    fprintf(stderr, "usage: switch HOSTS [RATE_MBIT RTT_MS MTU]   (1 to %d hosts)\n", MAX_HOSTS);
    return 2;
  }
  const double rate = shaped ? atof(argv[2]) : 1, rtt = shaped ? atof(argv[3]) : 0;
  const int mtu = shaped ? atoi(argv[4]) : 0;
  if (rate <= 0 || rtt < 0 || (shaped && (mtu < 576 || mtu > MAX_MTU))) {
    fprintf(stderr, "switch: that is no network\n");
    return 2;
  }
  signal(SIGINT, SIG_IGN); /* the driver takes everything down in order */
  signal(SIGPIPE, SIG_IGN);
  int spaces[MAX_HOSTS];
  for (int k = 0; k < count; ++k) {
    spaces[k] = k && !shaped ? spaces[0] : new_namespace();
    if (shaped) hosts[k].device = new_device(k, mtu);
  }
  printf("{\"namespaces\": [");
  for (int k = 0; k < count; ++k) printf("%s\"/proc/%d/fd/%d\"", k ? ", " : "", getpid(), spaces[k]);
  printf("]}\n");
  fflush(stdout);
  if (shaped) { /* a network does not wait for the processes it connects */
    struct sched_param first = {.sched_priority = 1};
    if (sched_setscheduler(0, SCHED_FIFO, &first) < 0) fprintf(stderr, "switch: runs at normal priority\n");
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    run(count, 8e3 / rate, (int64_t)(rtt * 5e5));
  } else {
    char c;
    while (read(0, &c, 1) > 0) continue;
  }
  printf("{\"passed\": %llu, \"dropped\": %llu}\n", passed, dropped);
  return 0;
}
