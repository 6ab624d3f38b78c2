{{- define "paceline.name" -}}
{{- printf "%s-%s" .root.Release.Name .component | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "paceline.selector" -}}
app.kubernetes.io/name: paceline
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "paceline.labels" -}}
{{ include "paceline.selector" . }}
paceline.dev/process: {{ .process }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "paceline.image" -}}
{{ .root.Values.image.repository }}-{{ .process }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- /* Stable names of all pods that a StatefulSet may come to have, as gRPC targets: {root, component, max, port}. Those that
are not there cost a question now and then. */ -}}
{{- define "paceline.targets" -}}
{{- $found := list -}}
{{- $name := include "paceline.name" . -}}
{{- range $ordinal := until (int .max) -}}
{{- $found = append $found (printf "%s-%d.%s:%d" $name $ordinal $name (int $.port)) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- /* What every process is told: {root, grace}. */ -}}
{{- define "paceline.common" -}}
server:
  host: "0.0.0.0"
  grace_seconds: {{ .root.Values.graceSeconds }}
  tls: {certificate: /certificates/tls.crt, key: /certificates/tls.key, client_ca: /certificates/ca.crt}
telemetry:
  metrics: prometheus
  prometheus_host: "0.0.0.0"
  {{- with .root.Values.telemetry.collector }}
  traces: otlp
  trace_share: {{ $.root.Values.telemetry.traceShare }}
  otlp_endpoint: {{ . | quote }}
  {{- end }}
{{- end -}}

{{- define "paceline.channels" -}}
channel_tls: {certificate: /certificates/tls.crt, key: /certificates/tls.key, ca: /certificates/ca.crt}
{{- end -}}

{{- /* The pod of a process: {root, process, component, port, metricsPort, settings, pool, secrets, startupSeconds, beside}. */ -}}
{{- define "paceline.pod" -}}
metadata:
  labels:
    {{- include "paceline.labels" . | nindent 4 }}
  annotations:
    # Other settings are another pod.
    paceline.dev/settings: {{ toJson .settings | sha256sum | quote }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ .metricsPort | quote }}
spec:
  serviceAccountName: {{ include "paceline.name" (dict "root" .root "component" .process) }}
  automountServiceAccountToken: false
  # Kubernetes' variables of services, such as PACELINE_GATEWAY_PORT, are told from settings; they are left out all the same.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add .root.Values.graceSeconds 15 }}
  securityContext: {runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets: {{ toJson . }}
  {{- end }}
  {{- with .pool.nodeSelector }}
  nodeSelector: {{ toJson . }}
  {{- end }}
  {{- with .pool.tolerations }}
  tolerations: {{ toJson . }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector: {matchLabels: {app.kubernetes.io/instance: {{ .root.Release.Name }}, app.kubernetes.io/component: {{ .component }}}}
  containers:
    - name: {{ .process }}
      image: {{ include "paceline.image" . }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: [--settings, /etc/paceline/settings.json]
      env:
        # For `paceline health`, which asks the process with its own certificate.
        - {name: PACELINE_ADDRESS, value: "127.0.0.1:{{ .port }}"}
        - {name: PACELINE_CA, value: /certificates/ca.crt}
        - {name: PACELINE_CERT, value: /certificates/tls.crt}
        - {name: PACELINE_CERT_KEY, value: /certificates/tls.key}
        - {name: PACELINE_SERVER_NAME, value: {{ .process }}}
        {{- range $variable, $key := .secrets }}
        - {name: {{ $variable }}, valueFrom: {secretKeyRef: {name: {{ $.root.Values.secrets.name }}, key: {{ $key }}}}}
        {{- end }}
      ports:
        - {name: grpc, containerPort: {{ .port }}}
        - {name: metrics, containerPort: {{ .metricsPort }}}
      resources: {{ toJson .pool.resources }}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      # Weights may take long: nothing else is asked before it has begun to serve.
      startupProbe:
        exec: {command: [paceline, health]}
        periodSeconds: 10
        timeoutSeconds: 8
        failureThreshold: {{ div (.startupSeconds | default 600 | int) 10 }}
      readinessProbe:
        exec: {command: [paceline, health]}
        periodSeconds: 10
        timeoutSeconds: 8
        failureThreshold: 2
      # A process that cannot go on ends by itself. One that is busy, or waits for another, is not ill.
      livenessProbe:
        tcpSocket: {port: grpc}
        periodSeconds: 20
        timeoutSeconds: 5
        failureThreshold: 6
      # Proxies hear that it goes before it says so itself; then SIGTERM drains it.
      lifecycle: {preStop: {sleep: {seconds: 5}}}
      volumeMounts:
        - {name: settings, mountPath: /etc/paceline, readOnly: true}
        - {name: certificates, mountPath: /certificates, readOnly: true}
        - {name: data, mountPath: /var/lib/paceline}
        - {name: tmp, mountPath: /tmp}
        {{- if and .root.Values.modelStorage.claim (has .process (list "gateway" "verifier" "draft")) }}
        - {name: models, mountPath: /models, readOnly: true}
        {{- end }}
  {{- with .beside }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  volumes:
    - {name: settings, configMap: {name: {{ include "paceline.name" . }}}}
    - {name: certificates, secret: {secretName: {{ include "paceline.name" (dict "root" .root "component" .process) }}-tls, defaultMode: 0440}}
    - {name: tmp, emptyDir: {}}
    {{- if not .keepsData }}
    - {name: data, emptyDir: {}}
    {{- end }}
    {{- if and .root.Values.modelStorage.claim (has .process (list "gateway" "verifier" "draft")) }}
    - {name: models, persistentVolumeClaim: {claimName: {{ .root.Values.modelStorage.claim }}, readOnly: true}}
    {{- end }}
    {{- with .volumes }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "paceline.settings" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "paceline.name" . }}
  labels:
    {{- include "paceline.labels" . | nindent 4 }}
data:
  settings.json: {{ .settings | toPrettyJson | quote }}
{{- end -}}

{{- /* Pods with names of their own, found by them: a StatefulSet and its headless Service. Arguments are those of paceline.pod
with replicas and cache. */ -}}
{{- define "paceline.stateful" -}}
{{ include "paceline.settings" . }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ include "paceline.name" . }}
  labels:
    {{- include "paceline.labels" . | nindent 4 }}
spec:
  clusterIP: None
  # Whoever loads its model is found too: gateways and proxies ask each of them how it is.
  publishNotReadyAddresses: true
  selector:
    {{- include "paceline.selector" . | nindent 4 }}
  ports:
    - {name: grpc, port: {{ .port }}, targetPort: grpc, appProtocol: grpc}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ include "paceline.name" . }}
  labels:
    {{- include "paceline.labels" . | nindent 4 }}
spec:
  serviceName: {{ include "paceline.name" . }}
  {{- if not (and .scales .root.Values.keda.enabled) }}
  replicas: {{ .replicas }}
  {{- end }}
  podManagementPolicy: Parallel
  selector:
    matchLabels:
      {{- include "paceline.selector" . | nindent 6 }}
  template:
    {{- include "paceline.pod" (merge (dict "keepsData" true) .) | nindent 4 }}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .cache.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources: {requests: {storage: {{ .cache.size }}}}
---
{{ include "paceline.budget" . }}
{{- end -}}

{{- define "paceline.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "paceline.name" . }}
  labels:
    {{- include "paceline.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  # One that does not serve anyway keeps nobody from draining its node.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "paceline.selector" . | nindent 6 }}
{{- end -}}
