#!/bin/bash
# The first process inside the kernel lab. boot.ts makes a job folder on the host, puts a link to this file into it as `init`,
# and this script leaves the job's output and exit status there. The root file system is the host's own, so nothing that exists
# there is covered or written: what must be fresh lives on a tmpfs under /run.
#
# The job folder holds: command and environment (NUL-separated), folder (where to run), lab (the unpacked packages;
# nothing where they are the root itself).
JOB=$(dirname "$0")
LAB=$(<"$JOB/lab")
: >"$JOB/started"
while IFS= read -r -d '' pair; do export "${pair?}"; done <"$JOB/environment"
export HOME=/run/home TMPDIR=/run/tmp LANG=C.UTF-8 DELTAMAPPER_LAB="$LAB"

box() { busybox "$@"; }

box mount -t proc proc /proc
box mount -t sysfs sys /sys
box mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm /dev/mapper /run/lock/lvm /run/tmp /run/home /run/mnt /run/lvm /run/lib/modules
box mount -t devpts devpts /dev/pts
box mount -t tmpfs shm /dev/shm
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -sf "/proc/self/${link#*:}" "/dev/${link%%:*}"; done
box ip link set lo up
# Node's use of io_uring corrupts the memory of user-mode Linux. (Kernels before 6.6 cannot forbid it, nor does it happen there.)
if [ -e /proc/sys/kernel/io_uring_disabled ]; then echo 2 >/proc/sys/kernel/io_uring_disabled; fi
echo lab >/proc/sys/kernel/hostname

# The kernel asks for modules by itself (a dm target, a file system): it finds them through this wrapper.
ln -s "$LAB/usr/lib/uml/modules/$(uname -r)" /run/lib/modules/
# (kmod goes by the name it is called as; its package's own link for that is absolute, so it points out of the lab.)
printf '#!/bin/bash\nexport LD_LIBRARY_PATH=%q\nexec -a modprobe %q -d /run "$@"\n' \
  "$LD_LIBRARY_PATH" "$(type -P kmod)" >/run/modprobe
chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
/run/modprobe loop
/run/modprobe dm-thin-pool

# There is no udev inside: libdevmapper and LVM make their device nodes themselves.
export DM_DISABLE_UDEV=1 LVM_SYSTEM_DIR=/run/lvm
cat >/run/lvm/lvm.conf <<'LVM'
devices { dir="/dev" scan=["/dev"] use_devicesfile=0 filter=["a|/dev/ubd.*|","a|/dev/loop.*|","r|.*|"] types=["ubd",16] }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { locking_dir="/run/lock/lvm" use_lvmpolld=0 }
backup { backup=0 archive=0 }
LVM

mapfile -d '' -t command <"$JOB/command"
cd "$(<"$JOB/folder")" || exit 1
"${command[@]}" </dev/null >"$JOB/stdout" 2>"$JOB/stderr"
status=$?

# Results written to the host through memory maps must be there before the host reads them. Only that file system is synced, and
# with a limit: a test may leave a suspended device behind, on which a sync waits for good.
box timeout 5 sync -f "$JOB"
echo "$status" >"$JOB/status.new" && mv "$JOB/status.new" "$JOB/status"
box poweroff -n -f
