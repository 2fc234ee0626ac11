/*
 * Frames of a network, numbered in each direction, to and from a packet socket on an interface of the same network.
 *
 * The driver has an address, a second one in its MAC table, and a VLAN that are not the device's own, and wants nothing
 * else: `probe` tells what of that arrives. What it sends must all arrive, once and in order, until a reset; what it is
 * sent may be lost while its device moves, but never comes twice.
 */
#pragma once
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "load.h"
#include "random.h"

enum { RX, TX, CONTROL };
enum { ROOM = 2048, LONGEST = 1514, PROTOCOL = 0x88b5 /* for local experiments */, VLAN_TAG = 0x8100, VLAN_ID = 5 };

struct frame {
    uint8_t to[6], from[6];
    uint16_t protocol; /* of network order, as in a tag */
    uint16_t probe;    /* 0, or which probe it is */
    uint64_t sequence;
    uint64_t noise[];
} __attribute__((packed));

/* What a device is given of one slot. A header has 12 bytes, also without MRG_RXBUF. */
struct packet {
    struct virtio_net_hdr_mrg_rxbuf header;
    uint8_t bytes[ROOM - sizeof(struct virtio_net_hdr_mrg_rxbuf)];
};

static const uint8_t own_address[6] = {2, 0, 0, 0, 0x77, 1}, second_address[6] = {2, 0, 0, 0, 0x77, 2},
                     foreign_address[6] = {2, 0, 0, 0, 0x77, 3};

/* Frames that a driver's filters tell apart; the last one ends the probe. */
static const struct probe {
    const char *name;
    const uint8_t *to;
    uint16_t vlan;
} probes[] = {
    {"", NULL, 0},
    {"own", own_address, 0},
    {"second", second_address, 0},
    {"foreign", foreign_address, 0},
    {"vlan", own_address, VLAN_ID},
    {"other-vlan", own_address, VLAN_ID + 1},
    {"end", own_address, 0},
};
enum { PROBES = sizeof probes / sizeof *probes };

static struct {
    struct packet *packets[2]; /* RX, TX */
    uint64_t packets_at[2];
    uint8_t *command;
    uint64_t command_at;
    uint8_t peer_address[6];
    uint64_t sent, arrived, sent_back, came_back; /* the newest of either direction, at either end */
    uint64_t given_up, given_up_back;             /* nothing up to these is waited for any more */
    uint64_t lost, lost_back;                     /* numbers that were passed over */
    unsigned probed;                              /* bits of those that arrived */
} net;

/* How many are on their way, as far as they are waited for. */
static uint64_t frames_there(void)
{
    return net.sent - (net.arrived > net.given_up ? net.arrived : net.given_up);
}

static uint64_t frames_back(void)
{
    return net.sent_back - (net.came_back > net.given_up_back ? net.came_back : net.given_up_back);
}

static size_t frame_size(uint64_t sequence)
{
    return sizeof(struct frame) + 8 * (5 + scattered(sequence) % ((LONGEST - sizeof(struct frame)) / 8 - 5));
}

static void fill_frame(struct frame *frame, const uint8_t *to, const uint8_t *from, uint64_t sequence)
{
    uint64_t state = scattered(sequence) | 1;
    memcpy(frame->to, to, 6);
    memcpy(frame->from, from, 6);
    frame->protocol = htons(PROTOCOL);
    frame->probe = 0;
    frame->sequence = sequence;
    for (size_t index = 0; index < (frame_size(sequence) - sizeof *frame) / 8; index++) {
        uint64_t word = random_step(&state);
        memcpy(&frame->noise[index], &word, sizeof word);
    }
}

/* Looks at a frame that arrived, and returns how many were passed over since the newest one before. */
static uint64_t judge_frame(const uint8_t *bytes, size_t size, const uint8_t *to, const uint8_t *from, uint64_t *newest)
{
    static uint64_t expected[ROOM / 8];
    struct frame *right = (void *)expected;
    uint64_t sequence = ((const struct frame *)bytes)->sequence, before = *newest;
    fill_frame(right, to, from, sequence);
    if (size != frame_size(sequence) || memcmp(bytes, right, size) != 0) {
        fault("frame", before + 1, frame_size(sequence), size);
        return 0;
    }
    if (sequence <= before) {
        fault("frame again", before + 1, before + 1, sequence);
        return 0;
    }
    *newest = sequence;
    answered++;
    return sequence - before - 1;
}

