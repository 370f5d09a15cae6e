#!/bin/sh
# Finds the release tool beside itself and runs it; everything else is in there. `./uninstall.sh -h` explains the flags.
set -eu

release=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
case $(uname -s)-$(uname -m) in
  Linux-x86_64 | Linux-amd64) tool=$release/bin/spacelift-bundle ;;
  Linux-aarch64 | Linux-arm64) tool=$release/bin/spacelift-bundle-aarch64 ;;
  *)
    echo "uninstall.sh: this release has tools for Linux on x86_64 and aarch64, and this is $(uname -s) on $(uname -m);" \
      "run it on such a machine: any that reaches AWS will do" >&2
    exit 69
    ;;
esac
if [ ! -x "$tool" ]; then
  echo "uninstall.sh: there is no $tool that can be run; unpack the whole release archive again" >&2
  exit 66
fi
exec "$tool" uninstall --release "$release" "$@"
