{{/* What all names begin with: the release's name, unless it is overridden. */}}
{{- define "deltamapper.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that select pods: they must not change in the life of a release. */}}
{{- define "deltamapper.selector" -}}
app.kubernetes.io/name: deltamapper
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .driver }}
csi-driver: {{ . }}
{{- end }}
{{- end -}}

{{- define "deltamapper.labels" -}}
{{ include "deltamapper.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image of ours or the sidecar's: repository and digest, or tag. */}}
{{- define "deltamapper.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end -}}
{{- end -}}

{{/* The agent's configuration: what the chart sets, and agent.config over it. */}}
{{- define "deltamapper.agentConfig" -}}
{{- $tls := dict "certificate" "/etc/deltamapper/tls/tls.crt" "key" "/etc/deltamapper/tls/tls.key" "ca" "/etc/deltamapper/tls/ca.crt" "clientName" .Values.certificates.routerName -}}
{{- $ours := dict
    "listen" (list "unix:///run/deltamapper/agent.sock" "tcp://0.0.0.0:50051")
    "tls" $tls
    "monitoring" "tcp://0.0.0.0:8081"
    "live" true
    "admin" false
    "catalog" "/var/lib/deltamapper/catalog.sqlite"
    "logLevel" .Values.agent.logLevel
-}}
{{- if eq .Values.agent.lvm "nsenter" -}}
{{- $_ := set $ours "lvmCommand" (list "nsenter" "-m" "-u" "-i" "-n" "-p" "-t" "1" "/sbin/lvm") -}}
{{- else if eq .Values.agent.lvm "chroot" -}}
{{- $_ := set $ours "lvmCommand" (list "chroot" "/host" "/sbin/lvm") -}}
{{- end -}}
{{- toYaml (mergeOverwrite $ours (deepCopy .Values.agent.config)) -}}
{{- end -}}

{{/* A router's configuration, of `.driver` (an entry of `drivers`): what the chart sets, router.config over it, the driver's own config over both. */}}
{{- define "deltamapper.routerConfig" -}}
{{- $tls := dict "certificate" "/etc/deltamapper/tls/tls.crt" "key" "/etc/deltamapper/tls/tls.key" "ca" "/etc/deltamapper/tls/ca.crt" "agentName" .root.Values.certificates.agentName -}}
{{- $agents := dict "namespace" .root.Release.Namespace "service" (printf "%s-agent" (include "deltamapper.name" .root)) "port" "grpc" -}}
{{- $ours := dict
    "driverName" .driver.driverName
    "listen" (list "unix:///run/deltamapper/csi.sock")
    "tls" $tls
    "kubernetes" (dict "driver" .driver.kind "agents" $agents)
    "monitoring" "tcp://0.0.0.0:8081"
    "logLevel" .root.Values.router.logLevel
-}}
{{- toYaml (mergeOverwrite $ours (deepCopy .root.Values.router.config) (deepCopy (default dict .driver.config))) -}}
{{- end -}}

{{- define "deltamapper.issuerRef" -}}
{{- if .Values.certificates.certManager.issuerRef -}}
{{- toYaml .Values.certificates.certManager.issuerRef -}}
{{- else -}}
kind: Issuer
name: {{ include "deltamapper.name" . }}-authority
{{- end -}}
{{- end -}}

{{/* The names by which `.id`'s router is reached inside the cluster. */}}
{{- define "deltamapper.routerHost" -}}
{{ include "deltamapper.name" .root }}-router-{{ .id }}.{{ .root.Release.Namespace }}.svc
{{- end -}}

{{/* Rules for the objects that `.driver`'s router reads: a list, or nothing. Those of Kubernetes and of snapshots are in rbac.yaml. */}}
{{- define "deltamapper.driverObjects" -}}
{{- $kind := .driver.kind -}}
{{- if eq $kind "topolvm" -}}
- apiGroups: [{{ ternary "topolvm.cybozu.com" "topolvm.io" (eq .driver.driverName "topolvm.cybozu.com") }}]
  resources: [logicalvolumes]
  verbs: [list, watch]
{{- else if eq $kind "openebs-lvm" -}}
- apiGroups: [local.openebs.io]
  resources: [lvmsnapshots]
  verbs: [list, watch]
{{- else if eq $kind "deckhouse" -}}
- apiGroups: [storage.deckhouse.io]
  resources: [lvmlogicalvolumesnapshots]
  verbs: [list, watch]
{{- end -}}
{{- end -}}