static void open_peer(const char *name)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(PROTOCOL)};
    struct ifreq interface = {0};
    int large = 4 << 20;
    other_end = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(PROTOCOL));
    snprintf(interface.ifr_name, sizeof interface.ifr_name, "%s", name);
    if (other_end < 0 || ioctl(other_end, SIOCGIFHWADDR, &interface) != 0)
        err(2, "cannot use the interface %s", name);
    memcpy(net.peer_address, interface.ifr_hwaddr.sa_data, 6);
    setsockopt(other_end, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large);
    address.sll_ifindex = (int)if_nametoindex(name);
    if (bind(other_end, (struct sockaddr *)&address, sizeof address) != 0)
        err(2, "cannot use the interface %s", name);
}

static void lay_out_net(struct driver *driver)
{
    if (other_end < 0)
        errx(2, "a network needs --peer");
    for (unsigned queue = RX; queue <= TX; queue++)
        net.packets[queue] = (void *)take_memory(driver, depth * sizeof(struct packet), &net.packets_at[queue]);
    net.command = take_memory(driver, 64, &net.command_at);
}

/* One command on the control queue, answered well. */
static void control(struct driver *driver, uint8_t class, uint8_t command, const void *data, uint32_t size)
{
    struct queue *queue = &driver->queues[CONTROL];
    struct piece pieces[CHAIN] = {
        {net.command_at, 2, false},
        {net.command_at + 2, size, false},
        {net.command_at + 2 + size, 1, true},
    };
    uint32_t length;
    net.command[0] = class;
    net.command[1] = command;
    memcpy(&net.command[2], data, size);
    net.command[2 + size] = 0xff;
    add_buffer(queue, 0, pieces, CHAIN);
    notify(driver, CONTROL);
    do {
        if (!wait_interrupt(driver, -1))
            errx(2, "a control command is not answered");
    } while (!take_interrupts(driver, CONTROL));
    if (take_used(queue, &length) != 0 || net.command[2 + size] != VIRTIO_NET_OK)
        errx(2, "control command %u/%u is refused", class, command);
}

static void add_room(struct driver *driver)
{
    struct queue *queue = &driver->queues[RX];
    for (int slot; (slot = free_slot(queue, depth)) >= 0;) {
        struct piece piece = {net.packets_at[RX] + (unsigned)slot * sizeof(struct packet), ROOM, true};
        add_buffer(queue, (unsigned)slot, &piece, 1);
    }
}

static void begin_net(struct driver *driver)
{
    struct {
        uint32_t unicasts;
        uint8_t unicast[6];
        uint32_t multicasts;
    } __attribute__((packed)) table = {.unicasts = 1};
    uint8_t off = 0;
    uint16_t vlan = VLAN_ID;
    memcpy(table.unicast, second_address, 6);
    control(driver, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &off, 1);
    control(driver, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, &off, 1);
    control(driver, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, &table, sizeof table);
    control(driver, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, own_address, 6);
    control(driver, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, &vlan, sizeof vlan);
    add_room(driver);
    notify(driver, RX);
}

static bool add_frame(struct driver *driver)
{
    int slot = free_slot(&driver->queues[TX], depth);
    if (slot < 0 || frames_there() >= depth)
        return false;
    struct packet *packet = &net.packets[TX][slot];
    uint32_t size = (uint32_t)(sizeof packet->header + frame_size(++net.sent));
    memset(&packet->header, 0, sizeof packet->header);
    fill_frame((void *)packet->bytes, net.peer_address, own_address, net.sent);
    struct piece piece = {net.packets_at[TX] + (unsigned)slot * sizeof *packet, size, false};
    add_buffer(&driver->queues[TX], (unsigned)slot, &piece, 1);
    return true;
}

