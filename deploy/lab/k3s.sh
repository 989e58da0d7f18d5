#!/usr/bin/env bash
# k3s on a node. As root:
#
#   k3s.sh server ADDRESS TOKEN
#   k3s.sh agent ADDRESS TOKEN SERVER-ADDRESS
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
# shellcheck source=deploy/lab/versions.env
. "$here/versions.env"

role=$1 address=$2 token=$3 server=${4:-}
if systemctl is-active --quiet k3s k3s-agent; then
  echo 'k3s.sh: it is running' >&2
  exit 0
fi

installer=$(mktemp)
trap 'rm -f "$installer"' EXIT
curl --fail --silent --show-error --location https://get.k3s.io --output "$installer"
export INSTALL_K3S_CHANNEL=$K3S_CHANNEL K3S_TOKEN=$token
# A VM's first interface is the same NAT for all; the second is theirs.
interface=$(ip -oneline -4 address show | awk -v ip="$address/" 'index($4, ip) == 1 { print $2 }')
case $role in
  server)
    sh "$installer" server --node-ip "$address" --flannel-iface "$interface" --write-kubeconfig-mode 640 \
      --disable traefik --disable servicelb --disable local-storage
    ;;
  agent)
    K3S_URL=https://$server:6443 sh "$installer" agent --node-ip "$address" --flannel-iface "$interface"
    ;;
  *)
    echo "k3s.sh: $role is neither server nor agent" >&2
    exit 2
    ;;
esac
