{{/* gRPC health of a service: by the kubelet itself, or, since it speaks no TLS, by the program's own probe. */}}
{{- define "plaudit.healthOf" -}}
{{- if eq .root.Values.tls.mode "terminated" -}}
grpc:
  port: 50051
  service: {{ .service | quote }}
{{- else -}}
exec:
  command:
    - python
    - -m
    - plaudit.probe
    - 127.0.0.1:50051
    - "--service={{ .service }}"
    - --ca=/etc/plaudit/tls/ca.crt
    - "--name={{ include "plaudit.serverHost" .root }}"
    {{- if .root.Values.tls.clientCa.secretName }}
    - --certificate=/etc/plaudit/tls/tls.crt
    - --key=/etc/plaudit/tls/tls.key
    {{- end }}
{{- end -}}
{{- end -}}
