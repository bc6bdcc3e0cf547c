"""Every switch of the chart, by name: the values that throw it. The tests go through all of them."""

from __future__ import annotations

from typing import Any

TLS = {"tls.mode": "secret", "tls.secretName": "server-tls", "callers.secretName": "callers"}
CERT_MANAGER = {
    "tls.mode": "certManager",
    "tls.certManager.issuerRef.name": "internal",
    "tls.dnsNames": ["chat.example.org"],
    "callers.secretName": "callers",
}
MUTUAL = {**CERT_MANAGER, "tls.clientCa.secretName": "clients"}
STRIMZI = {"kafka.bootstrapServers": [], "kafka.strimzi.enabled": True}
PEER = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}]
RESOURCES = {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"memory": "16Gi"}}

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "another name": {"fullnameOverride": "talk"},
    "image": {"image.registry": "registry.example.org/plaudit/", "image.tag": "1.2.3", "image.pullPolicy": "Always"},
    "pull secrets": {"image.pullSecrets": ["pull"]},
    "a model of one's own": {"model.path": "llama", "model.existingClaim": "models"},
    "kafka by TLS": {"kafka.security": "SSL", "kafka.ca.secretName": "kafka-ca"},
    "kafka by mutual TLS": {
        "kafka.security": "SSL",
        "kafka.ca.secretName": "kafka-ca",
        "kafka.client.secretName": "kafka-client",
    },
    "kafka by SASL and TLS": {
        "kafka.bootstrapServers": ["k0:9093", "k1:9093"],
        "kafka.security": "SASL_SSL",
        "kafka.ca.secretName": "kafka-ca",
        "kafka.sasl.secretName": "kafka-password",
        "kafka.sasl.username": "a user & more",
        "kafka.prefix": "shop.",
    },
    "kafka by SASL alone": {"kafka.security": "SASL_PLAINTEXT", "kafka.sasl.secretName": "kafka-password"},
    "strimzi": STRIMZI,
    "strimzi, told more": {
        **STRIMZI,
        "kafka.prefix": "shop.",
        "kafka.strimzi.version": "4.1.0",
        "kafka.strimzi.apiVersion": "kafka.strimzi.io/v1beta2",
        "kafka.strimzi.storage.storageClassName": "fast",
        "kafka.strimzi.resources": RESOURCES,
    },
    "store with a secret": {"policyStore.secretName": "s3"},
    "store on a volume": {
        "policyStore.url": "",
        "policyStore.persistence.enabled": True,
        "policyStore.persistence.storageClassName": "nfs",
    },
    "store on a volume that is there": {
        "policyStore.url": "",
        "policyStore.persistence.enabled": True,
        "policyStore.persistence.existingClaim": "versions",
    },
    "TLS by secret": TLS,
    "TLS by cert-manager": CERT_MANAGER,
    "mutual TLS": MUTUAL,
    "mutual TLS without callers": {**MUTUAL, "callers.secretName": "", "gateway.enabled": False},
    "a mesh that knows its callers": {"callers.secretName": "", "gateway.enabled": False},
    "servers without volumes": {"server.state.persistent": False},
    "server on GPUs": {"server.device": "gpu", "server.gpus": 2, "server.resources": RESOURCES},
    "server's settings": {
        "server.settings": {
            "max-running": 64,
            "kv-cache-bytes": 8589934592,
            "default-temperature": 0.5,
            "aspects": ["quality", "tone"],
            "engine": "vllm",
        }
    },
    "HPA": {"server.autoscaling.kind": "hpa"},
    "HPA of a Deployment": {"server.autoscaling.kind": "hpa", "server.state.persistent": False},
    "KEDA": {"server.autoscaling.kind": "keda", "server.autoscaling.prometheusAddress": "http://prometheus:9090"},
    "no budgets": {"server.podDisruptionBudget.enabled": False, "gateway.podDisruptionBudget.enabled": False},
    "load balancer": {"server.service.type": "LoadBalancer", "server.service.annotations": {"lb": "internal"}},
    "drain": {"server.drain.seconds": 240, "server.drain.preStopSeconds": 15, "gateway.drainSeconds": 240},
    "no learner": {"learner.enabled": False},
    "learner in several processes": {"learner.processes": 2, "learner.resources": RESOURCES},
    "learner on a GPU image": {"learner.device": "gpu", "learner.gpus": 1},
    "learner's settings": {"learner.settings": {"votes-per-round": 400, "reward": "quality=1.0,tone=0.5<=1.0"}},
    "no gateway": {"gateway.enabled": False},
    "gateway's own TLS": {"gateway.tls.mode": "secret", "gateway.tls.secretName": "web"},
    "gateway by cert-manager": {
        "gateway.tls.mode": "certManager",
        "gateway.tls.dnsNames": ["chat.example.org"],
        "tls.certManager.issuerRef.name": "public",
    },
    "ingress": {
        "gateway.ingress.enabled": True,
        "gateway.ingress.className": "nginx",
        "gateway.ingress.host": "chat.example.org",
        "gateway.ingress.tlsSecretName": "chat-tls",
        "gateway.ingress.annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
    },
    "gateway shows the loop": {"gateway.observeKey.secretName": "observe"},
    "gateway's settings": {"gateway.settings": {"allow-host": ["chat.example.org"], "max-body-bytes": 65536}},
    "pod monitor": {"monitoring.podMonitor.enabled": True, "monitoring.podMonitor.labels": {"release": "prometheus"}},
    "rules": {"monitoring.prometheusRule.enabled": True},
    "rules with links": {
        "monitoring.prometheusRule.enabled": True,
        "monitoring.prometheusRule.runbook": "https://wiki.example.org/operations.md",
    },
    "dashboards": {"monitoring.dashboards.enabled": True, "monitoring.dashboards.annotations": {"folder": "Plaudit"}},
    "network policies": {"networkPolicy.enabled": True},
    "network policies, told more": {
        "networkPolicy.enabled": True,
        "networkPolicy.clients": PEER,
        "networkPolicy.operators": PEER,
        "networkPolicy.monitoring": PEER,
        "networkPolicy.egress.enabled": True,
        "networkPolicy.egress.to": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 9093}]}],
        **STRIMZI,
    },
    "where pods run": {
        f"{component}.{name}": value
        for component in ("server", "learner", "gateway")
        for name, value in {
            "nodeSelector": {"pool": "models"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "high",
            "podAnnotations": {"note": "a"},
            "extraEnv": [{"name": "VLLM_LOGGING_LEVEL", "value": "ERROR"}],
            "serviceAccount.annotations": {"role": "models"},
        }.items()
    },
    "logs": {"logs.format": "json", "logs.level": "warning"},
    "traces": {"traces.enabled": True, "traces.endpoint": "http://collector:4318"},
    "everything": {
        **MUTUAL,
        **STRIMZI,
        "gateway.ingress.enabled": True,
        "gateway.ingress.host": "chat.example.org",
        "gateway.tls.mode": "certManager",
        "gateway.observeKey.secretName": "observe",
        "policyStore.secretName": "s3",
        "server.device": "gpu",
        "server.autoscaling.kind": "keda",
        "server.autoscaling.prometheusAddress": "http://prometheus:9090",
        "monitoring.podMonitor.enabled": True,
        "monitoring.prometheusRule.enabled": True,
        "monitoring.dashboards.enabled": True,
        "networkPolicy.enabled": True,
        "networkPolicy.monitoring": PEER,
    },
}

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": ({"sever": {}}, "sever"),
    "unknown value inside": ({"server.replica": 2}, "replica"),
    "words for a number": ({"server.replicas": "two"}, "/server/replicas"),
    "unknown setting": ({"server.settings": {"max-runing": 3}}, "max-runing"),
    "setting out of bounds": ({"learner.settings": {"canary-share": 1.5}}, "/learner/settings/canary-share"),
    "setting that is the chart's": ({"server.settings": {"listen": "0.0.0.0:1"}}, "listen"),
    "unknown device": ({"server.device": "tpu"}, "/server/device"),
    "a port too many": ({"server.service.port": 70000}, "/server/service/port"),
    "a size that is none": ({"learner.state.size": "big"}, "/learner/state/size"),
    "a broker without port": ({"kafka.bootstrapServers": ["kafka"]}, "/kafka/bootstrapServers"),
    "no broker": ({"kafka.bootstrapServers": []}, "kafka.bootstrapServers: give HOST:PORT of your brokers"),
    "two clusters": ({"kafka.strimzi.enabled": True}, "kafka.bootstrapServers and kafka.strimzi.enabled: give one"),
    "no password": ({"kafka.security": "SASL_SSL"}, "kafka.sasl.secretName: give the secret with the password"),
    "CA without TLS": ({"kafka.ca.secretName": "ca"}, "kafka.ca and kafka.client: need kafka.security SSL or SASL_SSL"),
    "more copies than brokers": (
        {**STRIMZI, "kafka.strimzi.replicas": 1},
        "kafka.strimzi.replicationFactor (3) must not exceed kafka.strimzi.replicas (1)",
    ),
    "more acknowledgements than copies": (
        {**STRIMZI, "kafka.strimzi.minInsyncReplicas": 4},
        "kafka.strimzi.minInsyncReplicas (4) must not exceed",
    ),
    "no store": ({"policyStore.url": ""}, "policyStore: give policyStore.url"),
    "two stores": ({"policyStore.persistence.enabled": True}, "policyStore.url and policyStore.persistence.enabled"),
    "a volume for one node": (
        {
            "policyStore.url": "",
            "policyStore.persistence.enabled": True,
            "policyStore.persistence.accessModes": ["ReadWriteOnce"],
        },
        "policyStore.persistence.accessModes: several servers need ReadWriteMany",
    ),
    "nothing said of TLS": ({"tls.mode": ""}, "tls.mode: say secret, certManager, or terminated"),
    "TLS without a secret": ({"tls.mode": "secret"}, "tls.secretName: give the secret"),
    "TLS without an issuer": ({"tls.mode": "certManager"}, "tls.certManager.issuerRef.name: say who signs"),
    "open to everybody": ({**TLS, "callers.secretName": ""}, "callers.secretName or tls.clientCa.secretName: give one"),
    "operators by the gateway's certificate": (
        {**MUTUAL, "callers.secretName": ""},
        "callers.secretName: give one, or gateway",
    ),
    "operators by the mesh's word for the gateway": (
        {"callers.secretName": ""},
        "callers.secretName: give one, or gateway",
    ),
    "clients' CA without TLS": ({"tls.clientCa.secretName": "ca"}, "tls.clientCa: clients show certificates over TLS"),
    "a model without volume": ({"model.path": "llama"}, "model.existingClaim: give the claim that holds llama"),
    "least above most": (
        {"server.autoscaling.kind": "hpa", "server.autoscaling.minReplicas": 11},
        "server.autoscaling.minReplicas (11) must not exceed maxReplicas (10)",
    ),
    "KEDA without Prometheus": ({"server.autoscaling.kind": "keda"}, "server.autoscaling.prometheusAddress: say where"),
    "ingress without host": ({"gateway.ingress.enabled": True}, "gateway.ingress.host: say under which name"),
    "gateway's TLS without secret": ({"gateway.tls.mode": "secret"}, "gateway.tls.secretName: give the secret"),
    "traces to nowhere": ({"traces.enabled": True}, "traces.endpoint: give OTLP's address"),
}
