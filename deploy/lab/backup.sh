#!/usr/bin/env bash
# Backs up a snapshot of the demo's volume as backup software would: asks the Kubernetes API which blocks to copy, copies them from a volume that is
# restored from the snapshot, and compares all of it. As root, on the node that serves the cluster:
#
#   backup.sh SNAPSHOT [BASE]     with BASE, a VolumeSnapshot that was backed up before, only what has changed since
#
# The copy is /backup/data.img in the volume `backup`; what was copied, /backup/SNAPSHOT.ndjson.
set -euo pipefail

[ $# -ge 1 ] || { echo 'which snapshot? backup.sh SNAPSHOT [BASE]' >&2 && exit 2; }
snapshot=$1 base=${2:-}
export KUBECONFIG=${KUBECONFIG:-/etc/rancher/k3s/k3s.yaml}
size=$(kubectl --namespace demo get volumesnapshot "$snapshot" --output 'jsonpath={.status.restoreSize}')
[ -n "$size" ] || { echo "backup.sh: the snapshot $snapshot is not ready" >&2 && exit 1; }

kubectl apply --filename - <<OBJECTS
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: restored-$snapshot
  namespace: demo
spec:
  storageClassName: topolvm-thin
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  resources: { requests: { storage: $size } }
  dataSource: { apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: $snapshot }
---
apiVersion: v1
kind: Pod
metadata:
  name: backup-$snapshot
  namespace: demo
spec:
  serviceAccountName: backup
  restartPolicy: Never
  # TopoLVM restores a snapshot where the snapshot is.
  affinity:
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        - topologyKey: kubernetes.io/hostname
          labelSelector: { matchLabels: { app: writer } }
  containers:
    - name: backup
      image: deltamapper:0.1.0
      imagePullPolicy: IfNotPresent
      command: [sleep, infinity]
      securityContext: { runAsUser: 0 }
      volumeDevices:
        - { name: restored, devicePath: /dev/restored }
      volumeMounts:
        - { name: backup, mountPath: /backup }
  terminationGracePeriodSeconds: 1
  volumes:
    - name: restored
      persistentVolumeClaim: { claimName: restored-$snapshot }
    - name: backup
      persistentVolumeClaim: { claimName: backup }
OBJECTS
kubectl --namespace demo wait --for condition=ready --timeout 300s "pod/backup-$snapshot"

# An answer is used only if it is complete, which the exit status tells: so it goes into a file first.
kubectl --namespace demo exec --stdin "backup-$snapshot" -- bash -s "$snapshot" "$base" <<'BACKUP'
set -euo pipefail
snapshot=$1 base=$2 extents=/backup/$1.ndjson
if [ -n "$base" ]; then
  deltamapper kube delta demo "$snapshot" --base "$base" -o ndjson >"$extents"
else
  deltamapper kube allocated demo "$snapshot" -o ndjson >"$extents"
  rm -f /backup/data.img
fi
truncate --size "$(blockdev --getsize64 /dev/restored)" /backup/data.img
sed -nE 's/^\{"byte_offset":([0-9]+),"size_bytes":([0-9]+)\}$/\1 \2/p' "$extents" | while read -r offset bytes; do
  dd if=/dev/restored of=/backup/data.img bs=1M iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc status=none \
    skip="$offset" count="$bytes" seek="$offset"
done
copied=$(sed -nE 's/.*"size_bytes":([0-9]+)\}$/\1/p' "$extents" | awk '{ sum += $1 } END { print sum + 0 }')
cmp /dev/restored /backup/data.img
echo "backed up $snapshot${base:+ since $base}: $copied bytes copied; the copy is the same, byte for byte"
BACKUP

kubectl --namespace demo delete --wait=false "pod/backup-$snapshot" "persistentvolumeclaim/restored-$snapshot"
