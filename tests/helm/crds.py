"""What is known here of custom resources: strict schemas of the fields that the chart uses, after their projects' docs.

The projects' own definitions come with their operators, and no package here carries them. So these catch a misspelt or
misplaced field, and not what an operator would refuse for another reason.
"""

from __future__ import annotations

from typing import Any

import jsonschema

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
SWITCH = {"type": "boolean"}
LABELS = {"type": "object", "additionalProperties": TEXT}
ANYTHING = {"type": "object"}


def obj(required: str, optional: str = "", **fields: Any) -> dict[str, Any]:
    """An object with exactly these fields; names without a schema of their own in `fields` are texts."""
    names = [*required.split(), *optional.split()]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": {name: fields.get(name, TEXT) for name in names},
    }


def items(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": schema}


_ISSUER = obj("name kind group")
_RULE = obj("expr", "alert record for keep_firing_for labels annotations", labels=LABELS, annotations=LABELS, expr=TEXT)
_ACL = obj("resource operations", resource=obj("type", "name patternType"), operations=items(TEXT))

SPECS: dict[tuple[str, str], dict[str, Any]] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): obj(
        "namespaceSelector selector podMetricsEndpoints",
        namespaceSelector=obj("matchNames", matchNames=items(TEXT)),
        selector=obj("matchLabels", matchLabels=LABELS),
        podMetricsEndpoints=items(obj("port interval")),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): obj(
        "groups", groups=items(obj("name rules", "interval limit labels", rules=items(_RULE), labels=LABELS))
    ),
    ("cert-manager.io/v1", "Certificate"): obj(
        "secretName commonName dnsNames usages privateKey duration renewBefore issuerRef",
        dnsNames=items(TEXT),
        usages=items({"enum": ["digital signature", "server auth", "client auth"]}),
        privateKey=obj("algorithm size rotationPolicy", size=COUNT),
        issuerRef=_ISSUER,
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): obj(
        "scaleTargetRef minReplicaCount maxReplicaCount pollingInterval fallback advanced triggers",
        scaleTargetRef=obj("apiVersion kind name"),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        fallback=obj("failureThreshold replicas behavior", failureThreshold=COUNT, replicas=COUNT),
        advanced=obj("horizontalPodAutoscalerConfig", horizontalPodAutoscalerConfig=obj("behavior", behavior=ANYTHING)),
        triggers=items(obj("type metadata", metadata=LABELS)),
    ),
}
_KAFKA: dict[str, dict[str, Any]] = {
    "KafkaNodePool": obj(
        "replicas roles storage",
        "resources",
        replicas=COUNT,
        roles=items({"enum": ["controller", "broker"]}),
        storage=obj(
            "type volumes",
            volumes=items(
                obj(
                    "id type size deleteClaim kraftMetadata",
                    "class",
                    id={"type": "integer"},
                    deleteClaim=SWITCH,
                )
            ),
        ),
        resources=ANYTHING,
    ),
    "Kafka": obj(
        "kafka entityOperator",
        kafka=obj(
            "listeners authorization config",
            "version",
            listeners=items(
                obj("name port type tls authentication", port=COUNT, tls=SWITCH, authentication=obj("type"))
            ),
            authorization=obj("type"),
            config=ANYTHING,
        ),
        entityOperator=obj("topicOperator userOperator", topicOperator=ANYTHING, userOperator=ANYTHING),
    ),
    "KafkaTopic": obj("topicName partitions replicas config", partitions=COUNT, replicas=COUNT, config=ANYTHING),
    "KafkaUser": obj(
        "authentication authorization",
        authentication=obj("type"),
        authorization=obj("type acls", acls=items(_ACL)),
    ),
}
for _version in ("kafka.strimzi.io/v1", "kafka.strimzi.io/v1beta2"):
    SPECS.update({(_version, kind): spec for kind, spec in _KAFKA.items()})

_DOCUMENT = obj(
    "apiVersion kind metadata spec",
    metadata=obj("name labels", "annotations", labels=LABELS, annotations=LABELS),
    spec=ANYTHING,
)


def check(document: dict[str, Any]) -> bool:
    """Whether it is a custom resource; raises jsonschema.ValidationError if it is one and wrong."""
    spec = SPECS.get((document["apiVersion"], document["kind"]))
    if spec is None:
        return False
    jsonschema.validate(document, _DOCUMENT)
    jsonschema.validate(document["spec"], spec)
    return True
