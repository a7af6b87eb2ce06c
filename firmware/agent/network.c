/* Network interfaces of the guest: found by their hardware address, named, addressed, and brought up. */
#include "agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAC_SIZE 6
#define MAX_ADDRESSES 16
#define MAX_GATEWAYS 2
/* A device that was just plugged in is there once its driver has found it: up to 10 s. */
#define WAIT_STEPS 1000
#define WAIT_STEP_NS 10000000L

struct address {
  uint8_t family, prefix;
  uint8_t size;
  uint8_t bytes[16];
};

static bool parse_address(const char *text, struct address *out) {
  out->family = strchr(text, ':') == NULL ? AF_INET : AF_INET6;
  out->size = out->family == AF_INET ? 4 : 16;
  return inet_pton(out->family, text, out->bytes) == 1;
}

static bool set_flags(int fd, const char *name, short flags) {
  struct ifreq request = {0};
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  request.ifr_flags = flags;
  return ioctl(fd, SIOCSIFFLAGS, &request) == 0;
}

void loopback_up(void) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  set_flags(fd, "lo", IFF_UP | IFF_RUNNING);
  close(fd);
}

static bool find_once(int fd, const uint8_t *mac, char *name) {
  struct if_nameindex *all = if_nameindex();
  bool found = false;
  for (struct if_nameindex *each = all; all != NULL && each->if_index != 0 && !found; each++) {
    struct ifreq request = {0};
    strncpy(request.ifr_name, each->if_name, IFNAMSIZ - 1);
    found = ioctl(fd, SIOCGIFHWADDR, &request) == 0 && request.ifr_hwaddr.sa_family == ARPHRD_ETHER &&
            memcmp(request.ifr_hwaddr.sa_data, mac, MAC_SIZE) == 0;
    if (found) memcpy(name, request.ifr_name, IFNAMSIZ);
  }
  if (all != NULL) if_freenameindex(all);
  return found;
}

static bool find(int fd, const uint8_t *mac, char *name) {
  for (int i = 0; i < WAIT_STEPS; i++) {
    if (find_once(fd, mac, name)) return true;
    struct timespec pause = {.tv_nsec = WAIT_STEP_NS};
    nanosleep(&pause, NULL);
  }
  return false;
}

/* One request of rtnetlink(7) with its attributes. */
struct message {
  struct nlmsghdr header;
  union {
    struct ifaddrmsg address;
    struct rtmsg route;
  };
  uint8_t attributes[128];
};

static void add_attribute(struct message *m, unsigned short type, const void *data, size_t size) {
  struct rtattr *at = (struct rtattr *)((uint8_t *)m + NLMSG_ALIGN(m->header.nlmsg_len));
  at->rta_type = type;
  at->rta_len = (unsigned short)RTA_LENGTH(size);
  memcpy(RTA_DATA(at), data, size);
  m->header.nlmsg_len = NLMSG_ALIGN(m->header.nlmsg_len) + RTA_LENGTH(size);
}

/* Sends it and waits for the kernel's word. Sets errno. */
static bool transact(int netlink, struct message *m) {
  struct {
    struct nlmsghdr header;
    struct nlmsgerr error;
    uint8_t rest[512];
  } answer;
  m->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
  if (send(netlink, m, m->header.nlmsg_len, 0) < 0) return false;
  ssize_t n = recv(netlink, &answer, sizeof answer, 0);
  if (n < (ssize_t)NLMSG_LENGTH(sizeof answer.error) || answer.header.nlmsg_type != NLMSG_ERROR) {
    if (n >= 0) errno = EPROTO;
    return false;
  }
  errno = -answer.error.error;
  return answer.error.error == 0;
}

