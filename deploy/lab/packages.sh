#!/usr/bin/env bash
# What a node needs of Debian: LVM, the thin provisioning tools, and podman to build the image with. As root.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet
apt-get install --quiet --yes --no-install-recommends \
  lvm2 thin-provisioning-tools ca-certificates curl podman crun netavark aardvark-dns iptables nftables

# The modules, now and after a boot.
printf '%s\n' dm-thin-pool dm-era dm-snapshot >/etc/modules-load.d/deltamapper-lab.conf
for module in dm-thin-pool dm-era dm-snapshot; do modprobe "$module"; done
