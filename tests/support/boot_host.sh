#!/bin/bash
# Boots a worker host: systemd as process 1 of namespaces of its own, over the root file system $1. What it writes goes
# to $2/changes. Everything ends with this script.
set -euo pipefail
root=$1 state=$2
mkdir -p "$state/changes" "$state/work" "$state/root"

# systemd takes over the control group that it starts in, so it gets one that is empty.
hierarchy=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
group=$hierarchy/worker-host-$$
mkdir "$group"
clean_up() {
  # The last processes leave a moment after process 1.
  for _ in {1..50}; do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && return
    sleep 0.1
  done
}
trap clean_up EXIT
# unshare leaves SIGTERM to its child, and process 1 takes it for something else. Killed, it takes everything along.
trap 'kill -KILL "$child" 2>/dev/null' TERM INT

# shellcheck disable=SC2016
bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" \
  unshare --mount --pid --ipc --uts --cgroup --fork --kill-child=KILL bash -euc '
    root=$1 state=$2 merged=$2/root
    mount -t overlay overlay -o "lowerdir=$root,upperdir=$state/changes,workdir=$state/work" "$merged"
    mount -t proc proc "$merged/proc"
    mount -t tmpfs tmpfs "$merged/run"
    mount -t tmpfs tmpfs "$merged/dev"
    for device in null zero full random urandom tty; do
      touch "$merged/dev/$device"
      mount --bind "/dev/$device" "$merged/dev/$device"
    done
    mkdir "$merged/dev/shm"
    ln -s /proc/self/fd "$merged/dev/fd"
    mount -t tmpfs tmpfs "$merged/sys"
    mkdir -p "$merged/sys/fs/cgroup"
    mount -t cgroup2 cgroup2 "$merged/sys/fs/cgroup"
    hostname worker
    exec env -i container=worker-host PATH=/usr/sbin:/usr/bin:/sbin:/bin \
      chroot "$merged" /lib/systemd/systemd --system --show-status=false --log-target=null
  ' bash "$root" "$state" &
child=$!
# A signal ends the first wait early.
wait "$child" || true
wait "$child" 2>/dev/null || true
