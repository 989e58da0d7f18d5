#!/usr/bin/env bash
# What runs in the cluster, by the node that serves it: cert-manager, snapshot controller, TopoLVM on each node's thin pool, and deltamapper with the
# CSI sidecar. As root. Waits for nothing but definitions; pods start as nodes join. ready.sh waits.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
# shellcheck source=deploy/lab/versions.env
. "$here/versions.env"
export KUBECONFIG=/etc/rancher/k3s/k3s.yaml

apply() {
  kubectl apply --server-side --force-conflicts "$@"
}

apply --filename "https://github.com/cert-manager/cert-manager/releases/download/$CERT_MANAGER_VERSION/cert-manager.yaml"
snapshotter=https://github.com/kubernetes-csi/external-snapshotter
apply --kustomize "$snapshotter/client/config/crd?ref=$SNAPSHOTTER_VERSION"
apply --kustomize "$snapshotter/deploy/kubernetes/snapshot-controller?ref=$SNAPSHOTTER_VERSION"
metadata=https://raw.githubusercontent.com/kubernetes-csi/external-snapshot-metadata
apply --filename "$metadata/$SNAPSHOT_METADATA_VERSION/client/config/crd/cbt.storage.k8s.io_snapshotmetadataservices.yaml"
kubectl wait --for condition=established --timeout 120s crd/certificates.cert-manager.io \
  crd/volumesnapshots.snapshot.storage.k8s.io crd/snapshotmetadataservices.cbt.storage.k8s.io
# Its webhook has to answer before it takes certificates.
kubectl --namespace cert-manager wait --for condition=available --timeout 600s deployment --all

# k3s installs charts by itself; its lvmd runs on each node, with the pool that storage.sh has made.
sed "s/@TOPOLVM_CHART_VERSION@/$TOPOLVM_CHART_VERSION/" "$here/topolvm.yaml" | apply --filename -
apply --kustomize "$here/../overlays/topolvm"
