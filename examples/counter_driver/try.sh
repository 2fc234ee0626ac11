# Runs in the guest: the device adds, and an alarm is raised beyond the limit.
set -e
cd /sys/bus/virtio/drivers/counter/virtio*
echo 40 > add
echo 2 > add
echo "sum $(cat sum), alarm $(cat alarm)"
[ "$(cat sum)" = 42 ]
echo 50 > limit
echo 9 > add
echo "sum $(cat sum), alarm $(cat alarm)"
# With SATURATE it goes no further.
[ "$(cat sum) $(cat alarm)" = "50 1" ]
