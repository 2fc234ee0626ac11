// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/* A driver for block devices that does nothing but say how large they are: something to try the loop with. */
#include <linux/module.h>
#include <linux/virtio.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

static int capacity_probe(struct virtio_device *device)
{
	u64 sectors;

	virtio_cread(device, struct virtio_blk_config, capacity, &sectors);
	dev_info(&device->dev, "capacity: %llu sectors\n", sectors);
	return 0;
}

static void capacity_remove(struct virtio_device *device)
{
	virtio_reset_device(device);
}

static const struct virtio_device_id capacity_ids[] = {
	{ VIRTIO_ID_BLOCK, VIRTIO_DEV_ANY_ID },
	{ 0 },
};

static struct virtio_driver capacity_driver = {
	.driver.name = "capacity",
	.id_table = capacity_ids,
	.probe = capacity_probe,
	.remove = capacity_remove,
};
module_virtio_driver(capacity_driver);

MODULE_DESCRIPTION("Says how large a virtio block device is");
MODULE_LICENSE("Dual BSD/GPL");