static bool add_address(int netlink, int index, const struct address *a) {
  struct message m = {.header = {.nlmsg_len = NLMSG_LENGTH(sizeof m.address), .nlmsg_type = RTM_NEWADDR}};
  m.address = (struct ifaddrmsg){.ifa_family = a->family, .ifa_prefixlen = a->prefix, .ifa_index = (uint32_t)index};
  /* Addresses are handed out by the host, so nobody else has it: usable at once. */
  if (a->family == AF_INET6) m.address.ifa_flags = IFA_F_NODAD;
  add_attribute(&m, IFA_LOCAL, a->bytes, a->size);
  add_attribute(&m, IFA_ADDRESS, a->bytes, a->size);
  if (a->family == AF_INET && a->prefix < 31) {
    uint32_t broadcast;
    memcpy(&broadcast, a->bytes, sizeof broadcast);
    broadcast |= htonl(UINT32_MAX >> a->prefix);
    add_attribute(&m, IFA_BROADCAST, &broadcast, sizeof broadcast);
  }
  return transact(netlink, &m);
}

static bool add_default_route(int netlink, int index, const struct address *gateway) {
  struct message m = {.header = {.nlmsg_len = NLMSG_LENGTH(sizeof m.route), .nlmsg_type = RTM_NEWROUTE}};
  m.route = (struct rtmsg){.rtm_family = gateway->family,
                           .rtm_table = RT_TABLE_MAIN,
                           .rtm_protocol = RTPROT_BOOT,
                           .rtm_scope = RT_SCOPE_UNIVERSE,
                           .rtm_type = RTN_UNICAST,
                           /* Also where it is within none of the addresses' subnets. */
                           .rtm_flags = RTNH_F_ONLINK};
  add_attribute(&m, RTA_GATEWAY, gateway->bytes, gateway->size);
  add_attribute(&m, RTA_OIF, &index, sizeof index);
  return transact(netlink, &m);
}

static void set_ipv6(const char *name, bool on) {
  char path[96];
  snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/accept_ra", name);
  write_file(path, "0", 1, 0);
  snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
  write_file(path, on ? "0" : "1", 1, 0);
}

struct interface {
  uint8_t mac[MAC_SIZE];
  char name[IFNAMSIZ];
  uint32_t mtu, addresses, gateways;
  struct address address[MAX_ADDRESSES], gateway[MAX_GATEWAYS];
};

static bool read_address(struct reader *body, struct address *out, bool prefix) {
  char text[INET6_ADDRSTRLEN];
  read_string(body, text, sizeof text);
  uint32_t bits = prefix ? read_u32(body) : 0;
  if (body->bad || !parse_address(text, out) || bits > 8u * out->size) return false;
  out->prefix = (uint8_t)bits;
  return true;
}

static bool read_interface(struct reader *body, struct interface *out, struct failure *f) {
  const uint8_t *mac = read_fixed(body, MAC_SIZE);
  read_string(body, out->name, sizeof out->name);
  out->mtu = read_u32(body);
  out->addresses = read_u32(body);
  if (body->bad || out->name[0] == '\0' || strchr(out->name, '/') != NULL || out->mtu > UINT16_MAX ||
      out->addresses > MAX_ADDRESSES)
    return fail(f, EINVAL, "PROTOCOL", "NETWORK");
  memcpy(out->mac, mac, MAC_SIZE);
  for (uint32_t i = 0; i < out->addresses; i++)
    if (!read_address(body, &out->address[i], true)) return fail(f, EINVAL, "PROTOCOL", "address %u", i);
  out->gateways = read_u32(body);
  if (body->bad || out->gateways > MAX_GATEWAYS) return fail(f, EINVAL, "PROTOCOL", "NETWORK");
  for (uint32_t i = 0; i < out->gateways; i++)
    if (!read_address(body, &out->gateway[i], false)) return fail(f, EINVAL, "PROTOCOL", "gateway %u", i);
  if (body->left != 0) return fail(f, EINVAL, "PROTOCOL", "NETWORK");
  return true;
}

