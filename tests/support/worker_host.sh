#!/bin/bash
# Makes the root file system of a worker host in the directory $1: a small Debian with systemd and what user data needs.
# It takes a minute, so the result is kept. Whoever comes second waits for it.
set -euo pipefail
root=$1
packages=(awscli ca-certificates curl gpgv passwd python3 systemd systemd-sysv)

exec 9>"$root.lock"
flock 9
if [[ -e $root/complete ]]; then
  exit
fi
rm -rf -- "$root"
# shellcheck source=/dev/null
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
for attempt in 1 2 3; do
  if debootstrap --variant=minbase "$suite" "$root"; then
    break
  fi
  # A mirror may be away for a moment. The second attempt begins anew.
  if ((attempt == 3)); then
    exit 1
  fi
  sleep $((attempt * 10))
  rm -rf -- "$root"
done
# Only apt resolves all dependencies. No service is started in a root that is only being filled.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$root/etc/resolv.conf"
export DEBIAN_FRONTEND=noninteractive
chroot "$root" apt-get update --quiet
chroot "$root" apt-get install --quiet --yes --no-install-recommends "${packages[@]}"
rm "$root/usr/sbin/policy-rc.d"
chroot "$root" apt-get clean
touch "$root/complete"
