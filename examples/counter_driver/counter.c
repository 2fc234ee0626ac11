// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/*
 * A driver for the device of examples/counter.py, which adds up the numbers that it is sent.
 *
 * In its folder of sysfs: a number written to "add" is sent, "sum" is what the device answered last, "limit" and
 * "alarm" are its configuration.
 */
#include <linux/completion.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#define VIRTIO_ID_COUNTER 63
#define COUNTER_F_SATURATE 0
#define COUNTER_SECONDS 5

struct counter_config {
	__le64 limit;
	__u8 alarm;
} __packed;

struct counter {
	struct virtqueue *queue;
	struct mutex lock; /* One request at a time. */
	struct completion used;
	bool lost; /* The device still has the request that was given up. */
	__le64 number ____cacheline_aligned;
	__le64 sum ____cacheline_aligned;
};

static void counter_used(struct virtqueue *queue)
{
	struct counter *counter = queue->vdev->priv;
	unsigned int length;

	if (virtqueue_get_buf(queue, &length))
		complete(&counter->used);
}

static ssize_t add_store(struct device *dev, struct device_attribute *attribute, const char *text, size_t size)
{
	struct virtio_device *device = dev_to_virtio(dev);
	struct counter *counter = device->priv;
	struct scatterlist number, sum, *parts[] = { &number, &sum };
	u64 value;
	int error;

	error = kstrtou64(text, 0, &value);
	if (error)
		return error;
	mutex_lock(&counter->lock);
	error = -EIO;
	if (counter->lost)
		goto out;
	counter->number = cpu_to_le64(value);
	sg_init_one(&number, &counter->number, sizeof(counter->number));
	sg_init_one(&sum, &counter->sum, sizeof(counter->sum));
	reinit_completion(&counter->used);
	error = virtqueue_add_sgs(counter->queue, parts, 1, 1, counter, GFP_KERNEL);
	if (error)
		goto out;
	virtqueue_kick(counter->queue);
	if (!wait_for_completion_timeout(&counter->used, COUNTER_SECONDS * HZ)) {
		dev_err(dev, "no answer within %d s\n", COUNTER_SECONDS);
		counter->lost = true;
		error = -ETIMEDOUT;
	}
out:
	mutex_unlock(&counter->lock);
	return error ?: size;
}
static DEVICE_ATTR_WO(add);

static ssize_t sum_show(struct device *dev, struct device_attribute *attribute, char *text)
{
	struct counter *counter = dev_to_virtio(dev)->priv;

	return sysfs_emit(text, "%llu\n", le64_to_cpu(counter->sum));
}
static DEVICE_ATTR_RO(sum);

static ssize_t limit_show(struct device *dev, struct device_attribute *attribute, char *text)
{
	u64 limit;

	virtio_cread_le(dev_to_virtio(dev), struct counter_config, limit, &limit);
	return sysfs_emit(text, "%llu\n", limit);
}

static ssize_t limit_store(struct device *dev, struct device_attribute *attribute, const char *text, size_t size)
{
	u64 limit;
	int error = kstrtou64(text, 0, &limit);

	if (error)
		return error;
	virtio_cwrite_le(dev_to_virtio(dev), struct counter_config, limit, &limit);
	return size;
}
static DEVICE_ATTR_RW(limit);

static ssize_t alarm_show(struct device *dev, struct device_attribute *attribute, char *text)
{
	u8 alarm;

	virtio_cread_le(dev_to_virtio(dev), struct counter_config, alarm, &alarm);
	return sysfs_emit(text, "%u\n", alarm);
}
static DEVICE_ATTR_RO(alarm);

static struct attribute *counter_attrs[] = {
	&dev_attr_add.attr, &dev_attr_sum.attr, &dev_attr_limit.attr, &dev_attr_alarm.attr, NULL,
};
ATTRIBUTE_GROUPS(counter);

static void counter_config_changed(struct virtio_device *device)
{
	u8 alarm;

	virtio_cread_le(device, struct counter_config, alarm, &alarm);
	if (alarm)
		dev_warn(&device->dev, "the sum is beyond the limit\n");
}

static int counter_probe(struct virtio_device *device)
{
	struct counter *counter = kzalloc(sizeof(*counter), GFP_KERNEL);

	if (!counter)
		return -ENOMEM;
	mutex_init(&counter->lock);
	init_completion(&counter->used);
	device->priv = counter;
	counter->queue = virtio_find_single_vq(device, counter_used, "requests");
	if (IS_ERR(counter->queue)) {
		int error = PTR_ERR(counter->queue);

		kfree(counter);
		return error;
	}
	virtio_device_ready(device);
	return 0;
}

static void counter_remove(struct virtio_device *device)
{
	virtio_reset_device(device);
	device->config->del_vqs(device);
	kfree(device->priv);
}

static const unsigned int counter_features[] = { COUNTER_F_SATURATE };

static const struct virtio_device_id counter_ids[] = {
	{ VIRTIO_ID_COUNTER, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, counter_ids);

static struct virtio_driver counter_driver = {
	.driver.name = "counter",
	.driver.dev_groups = counter_groups,
	.feature_table = counter_features,
	.feature_table_size = ARRAY_SIZE(counter_features),
	.id_table = counter_ids,
	.probe = counter_probe,
	.remove = counter_remove,
	.config_changed = counter_config_changed,
};
module_virtio_driver(counter_driver);

MODULE_DESCRIPTION("Adds up numbers on a device that exists nowhere");
MODULE_LICENSE("Dual BSD/GPL");
