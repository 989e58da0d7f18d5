#!/usr/bin/env bash
# Builds deltamapper's image from the checkout on this node, and gives it to k3s. As root; takes a few minutes the first time.
set -euo pipefail

checkout=$(readlink -f "$(dirname "$0")/../..")
version=$(sed -nE 's/^appVersion: *//p' "$checkout/deploy/helm/deltamapper/Chart.yaml")

# (containerd calls an image without a registry docker.io/library's.)
image=docker.io/library/deltamapper:$version
podman build --file "$checkout/deploy/Dockerfile" --tag "$image" "$checkout"
podman save "$image" | k3s ctr images import -
