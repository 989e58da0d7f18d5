#!/usr/bin/env bash
# Prints the object by which backup software finds a driver's snapshot metadata, with the authority's certificate in it.
#
#   deploy/certificates/snapshot-metadata-service.sh [OPTIONS] DRIVER CSI-DRIVER-NAME | kubectl apply -f -
#
# as in `snapshot-metadata-service.sh topolvm topolvm.io`.
#
#   --authority FILE    the authority's certificate (default: ca.crt of the secret NAME-router-DRIVER-tls, asked for with kubectl)
#   --namespace NAME    default: deltamapper
#   --name NAME         what all names begin with; fullnameOverride, or Helm's release (default: deltamapper)
#   --release NAME      Helm's release, where it is another (default: NAME)
#   --port N            of the router's Service (default: 6443)
#   --require-base-snapshot-for-delta true|false
#                       whether a base must exist for a delta (default: not said; CRDs of v1.1.0 have no such field)
#
# A Helm release of that name takes the object for its own, and so leaves it as it is until it is given an authority itself.
# Nobody else keeps the certificate in that object up to date: when the authority is replaced, run this again.
set -euo pipefail

fail() {
  echo "snapshot-metadata-service.sh: $*" >&2
  exit 2
}

authority='' namespace=deltamapper name=deltamapper release='' port=6443 requires_base=''
words=()
while [ $# -gt 0 ]; do
  case $1 in
    --authority | --namespace | --name | --release | --port)
      [ $# -ge 2 ] || fail "$1 wants a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --require-base-snapshot-for-delta)
      [[ ${2-} =~ ^(true|false)$ ]] || fail "$1 wants true or false"
      requires_base=$2
      shift 2
      ;;
    --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit ;;
    -*) fail "there is no option $1" ;;
    *) words+=("$1") && shift ;;
  esac
done
[ ${#words[@]} -eq 2 ] || fail 'give the driver and the name that it has in CSI, as in: topolvm topolvm.io'
driver=${words[0]} csi_name=${words[1]} service=$name-router-${words[0]}

if [ -n "$authority" ]; then
  certificate=$(base64 -w 0 "$authority")
else
  certificate=$(kubectl get secret "$service-tls" --namespace "$namespace" --output 'jsonpath={.data.ca\.crt}')
  [ -n "$certificate" ] || fail "the secret $service-tls in $namespace has no ca.crt: give the authority's certificate with --authority"
fi

cat <<OBJECT
apiVersion: cbt.storage.k8s.io/v1beta1
kind: SnapshotMetadataService
metadata:
  name: $csi_name
  labels:
    app.kubernetes.io/name: deltamapper
    app.kubernetes.io/instance: ${release:-$name}
    app.kubernetes.io/component: router
    csi-driver: $driver
    app.kubernetes.io/managed-by: Helm
  annotations:
    helm.sh/resource-policy: keep
    meta.helm.sh/release-name: ${release:-$name}
    meta.helm.sh/release-namespace: $namespace
spec:
  address: $service.$namespace.svc:$port
  audience: $csi_name
  caCert: $certificate
OBJECT
[ -z "$requires_base" ] || echo "  requireBaseSnapshotForDelta: $requires_base"
