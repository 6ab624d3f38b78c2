{{- /* A file of deploy/envoy with the names that services have in this release: {root, file}. */ -}}
{{- define "paceline.envoy" -}}
{{- $text := .root.Files.Get (printf "envoy/%s" .file) -}}
{{- if not $text }}{{ fail (printf "envoy/%s is missing: package the chart from its own folder" .file) }}{{ end -}}
{{- $model := index .root.Values.models 0 -}}
{{- $text = $text | replace "address: gateway," (printf "address: %s," (include "paceline.name" (dict "root" .root "component" "gateway"))) -}}
{{- range $service := list "verifier" "draft" -}}
{{- $text = $text | replace (printf "address: %s," $service) (printf "address: %s," (include "paceline.name" (dict "root" $.root "component" (printf "%s-%s" $service $model.name)))) -}}
{{- end -}}
{{- with .root.Values.telemetry.collector -}}
{{- $url := urlParse . -}}
{{- $host := splitList ":" $url.host -}}
{{- $text = $text | replace "address: otel-collector, port_value: 4317" (printf "address: %s, port_value: %s" (index $host 0) (index $host 1)) -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{- /* The container of the mesh's proxy in a gateway's pod: it starts before the gateway and ends behind it. */ -}}
{{- define "paceline.mesh" -}}
- name: mesh
  image: {{ .Values.edge.image }}
  restartPolicy: Always
  workingDir: /etc/envoy
  command: [envoy, -c, mesh.yaml]
  ports:
    - {name: mesh-metrics, containerPort: 9902}
  resources: {{ toJson .Values.mesh.resources }}
  securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
  startupProbe:
    httpGet: {path: /ready, port: mesh-metrics}
    periodSeconds: 1
    failureThreshold: 60
  volumeMounts:
    {{- range $file := list "mesh.yaml" "secret-identity.yaml" "secret-verifier.yaml" "secret-draft.yaml" }}
    - {name: mesh, mountPath: /etc/envoy/{{ $file }}, subPath: {{ $file }}, readOnly: true}
    {{- end }}
    - {name: certificates, mountPath: /etc/envoy/certs/identity, readOnly: true}
{{- end -}}

{{- define "paceline.mesh-volumes" -}}
- {name: mesh, configMap: {name: {{ include "paceline.name" (dict "root" . "component" "mesh") }}}}
{{- end -}}
