"""One function as virtio sees it: its status, its features, and queues side by side."""
