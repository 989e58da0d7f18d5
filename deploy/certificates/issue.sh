#!/usr/bin/env bash
# Certificates without cert-manager: makes an authority (once) and certificates for agents, routers and sidecars, and prints them as Secrets.
#
#   deploy/certificates/issue.sh [OPTIONS] DRIVER… | kubectl apply -f -
#
# DRIVER is the driver's name in the chart's `drivers`, or its overlay's folder: topolvm, openebs, harvester …
#
#   --authority DIR     where the authority is kept: ca.crt, ca.key (default: ./deltamapper-authority; made if it is not there).
#                       A folder of its own, since it is put there as a whole.
#                       Whoever has ca.key can read the metadata of all snapshots: keep it off the cluster, and back it up.
#   --namespace NAME    default: deltamapper
#   --name NAME         what all names begin with; Helm's release (default: deltamapper)
#   --days N            how long certificates are valid (default: 365; the authority's: ten years)
#   --agent-name NAME, --router-name NAME
#                       the names in the certificates by which agents and routers know each other (default: agent.deltamapper,
#                       router.deltamapper)
#
# Run it again, and apply what it prints, before they expire (there is an alert for that): agents, routers and sidecars take new
# certificates without a restart. Keys are made in a temporary folder and are nowhere else than in what is printed.
set -euo pipefail

fail() {
  echo "issue.sh: $*" >&2
  exit 2
}

authority=deltamapper-authority namespace=deltamapper name=deltamapper days=365
agent_name=agent.deltamapper router_name=router.deltamapper
drivers=()
while [ $# -gt 0 ]; do
  case $1 in
    --authority | --namespace | --name | --days | --agent-name | --router-name)
      [ $# -ge 2 ] || fail "$1 wants a value"
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"
      shift 2
      ;;
    --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit ;;
    -*) fail "there is no option $1" ;;
    *)
      [[ $1 =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || fail "$1 is no driver's name"
      drivers+=("$1")
      shift
      ;;
  esac
done
[ ${#drivers[@]} -gt 0 ] || fail 'which driver? For instance: issue.sh topolvm'
[[ $days =~ ^[1-9][0-9]{0,4}$ ]] || fail "--days wants a number, not $days"

umask 077
work=$(mktemp -d) new=
trap 'rm -rf -- "$work" ${new:+"$new"}' EXIT
new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

# The authority appears whole, by one rename, so that two who run this at once end up with the same one.
if [ ! -e "$authority/ca.key" ]; then
  [ ! -e "$authority/ca.crt" ] || [ -e "$authority/ca.key" ] || fail "$authority has ca.crt, but no ca.key to make certificates with"
  mkdir -p "$(dirname -- "$authority")"
  new=$(mktemp -d -- "$authority.XXXXXX")
  openssl req -x509 "${new_key[@]}" -keyout "$new/ca.key" -out "$new/ca.crt" -days 3650 \
    -subj "/CN=$name authority" -addext 'basicConstraints=critical,CA:TRUE,pathlen:0' \
    -addext 'keyUsage=critical,keyCertSign,cRLSign' 2>"$work/log" || { cat "$work/log" >&2 && exit 1; }
  # Fails where the folder is there with something in it: what somebody else has just made, say.
  if mv -T -- "$new" "$authority" 2>"$work/log"; then
    echo "issue.sh: made a new authority in $authority" >&2
  elif [ ! -e "$authority/ca.key" ]; then
    fail "an authority cannot be put into $authority: $(cat "$work/log"); give --authority a folder of its own"
  fi
fi

# secret NAME USAGE DNS-NAME…
secret() {
  local secret=$1 usage=$2 names
  shift 2
  printf -v names 'DNS:%s,' "$@"
  if ! {
    openssl req -new "${new_key[@]}" -keyout "$work/key" -out "$work/request" -subj / &&
      openssl x509 -req -in "$work/request" -CA "$authority/ca.crt" -CAkey "$authority/ca.key" -days "$days" \
        -set_serial "0x$(openssl rand -hex 16)" -out "$work/certificate" -extfile <(
          printf '%s\n' "subjectAltName=critical,${names%,}" "extendedKeyUsage=$usage" 'basicConstraints=critical,CA:FALSE' \
            'keyUsage=critical,digitalSignature'
        )
  } 2>"$work/log"; then
    cat "$work/log" >&2
    exit 1
  fi
  cat <<SECRET
---
apiVersion: v1
kind: Secret
metadata:
  name: $secret
  namespace: $namespace
type: kubernetes.io/tls
data:
  tls.crt: $(base64 -w 0 "$work/certificate")
  tls.key: $(base64 -w 0 "$work/key")
  ca.crt: $(base64 -w 0 "$authority/ca.crt")
SECRET
}

secret "$name-agent-tls" serverAuth "$agent_name"
secret "$name-router-tls" clientAuth "$router_name"
for driver in "${drivers[@]}"; do
  service=$name-router-$driver
  secret "$service-tls" serverAuth "$service.$namespace.svc" "$service.$namespace.svc.cluster.local" "$service.$namespace" "$service"
done