/* The adapters that there are, as `eth0 02:00:00:00:00:01, …`: what a host's device that got no address of its own shows. */
static void list_links(int fd, char *out, size_t size) {
  struct if_nameindex *all = if_nameindex();
  size_t used = 0;
  out[0] = '\0';
  for (struct if_nameindex *each = all; all != NULL && each->if_index != 0; each++) {
    struct ifreq request = {0};
    strncpy(request.ifr_name, each->if_name, IFNAMSIZ - 1);
    if (ioctl(fd, SIOCGIFHWADDR, &request) < 0 || request.ifr_hwaddr.sa_family != ARPHRD_ETHER) continue;
    const uint8_t *mac = (const uint8_t *)request.ifr_hwaddr.sa_data;
    int n = snprintf(out + used, size - used, "%s%s %02x:%02x:%02x:%02x:%02x:%02x", used == 0 ? "" : ", ",
                     request.ifr_name, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    if (n < 0 || (size_t)n >= size - used) break;
    used += (size_t)n;
  }
  if (all != NULL) if_freenameindex(all);
}

static bool no_link(int fd, const struct interface *want, struct failure *f) {
  const uint8_t *mac = want->mac;
  char seen[384];
  list_links(fd, seen, sizeof seen);
  return fail(f, ENODEV, "NETWORK", "%s: no adapter has the address %02x:%02x:%02x:%02x:%02x:%02x (there are: %s)",
              want->name, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], seen[0] == '\0' ? "none" : seen);
}

/* A name can only be changed while its interface is down. */
static bool rename_link(int fd, const char *from, const char *to) {
  struct ifreq request = {0};
  strncpy(request.ifr_name, from, IFNAMSIZ - 1);
  strncpy(request.ifr_newname, to, IFNAMSIZ - 1);
  set_flags(fd, from, 0);
  return ioctl(fd, SIOCSIFNAME, &request) == 0;
}

static bool name_link(int fd, const struct interface *want, struct failure *f) {
  char name[IFNAMSIZ], aside[IFNAMSIZ];
  if (!find(fd, want->mac, name)) return no_link(fd, want, f);
  if (strcmp(name, want->name) == 0) return true;
  /* The kernel gives names in the order of its probing: whoever has this one gets its own later. */
  unsigned index = if_nametoindex(want->name);
  snprintf(aside, sizeof aside, "aside%u", index);
  if ((index != 0 && !rename_link(fd, want->name, aside)) || !rename_link(fd, name, want->name))
    return fail(f, errno, "NETWORK", "name %s", want->name);
  return true;
}

static bool set_up(int fd, int netlink, const struct interface *want, struct failure *f) {
  const char *name = want->name;
  if (!name_link(fd, want, f)) return false;
  int index = (int)if_nametoindex(name);
  struct ifreq request = {.ifr_mtu = (int)want->mtu};
  memcpy(request.ifr_name, name, IFNAMSIZ);
  if (want->mtu != 0 && ioctl(fd, SIOCSIFMTU, &request) < 0)
    return fail(f, errno, "NETWORK", "%s: MTU %u", name, want->mtu);
  bool ipv6 = false;
  for (uint32_t i = 0; i < want->addresses; i++) ipv6 |= want->address[i].family == AF_INET6;
  set_ipv6(name, ipv6);
  for (uint32_t i = 0; i < want->addresses; i++)
    if (!add_address(netlink, index, &want->address[i])) return fail(f, errno, "NETWORK", "%s: address %u", name, i);
  if (!set_flags(fd, name, IFF_UP | IFF_RUNNING)) return fail(f, errno, "NETWORK", "%s: up", name);
  for (uint32_t i = 0; i < want->gateways; i++)
    if (!add_default_route(netlink, index, &want->gateway[i]))
      return fail(f, errno, "NETWORK", "%s: gateway %u", name, i);
  return true;
}

bool network_set(struct reader *body, struct failure *f) {
  struct interface want = {0};
  if (!read_interface(body, &want, f)) return false;
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  bool good = fd >= 0 && netlink >= 0 ? set_up(fd, netlink, &want, f) : fail(f, errno, "NETWORK", "socket");
  if (fd >= 0) close(fd);
  if (netlink >= 0) close(netlink);
  return good;
}

/* What the interface had is forgotten with its end: only that it stops at once is to be seen to. */
bool network_clear(struct reader *body, struct failure *f) {
  char name[IFNAMSIZ];
  read_string(body, name, sizeof name);
  if (body->bad || body->left != 0 || name[0] == '\0') return fail(f, EINVAL, "PROTOCOL", "NETWORK_DOWN");
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  bool good = fd >= 0 && set_flags(fd, name, 0);
  int error = errno;
  if (fd >= 0) close(fd);
  return good || fail(f, error, "NETWORK", "%s", name);
}
