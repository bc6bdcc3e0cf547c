{{/* Names, labels, and what several workloads have in common. */}}

{{- define "plaudit.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Arguments of these two: dict "root" $ "component" "server" */}}
{{- define "plaudit.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "plaudit.labels" -}}
{{ include "plaudit.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "plaudit.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
plaudit-{{ .component }}:{{ $tag }}{{ with .device }}-{{ . }}{{ end }}
{{- end -}}

{{/* What every pod says of itself: dict "root" $ "component" "server" "values" .Values.server */}}
{{- define "plaudit.pod" -}}
serviceAccountName: {{ include "plaudit.fullname" .root }}-{{ .component }}
automountServiceAccountToken: false
enableServiceLinks: false # their variables begin with PLAUDIT_, as those of the programs' settings do
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "plaudit.spread" -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "plaudit.selector" $ | nindent 8 }}
  {{- end }}
{{- end -}}

{{- define "plaudit.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "plaudit.resources" -}}
{{- $resources := deepCopy .values.resources -}}
{{- if and (eq .values.device "gpu") .values.gpus -}}
{{- $resources = mustMergeOverwrite $resources (dict "limits" (dict "nvidia.com/gpu" (int .values.gpus))) -}}
{{- end -}}
{{- with $resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* --name=value for each setting; true and false are flags, lists go as JSON. */}}
{{- define "plaudit.settings" -}}
{{- range $name, $value := . }}
{{- if kindIs "bool" $value }}
- {{ printf "--%s%s" (ternary "" "no-" $value) $name | quote }}
{{- else if kindIs "slice" $value }}
- {{ printf "--%s=%s" $name (toJson $value) | quote }}
{{- else if kindIs "float64" $value }}
- {{ printf "--%s=%s" $name (ternary (printf "%.0f" $value) (toString $value) (eq (floor $value) $value)) | quote }}
{{- else }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "plaudit.programArgs" -}}
{{- with .Values.logs.format }}
- "--log-format={{ . }}"
{{- end }}
{{- with .Values.logs.level }}
- "--log-level={{ . }}"
{{- end }}
{{- if .Values.traces.enabled }}
- "--traces"
{{- end }}
{{- end -}}

{{- define "plaudit.env" -}}
- name: HOME
  value: /tmp
- name: XDG_CACHE_HOME
  value: /tmp/cache
{{- if .root.Values.traces.enabled }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ required "traces.endpoint: give OTLP's address, for instance http://otel-collector.observability:4318" .root.Values.traces.endpoint | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "service.namespace=%s" .root.Release.Namespace | quote }}
{{- end }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Threads of programs that compute on CPUs: as many as the container may use (of a pod without a limit, the node's), and
not bound to cores, since every pod would bind itself to the same ones. extraEnv may say otherwise. */}}
{{- define "plaudit.threads" -}}
{{- $given := list -}}
{{- range .values.extraEnv }}{{ $given = append $given .name }}{{ end -}}
{{- if not (has "OMP_NUM_THREADS" $given) }}
- name: OMP_NUM_THREADS
  valueFrom:
    resourceFieldRef:
      resource: limits.cpu
{{- end }}
{{- if and (eq .component "server") (eq .device "cpu") (not (has "VLLM_CPU_OMP_THREADS_BIND" $given)) }}
- name: VLLM_CPU_OMP_THREADS_BIND
  value: nobind
{{- end }}
{{- end -}}

{{/* ---- Kafka ---- */}}

{{- define "plaudit.kafka.cluster" -}}
{{ include "plaudit.fullname" . }}-kafka
{{- end -}}

{{- define "plaudit.kafka.user" -}}
{{ include "plaudit.fullname" . }}-programs
{{- end -}}

{{/* The settings in force, as JSON: the user's own, or what Strimzi's operator makes. */}}
{{- define "plaudit.kafka" -}}
{{- if .Values.kafka.strimzi.enabled -}}
{{- if .Values.kafka.bootstrapServers -}}
{{- fail "kafka.bootstrapServers and kafka.strimzi.enabled: give one of them" -}}
{{- end -}}
{{- $cluster := include "plaudit.kafka.cluster" . -}}
{{- $user := include "plaudit.kafka.user" . -}}
{{- dict
  "servers" (list (printf "%s-kafka-bootstrap:9093" $cluster))
  "security" "SSL"
  "ca" (dict "secretName" (printf "%s-cluster-ca-cert" $cluster) "key" "ca.crt")
  "client" (dict "secretName" $user "certificateKey" "user.crt" "privateKeyKey" "user.key")
  | toJson -}}
{{- else -}}
{{- if not .Values.kafka.bootstrapServers -}}
{{- fail "kafka.bootstrapServers: give HOST:PORT of your brokers, or say kafka.strimzi.enabled=true" -}}
{{- end -}}
{{- $sasl := hasPrefix "SASL_" .Values.kafka.security -}}
{{- $tls := hasSuffix "SSL" .Values.kafka.security -}}
{{- if and $sasl (not .Values.kafka.sasl.secretName) -}}
{{- fail (printf "kafka.sasl.secretName: give the secret with the password, for kafka.security is %s" .Values.kafka.security) -}}
{{- end -}}
{{- if and (not $tls) (or .Values.kafka.ca.secretName .Values.kafka.client.secretName) -}}
{{- fail (printf "kafka.ca and kafka.client: need kafka.security SSL or SASL_SSL, not %s" .Values.kafka.security) -}}
{{- end -}}
{{- dict
  "servers" .Values.kafka.bootstrapServers
  "security" .Values.kafka.security
  "ca" (ternary .Values.kafka.ca (dict "secretName" "") $tls)
  "client" (ternary .Values.kafka.client (dict "secretName" "") $tls)
  "sasl" (ternary .Values.kafka.sasl dict $sasl)
  | toJson -}}
{{- end -}}
{{- end -}}

{{- define "plaudit.eventLog" -}}
{{- $kafka := include "plaudit.kafka" . | fromJson -}}
{{- $query := list (printf "security=%s" $kafka.security) -}}
{{- with .Values.kafka.prefix }}{{ $query = append $query (printf "prefix=%s" (urlquery .)) }}{{ end -}}
{{- if $kafka.ca.secretName }}{{ $query = append $query "ca=/etc/plaudit/kafka/ca.crt" }}{{ end -}}
{{- if $kafka.client.secretName }}{{ $query = append $query "certificate=/etc/plaudit/kafka/client.crt&key=/etc/plaudit/kafka/client.key" }}{{ end -}}
{{- with $kafka.sasl }}{{ $query = append $query (printf "sasl=%s&username=%s&password-file=/etc/plaudit/kafka/password" .mechanism (urlquery .username)) }}{{ end -}}
kafka://{{ join "," $kafka.servers }}?{{ join "&" $query }}
{{- end -}}

{{/* One directory of what the URL names, out of up to three secrets. */}}
{{- define "plaudit.kafkaVolume" -}}
{{- $kafka := include "plaudit.kafka" . | fromJson -}}
{{- if or $kafka.ca.secretName $kafka.client.secretName $kafka.sasl }}
- name: kafka
  projected:
    defaultMode: 0440
    sources:
      {{- if $kafka.ca.secretName }}
      - secret:
          name: {{ $kafka.ca.secretName }}
          items:
            - key: {{ $kafka.ca.key }}
              path: ca.crt
      {{- end }}
      {{- if $kafka.client.secretName }}
      - secret:
          name: {{ $kafka.client.secretName }}
          items:
            - key: {{ $kafka.client.certificateKey }}
              path: client.crt
            - key: {{ $kafka.client.privateKeyKey }}
              path: client.key
      {{- end }}
      {{- with $kafka.sasl }}
      - secret:
          name: {{ .secretName }}
          items:
            - key: {{ .passwordKey }}
              path: password
      {{- end }}
{{- end }}
{{- end -}}

{{- define "plaudit.kafkaMount" -}}
{{- if include "plaudit.kafkaVolume" . }}
- name: kafka
  mountPath: /etc/plaudit/kafka
  readOnly: true
{{- end }}
{{- end -}}

{{/* ---- Model and policy store ---- */}}

{{- define "plaudit.model" -}}
{{- if eq .Values.model.path "smollm2" -}}
smollm2
{{- else -}}
{{- if not .Values.model.existingClaim -}}
{{- fail (printf "model.existingClaim: give the claim that holds %s, or say model.path=smollm2" .Values.model.path) -}}
{{- end -}}
/models/{{ .Values.model.path | trimPrefix "/models/" | trimPrefix "/" }}
{{- end -}}
{{- end -}}

{{- define "plaudit.policyStore" -}}
{{- $store := .Values.policyStore -}}
{{- if and $store.url $store.persistence.enabled -}}
{{- fail "policyStore.url and policyStore.persistence.enabled: give one of them" -}}
{{- else if $store.url -}}
{{ $store.url }}
{{- else if $store.persistence.enabled -}}
/var/lib/plaudit/policies
{{- else -}}
{{- fail "policyStore: give policyStore.url, for instance s3://bucket/plaudit, or say policyStore.persistence.enabled=true" -}}
{{- end -}}
{{- end -}}

{{- define "plaudit.storeClaim" -}}
{{- .Values.policyStore.persistence.existingClaim | default (printf "%s-policies" (include "plaudit.fullname" .)) -}}
{{- end -}}

{{/* Volumes and mounts of what server and learner share: dict "root" $ "writes" true */}}
{{- define "plaudit.sharedVolumes" -}}
{{- include "plaudit.kafkaVolume" .root }}
{{- if .root.Values.model.existingClaim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .root.Values.model.existingClaim }}
    readOnly: true
{{- end }}
{{- if .root.Values.policyStore.persistence.enabled }}
- name: policies
  persistentVolumeClaim:
    claimName: {{ include "plaudit.storeClaim" .root }}
    {{- if not .writes }}
    readOnly: true
    {{- end }}
{{- end }}
- name: tmp
  emptyDir: {}
{{- end -}}

{{- define "plaudit.sharedMounts" -}}
{{- include "plaudit.kafkaMount" .root }}
{{- if .root.Values.model.existingClaim }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- if .root.Values.policyStore.persistence.enabled }}
- name: policies
  mountPath: /var/lib/plaudit/policies
  {{- if not .writes }}
  readOnly: true
  {{- end }}
{{- end }}
- name: state
  mountPath: /var/lib/plaudit/state
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "plaudit.storeEnvFrom" -}}
{{- with .Values.policyStore.secretName }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
{{- end -}}

{{/* ---- TLS ---- */}}

{{- define "plaudit.tls" -}}
{{- $tls := .Values.tls -}}
{{- if not $tls.mode -}}
{{- fail "tls.mode: say secret, certManager, or terminated (something in front of the pods has TLS)" -}}
{{- else if eq $tls.mode "terminated" -}}
{{- if $tls.clientCa.secretName -}}
{{- fail "tls.clientCa: clients show certificates over TLS only; tls.mode is terminated" -}}
{{- else if and .Values.gateway.enabled (not .Values.callers.secretName) -}}
{{- fail "callers.secretName: give one, or gateway.enabled=false: what is in front of the servers knows the gateway and not who asks it, so whoever reaches the gateway could promote and roll back" -}}
{{- end -}}
{{- else if and (eq $tls.mode "secret") (not $tls.secretName) -}}
{{- fail "tls.secretName: give the secret with tls.crt, tls.key and ca.crt, for tls.mode is secret" -}}
{{- else if and (eq $tls.mode "certManager") (not $tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: say who signs, for tls.mode is certManager" -}}
{{- else if not (or .Values.callers.secretName $tls.clientCa.secretName) -}}
{{- fail "callers.secretName or tls.clientCa.secretName: give one, or everybody who reaches the servers may do everything (with something in front that knows its callers, say tls.mode=terminated)" -}}
{{- else if and .Values.gateway.enabled (not .Values.callers.secretName) -}}
{{- fail "callers.secretName: give one, or gateway.enabled=false: without it every certificate may do everything, and the gateway shows one, so whoever reaches the gateway could promote and roll back" -}}
{{- end -}}
{{- if ne $tls.mode "terminated" -}}
{{- $tls.secretName | default (printf "%s-tls" (include "plaudit.fullname" .)) -}}
{{- end -}}
{{- end -}}

{{/* The name by which probes and the gateway expect the servers to be called. */}}
{{- define "plaudit.serverHost" -}}
{{ include "plaudit.fullname" . }}-server.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "plaudit.controlHost" -}}
{{ include "plaudit.fullname" . }}-control.{{ .Release.Namespace }}.svc
{{- end -}}
