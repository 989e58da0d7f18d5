#!/usr/bin/env bash
# A node's storage, all of it on one blank disk: a volume group with a thin pool (for TopoLVM), and a plain volume whose writes dm-era tracks.
#
#   storage.sh [DISK]      as root; without DISK, the only disk that holds nothing
#
# Makes, unless it is there: volume group `lab`, thin pool `pool0` in it (blocks of 64 KiB), volumes `tracked` and `tracked_era`,
# and the era device /dev/mapper/lab-tracked-era over them. To be run again after each boot: device-mapper keeps no table over one, and era
# devices are nobody's but ours. Other names, and how large, by the variables below.
set -euo pipefail

group=${LAB_GROUP:-lab} pool=${LAB_POOL:-pool0} disk=${1:-}
pool_share=${LAB_POOL_SHARE:-60%VG} tracked_share=${LAB_TRACKED_SHARE:-20%VG}
block_sectors=128

fail() {
  echo "storage.sh: $*" >&2
  exit 1
}

# Whole disks without partitions, signatures or anybody who uses them.
blank_disks() {
  local name type
  lsblk --nodeps --noheadings --paths --output NAME,TYPE | while read -r name type; do
    [ "$type" = disk ] && [ "$(lsblk --noheadings --output NAME "$name" | wc -l)" -eq 1 ] && is_blank "$name" && echo "$name"
  done || true
}

is_blank() {
  [ -z "$(wipefs --no-act --parsable "$1" 2>/dev/null)" ] && [ "$(blockdev --getsize64 "$1" 2>/dev/null || echo 0)" -gt 0 ]
}

volume_is_there() {
  lvs --noheadings "$group/$1" >/dev/null 2>&1
}

if ! vgs --noheadings "$group" >/dev/null 2>&1; then
  if [ -z "$disk" ]; then
    mapfile -t blank < <(blank_disks)
    [ ${#blank[@]} -eq 1 ] || fail "which disk? Blank ones are: ${blank[*]:-none}"
    disk=${blank[0]}
  fi
  [ -b "$disk" ] || fail "$disk is no block device"
  is_blank "$disk" || fail "$disk holds something: $(wipefs --no-act --noheadings "$disk" | head -1)"
  vgcreate --quiet --yes --physicalextentsize 4m "$group" "$disk"
fi
vgchange --quiet --activate y "$group" >/dev/null

volume_is_there "$pool" ||
  lvcreate --quiet --yes --type thin-pool --extents "$pool_share" --chunksize 64k --name "$pool" "$group"
# 1 MiB, and 10 bytes for each block of 64 KiB: good for 200 GiB. A new volume begins with zeros, which the kernel formats.
volume_is_there tracked_era ||
  lvcreate --quiet --yes --wipesignatures y --zero y --size 32m --name tracked_era "$group"
volume_is_there tracked ||
  lvcreate --quiet --yes --wipesignatures y --zero y --extents "$tracked_share" --name tracked "$group"

# dm-era marks only the first block of a discard. So a device of our own is between, to which none can be sent: its limit has to be 0
# before the era device is made, which takes it over.
if ! dmsetup info "$group-tracked-guard" >/dev/null 2>&1; then
  sectors=$(blockdev --getsz "/dev/$group/tracked")
  dmsetup create "$group-tracked-guard" --table "0 $sectors linear /dev/$group/tracked 0"
fi
if ! dmsetup info "$group-tracked-era" >/dev/null 2>&1; then
  guard=$(dmsetup info --columns --noheadings --options minor "$group-tracked-guard")
  echo 0 >"/sys/block/dm-${guard// /}/queue/discard_max_bytes"
  sectors=$(blockdev --getsz "/dev/mapper/$group-tracked-guard")
  modprobe dm-era 2>/dev/null || true
  dmsetup create "$group-tracked-era" \
    --table "0 $sectors era /dev/$group/tracked_era /dev/mapper/$group-tracked-guard $block_sectors"
fi
echo "storage.sh: volume group $group is ready" >&2