static void tell_net(struct driver *driver)
{
    notify(driver, TX);
    notify(driver, RX);
}

/* The other end's turn: it takes what arrived, and sends what there is room for. */
static void feed_net(struct driver *driver)
{
    static uint64_t words[ROOM / 8];
    uint8_t *bytes = (void *)words;
    for (ssize_t size; (size = recv(other_end, bytes, ROOM, 0)) > 0;)
        net.lost += judge_frame(bytes, (size_t)size, net.peer_address, own_address, &net.arrived);
    while (frames_back() < depth) {
        fill_frame((void *)bytes, own_address, net.peer_address, ++net.sent_back);
        if (send(other_end, bytes, frame_size(net.sent_back), 0) < 0)
            err(2, "cannot send");
    }
    (void)driver;
}

static void take_packet(struct driver *driver, unsigned queue, unsigned slot, uint32_t length)
{
    if (queue == TX)
        return;
    const struct packet *packet = &net.packets[RX][slot];
    const struct frame *frame = (const void *)packet->bytes;
    const struct ether_header *ether = (const void *)packet->bytes;
    size_t size = length - sizeof packet->header, tag = ntohs(ether->ether_type) == VLAN_TAG ? 4 : 0;
    frame = (const void *)(packet->bytes + tag);
    if (length < sizeof packet->header + sizeof *frame || length > sizeof *packet)
        fault("length", net.came_back + 1, 0, length);
    else if (ntohs(frame->protocol) != PROTOCOL)
        ; /* what the guest's own network says */
    else if (frame->probe != 0 || tag != 0)
        net.probed |= 1u << frame->probe % PROBES;
    else
        net.lost_back += judge_frame(packet->bytes, size, own_address, net.peer_address, &net.came_back);
    add_room(driver);
    notify(driver, RX);
}

static bool net_is_quiet(const struct driver *driver)
{
    return driver->queues[TX].under_way == 0 && frames_there() == 0;
}

/* What was on its way to the driver may be lost; none of it is waited for. */
static void net_stopped(void)
{
    net.given_up_back = net.sent_back;
}

static void forget_frames(const struct driver *driver)
{
    net.given_up = net.sent;
    net_stopped();
    (void)driver;
}

/* Sends a frame of each kind of probe. What arrived is known when the last one has. */
static void send_probes(void)
{
    static uint64_t words[ROOM / 8];
    uint8_t *bytes = (void *)words;
    net.probed = 0;
    for (unsigned index = 1; index < PROBES; index++) {
        size_t tag = probes[index].vlan != 0 ? 4 : 0;
        uint16_t tagged[2] = {htons(VLAN_TAG), htons(probes[index].vlan)};
        fill_frame((void *)(bytes + tag), probes[index].to, net.peer_address, 0);
        memmove(bytes, bytes + tag, 12);
        if (tag != 0)
            memcpy(bytes + 12, tagged, tag);
        ((struct frame *)(bytes + tag))->probe = (uint16_t)index;
        if (send(other_end, bytes, 60 + tag, 0) < 0)
            err(2, "cannot send");
    }
}

static bool probes_are_over(void)
{
    return net.probed >> (PROBES - 1) & 1;
}

static void net_figures(void)
{
    printf("\"sent\":%" PRIu64 ",\"received\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"lost_back\":%" PRIu64, net.sent,
           net.came_back - net.lost_back, net.lost, net.lost_back);
}

static const struct load net_load = {
    .name = "net",
    .features = BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_CTRL_VQ) |
                BIT(VIRTIO_NET_F_CTRL_RX) | BIT(VIRTIO_NET_F_CTRL_VLAN) | BIT(VIRTIO_NET_F_CTRL_MAC_ADDR),
    .queues = 3,
    .lay_out = lay_out_net,
    .begin = begin_net,
    .add = add_frame,
    .tell = tell_net,
    .feed = feed_net,
    .take = take_packet,
    .quiet = net_is_quiet,
    .forget = forget_frames,
    .stopped = net_stopped,
    .figures = net_figures,
};
