#!/usr/bin/env bash
# Waits until all of the lab runs, and tells backup software where to ask. As root, on the node that serves the cluster:
#
#   ready.sh NODES      how many nodes there are to be
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
nodes=${1:-1}
export KUBECONFIG=/etc/rancher/k3s/k3s.yaml

# until_so SECONDS WHAT COMMAND…
until_so() {
  local seconds=$1 what=$2
  shift 2
  echo "waiting for $what" >&2
  for ((i = 0; i < seconds; i += 5)); do
    "$@" && return
    sleep 5
  done
  echo "ready.sh: $what is not there after $seconds s" >&2
  return 1
}

enough_nodes() {
  [ "$(kubectl get nodes --no-headers | grep -c ' Ready')" -ge "$nodes" ]
}

until_so 600 "$nodes nodes" enough_nodes
until_so 600 "TopoLVM's objects" kubectl get crd logicalvolumes.topolvm.io
until_so 600 "TopoLVM's daemons" kubectl --namespace topolvm-system get daemonset/topolvm-lvmd-0
kubectl --namespace topolvm-system rollout status daemonset --timeout 600s
kubectl --namespace deltamapper wait --for condition=ready --timeout 300s certificate --all
kubectl --namespace deltamapper rollout status daemonset/deltamapper-agent --timeout 600s
kubectl --namespace deltamapper rollout status deployment/deltamapper-router-topolvm --timeout 600s
"$here/../certificates/snapshot-metadata-service.sh" topolvm topolvm.io | kubectl apply --filename -
kubectl apply --filename "$here/demo.yaml"
kubectl get nodes,snapshotmetadataservices
