"""The chart: each template with each switch, strictly valid, and saying what the programs understand."""

from __future__ import annotations

import functools
import json
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError, lint
from pydantic import BaseModel

from plaudit import events, probe
from plaudit.events.kafka import _COMPACTED, _MAX_BATCH_BYTES, _SHORT, _SPREAD
from plaudit.events.kafka_security import KafkaSecurity
from plaudit.settings import parse
from tests.helm import crds, settings_schema
from tests.helm.conftest import (
    CHART,
    NAMESPACE,
    RELEASE,
    Document,
    Render,
    container,
    documents,
    merged,
    one,
    workloads,
)
from tests.helm.switches import MISTAKES, MUTUAL, SWITCHES, TLS

# The oldest that Chart.yaml names, and the newest that the schemas know.
VERSIONS = ("1.30", "1.37")

each_switch = pytest.mark.parametrize("switch", SWITCHES)


@pytest.fixture(scope="module", autouse=True)
def schemas_are_read_once() -> Iterator[None]:
    """kubernetes-validate reads a file of some megabytes for every document."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            kubernetes_validate.utils, "schema_contents", functools.cache(kubernetes_validate.utils.schema_contents)
        )
        yield


@functools.cache
def _valid(document: str) -> None:
    read = json.loads(document)
    if not crds.check(read):
        for version in VERSIONS:
            kubernetes_validate.validate(read, version, strict=True)


def _flags(workload: Document) -> dict[str, str]:
    arguments = [argument for argument in container(workload)["args"] if argument.startswith("--")]
    return {name: value for name, _, value in (argument.partition("=") for argument in arguments)}


@each_switch
def test_every_document_is_valid_with_each_switch(render: Render, switch: str) -> None:
    found = render(SWITCHES[switch])
    names = [(document["kind"], document["metadata"]["name"]) for document in found]
    assert len(names) == len(set(names))
    for document in found:
        _valid(json.dumps(document))


def test_the_check_sees_mistakes(render: Render) -> None:
    server = one(render(), "StatefulSet", "plaudit-server")
    with pytest.raises(kubernetes_validate.ValidationError, match="imagez"):
        kubernetes_validate.validate(merged(server, {"spec.template.spec.imagez": 1}), VERSIONS[0], strict=True)
    monitor = one(render({"monitoring.podMonitor.enabled": True}), "PodMonitor", "plaudit")
    with pytest.raises(jsonschema.ValidationError, match="endpoints"):
        crds.check(merged(monitor, {"spec.endpoints": []}))


@pytest.mark.parametrize("switch", [name for name in SWITCHES if name != "plain"])
def test_each_switch_does_something(render: Render, switch: str) -> None:
    assert render(SWITCHES[switch]) != render()


def test_each_template_renders_something(chart: Chart, plain: dict[str, Any]) -> None:
    empty = {template["name"] for template in chart.templates if not template["name"].endswith(".tpl")}
    for switch in SWITCHES.values():
        rendered = chart.render(merged(plain, switch), name=RELEASE, namespace=NAMESPACE)
        empty -= {name.removeprefix("plaudit/") for name, text in rendered.items() if text.strip()}
    assert not empty


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_value_is_named(chart: Chart, plain: dict[str, Any], mistake: str) -> None:
    changes, says = MISTAKES[mistake]
    values = merged(plain, changes)
    with pytest.raises(HelmError) as caught:
        _rendered(chart, values)
    assert says in str(caught.value).replace("'", "/").replace("//", "/") or says in str(caught.value)


def _rendered(chart: Chart, values: dict[str, Any]) -> list[Document]:
    chart.validate_schema(values)
    return documents(chart.render(values, name=RELEASE, namespace=NAMESPACE))


def test_helm_finds_nothing_to_complain_of(plain: dict[str, Any]) -> None:
    report = lint(CHART, plain, strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if "icon" not in message["error"]] == []


# What the values say, and the schema of it


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_the_schema_knows_all_values_and_no_others(chart: Chart) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def leaves(node: dict[str, Any], path: str = "") -> Iterator[str]:
        for name, value in node["properties"].items():
            if value.get("properties"):
                assert value["additionalProperties"] is False, path + name
                yield from leaves(value, f"{path}{name}.")
            elif path + name != "global":
                yield f"{path}{name}"

    default = chart.values
    assert set(leaves(schema)) == {
        path if not path.startswith("monitoring.dashboards.labels.") else "monitoring.dashboards.labels"
        for path in _leaves(default)
    }


def test_every_value_is_explained() -> None:
    """By a comment above it, above the group that it is in, or above the one before it in a group of two or three."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    unexplained = []
    for number, line in enumerate(lines):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        depth = len(line) - len(line.lstrip())
        above = number - 1
        while above >= 0 and (len(lines[above]) - len(lines[above].lstrip()) >= depth) and lines[above].strip():
            if lines[above].lstrip().startswith("#"):
                break
            above -= 1
        nested = line.rstrip().endswith(":")
        if not lines[above].lstrip().startswith("#") and not nested and not lines[above].rstrip().endswith(":"):
            unexplained.append(line)
    assert unexplained == []


@pytest.mark.parametrize("program", settings_schema.PROGRAMS)
def test_the_schema_has_the_programs_own_settings(program: str) -> None:
    """`python -m tests.helm.settings_schema` brings it up to date."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["definitions"][f"{program}Settings"] == settings_schema.described(program)


# What the programs are told


@each_switch
def test_the_programs_understand_what_they_are_told(render: Render, switch: str) -> None:
    for component, workload in workloads(render(SWITCHES[switch])).items():
        settings: type[BaseModel] = settings_schema.settings_of(component)
        arguments = container(workload)["args"]
        if component == "learner" and "-m" in arguments:
            assert arguments[arguments.index("-m") + 1] == "plaudit_learner.app"
            arguments = arguments[arguments.index("-m") + 2 :]
        parse(settings, component, arguments)  # type: ignore[type-var]


def test_the_gateway_asks_each_server_by_itself(render: Render) -> None:
    """A service of the usual kind deals out connections, of which a gateway has one."""
    found = render(SWITCHES["TLS by cert-manager"])
    host, _, port = _flags(workloads(found)["gateway"])["--server"].rpartition(":")
    service = one(found, "Service", host.removesuffix(f".{NAMESPACE}.svc"))
    assert (service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]) == ("None", int(port))
    certificate = one(found, "Certificate", "plaudit-server")
    control = _flags(workloads(found)["gateway"])["--control"].rpartition(":")[0]
    assert {host, control, "plaudit-server.chat.svc", "chat.example.org"} <= set(certificate["spec"]["dnsNames"])


def test_settings_become_flags(render: Render) -> None:
    flags = _flags(workloads(render(SWITCHES["server's settings"]))["server"])
    assert flags["--kv-cache-bytes"] == "8589934592"
    assert flags["--default-temperature"] == "0.5"
    assert json.loads(flags["--aspects"]) == ["quality", "tone"]


def test_the_event_log_is_as_the_values_say(render: Render) -> None:
    def url(switch: str) -> str:
        return _flags(workloads(render(SWITCHES[switch]))["server"])["--event-log"]

    assert url("plain") == "kafka://kafka:9092?security=PLAINTEXT"
    assert url("strimzi") == (
        "kafka://plaudit-kafka-kafka-bootstrap:9093?security=SSL&ca=/etc/plaudit/kafka/ca.crt"
        "&certificate=/etc/plaudit/kafka/client.crt&key=/etc/plaudit/kafka/client.key"
    )
    for switch in SWITCHES:
        given = url(switch)
        if switch == "kafka by SASL and TLS":
            assert "k0:9093,k1:9093?" in given
            assert "&prefix=shop.&" in given
        query = dict(parse_qsl(urlsplit(given).query, strict_parsing=True))
        query.pop("prefix", None)
        security = KafkaSecurity.from_query(query)  # what the programs make of it
        if switch == "kafka by SASL and TLS":
            assert (security.mechanism, security.username) == ("SCRAM-SHA-512", "a user & more")


def test_topics_are_those_of_the_programs(render: Render) -> None:
    found = render(SWITCHES["strimzi, told more"])
    topics = {each["spec"]["topicName"]: each["spec"] for each in found if each["kind"] == "KafkaTopic"}
    assert set(topics) == {f"shop.{name}" for name in events.TOPICS}
    for name, spec in topics.items():
        plain = name.removeprefix("shop.")
        config = {name: str(value) for name, value in spec["config"].items()}
        assert config.pop("cleanup.policy") == ("compact" if plain in _COMPACTED else "delete")
        assert config.pop("max.message.bytes") == str(_MAX_BATCH_BYTES)
        assert config == (
            _SHORT if plain == events.PROGRESS else {} if plain in _COMPACTED else {"retention.ms": "604800000"}
        )
        assert spec["partitions"] == (6 if plain in _SPREAD else 1)
    user = one(found, "KafkaUser", "plaudit-programs")
    assert user["spec"]["authorization"]["acls"][0]["resource"]["name"] == "shop.plaudit."


# What must agree


@each_switch
def test_the_grace_period_is_longer_than_the_drain(render: Render, switch: str) -> None:
    found = workloads(render(SWITCHES[switch]))
    for component in {"server", "gateway"} & set(found):
        pod = found[component]["spec"]["template"]["spec"]
        drain = int(_flags(found[component])["--drain-seconds"])
        pre_stop = container(found[component])["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] >= pre_stop + drain + 5


def test_the_drain_is_what_the_values_say(render: Render) -> None:
    server = workloads(render(SWITCHES["drain"]))["server"]
    assert _flags(server)["--drain-seconds"] == "240"
    assert server["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 15 + 240 + 25


@each_switch
def test_pods_are_restricted(render: Render, switch: str) -> None:
    """Kubernetes' restricted pod security standard."""
    for workload in workloads(render(SWITCHES[switch])).values():
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        own = container(workload)["securityContext"]
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
        for volume in pod.get("volumes", []):
            assert set(volume) - {"name"} <= allowed | {"secret"}


@each_switch
def test_paths_are_mounted_and_volumes_are_there(render: Render, switch: str) -> None:
    for component, workload in workloads(render(SWITCHES[switch])).items():
        pod = workload["spec"]["template"]["spec"]
        claims = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])]
        volumes = [volume["name"] for volume in pod["volumes"]] + claims
        mounts = {mount["mountPath"]: mount for mount in container(workload)["volumeMounts"]}
        assert sorted(volumes) == sorted(mount["name"] for mount in mounts.values()), component
        said = " ".join(container(workload)["args"]).replace("&", " ").replace("=", " ").split()
        probes = [
            container(workload)[name] for name in ("readinessProbe", "startupProbe") if name in container(workload)
        ]
        for each in probes:
            said += " ".join(each.get("exec", {}).get("command", [])).replace("=", " ").split()
        for path in [word for word in said if word.startswith(("/etc/", "/var/", "/models"))]:
            assert any(path == mount or path.startswith(f"{mount}/") for mount in mounts), path


@each_switch
def test_what_names_something_names_what_is_there(render: Render, switch: str) -> None:
    found = render(SWITCHES[switch])
    pods = {component: each["spec"]["template"] for component, each in workloads(found).items()}
    accounts = {each["metadata"]["name"] for each in found if each["kind"] == "ServiceAccount"}
    assert accounts == {pod["spec"]["serviceAccountName"] for pod in pods.values()}

    def selected(labels: dict[str, str]) -> list[Document]:
        return [pod for pod in pods.values() if labels.items() <= pod["metadata"]["labels"].items()]

    def ports(pod: Document) -> set[str]:
        return {port["name"] for port in pod["spec"]["containers"][0]["ports"]}

    for document in found:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            (pod,) = selected(spec["selector"])
            assert {port["targetPort"] for port in spec["ports"]} <= ports(pod)
        elif document["kind"] == "PodDisruptionBudget":
            assert len(selected(spec["selector"]["matchLabels"])) == 1
        elif document["kind"] == "PodMonitor":
            monitored = selected(spec["selector"]["matchLabels"])
            assert len(monitored) == len(pods)
            assert all("metrics" in ports(pod) for pod in monitored)
        elif document["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = spec["scaleTargetRef"]
            assert "replicas" not in one(found, target["kind"], target["name"])["spec"]
        elif document["kind"] == "Ingress":
            backend = spec["rules"][0]["http"]["paths"][0]["backend"]["service"]
            assert backend["port"]["name"] in {
                p["name"] for p in one(found, "Service", backend["name"])["spec"]["ports"]
            }
        elif document["kind"] == "NetworkPolicy":
            (pod,) = selected(spec["podSelector"]["matchLabels"])
            assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} <= ports(pod)
        elif document["kind"] == "StatefulSet":
            assert one(found, "Service", spec["serviceName"])["spec"]["clusterIP"] == "None"


def test_there_is_one_learner_at_most(render: Render) -> None:
    learner = workloads(render())["learner"]
    assert (learner["kind"], learner["spec"]["replicas"]) == ("StatefulSet", 1)
    assert learner["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] == ["ReadWriteOnce"]
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert "replicas" not in schema["properties"]["learner"]["properties"]


def test_the_control_plane_has_a_service_of_its_own(render: Render) -> None:
    found = render({"server.service.type": "LoadBalancer"})
    for document in found:
        if document["kind"] == "Service" and document["metadata"]["name"] != "plaudit-control":
            assert "control" not in [port["targetPort"] for port in document["spec"]["ports"]]
    assert one(found, "Service", "plaudit-control")["spec"]["type"] == "ClusterIP"


def test_threads_are_as_many_as_the_container_may_use_unless_told_otherwise(render: Render) -> None:
    def environment(changes: dict[str, Any]) -> dict[str, Any]:
        given = container(workloads(render(changes))["server"])["env"]
        assert len({each["name"] for each in given}) == len(given)
        return {each["name"]: each.get("value", each.get("valueFrom")) for each in given}

    plain = environment({})
    assert plain["OMP_NUM_THREADS"] == {"resourceFieldRef": {"resource": "limits.cpu"}}
    assert plain["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment({"server.device": "gpu"})
    told = environment({"server.extraEnv": [{"name": "OMP_NUM_THREADS", "value": "3"}]})
    assert told["OMP_NUM_THREADS"] == "3"


def test_probes_are_of_grpc_health_with_tls_and_without(render: Render) -> None:
    plain = container(workloads(render())["server"])
    assert plain["readinessProbe"]["grpc"] == {"port": 50051, "service": ""}
    assert plain["livenessProbe"]["grpc"]["service"] == "plaudit.v1.FeedbackService"
    for switch, mutual in ((TLS, False), (MUTUAL, True)):
        command = container(workloads(render(switch))["server"])["readinessProbe"]["exec"]["command"]
        assert command[:3] == ["python", "-m", "plaudit.probe"]
        assert ("--key=/etc/plaudit/tls/tls.key" in command) == mutual
        assert probe.main(command[3:]) == 1  # it reads its arguments, and finds nothing wrong but the files


def test_servers_keep_what_they_acknowledged_unless_told_otherwise(render: Render) -> None:
    server = workloads(render())["server"]
    assert server["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert workloads(render(SWITCHES["servers without volumes"]))["server"]["kind"] == "Deployment"


def test_a_network_policy_closes_what_it_does_not_open(render: Render) -> None:
    server = one(render(SWITCHES["network policies, told more"]), "NetworkPolicy", "plaudit-server")
    by_port = {rule["ports"][0]["port"]: rule.get("from") for rule in server["spec"]["ingress"]}
    assert set(by_port) == {"grpc", "control", "metrics"}
    assert all(by_port.values())
    closed = one(render({"networkPolicy.enabled": True, "gateway.enabled": False}), "NetworkPolicy", "plaudit-server")
    rules = {rule["ports"][0]["port"]: rule.get("from", []) for rule in closed["spec"]["ingress"]}
    assert set(rules) == {"grpc", "control"}
    assert [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in rules["control"]] == [
        "server"
    ]
    learner = one(render(SWITCHES["network policies"]), "NetworkPolicy", "plaudit-learner")
    assert learner["spec"]["ingress"] == []


def test_the_values_in_the_runbook_render(chart: Chart) -> None:
    page = (CHART.parents[1] / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"^ *```yaml\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    found = _rendered(chart, yaml.safe_load(textwrap.dedent(block)))
    assert {"StatefulSet", "Certificate", "PodMonitor"} <= {document["kind"] for document in found}
    assert {"plaudit-server", "plaudit-learner"} <= {document["metadata"]["name"] for document in found}


# Rules and dashboards are other people's files


def test_rules_and_dashboards_are_taken_as_they_are(tmp_path: Path, plain: dict[str, Any]) -> None:
    copy = tmp_path / "plaudit"
    shutil.copytree(CHART, copy)
    for directory in ("rules", "dashboards"):
        shutil.rmtree(copy / directory, ignore_errors=True)
        (copy / directory).mkdir()
    rule = {
        "alert": "A",
        "expr": "up == 0",
        "labels": {"severity": "warning"},
        "annotations": {"summary": "{{ $value }}"},
    }
    groups = {"groups": [{"name": "g", "rules": [rule]}]}
    (copy / "rules" / "serving.yaml").write_text(f"# a comment\n{yaml.safe_dump(groups)}")
    panel = {"title": "Serving {{x}}", "panels": [{"expr": 'a{b="c"} | "\\n"'}]}
    (copy / "dashboards" / "serving.json").write_text(json.dumps(panel, indent=2))
    with Chart.load(copy) as chart:
        values = merged(plain, {**SWITCHES["rules"], **SWITCHES["dashboards"]})
        found = documents(chart.render(values, name=RELEASE, namespace=NAMESPACE))
    made = one(found, "PrometheusRule", "plaudit-serving")
    assert made["spec"] == groups
    assert crds.check(made)
    dashboard = one(found, "ConfigMap", "plaudit-dashboard-serving")
    assert json.loads(dashboard["data"]["plaudit-serving.json"]) == panel
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_all_rules_and_dashboards_are_there(render: Render) -> None:
    found = render({**SWITCHES["rules"], **SWITCHES["dashboards"]})
    kinds = [document["kind"] for document in found]
    assert kinds.count("PrometheusRule") == len([*CHART.glob("rules/*.yaml")])
    assert kinds.count("ConfigMap") == len([*CHART.glob("dashboards/*.json")])


def test_alerts_link_to_where_the_runbook_can_be_read(render: Render) -> None:
    for switch, base in (
        ("rules", "docs/operations.md"),
        ("rules with links", "https://wiki.example.org/operations.md"),
    ):
        rules = [d for d in render(SWITCHES[switch]) if d["kind"] == "PrometheusRule"]
        alerts = [rule for d in rules for group in d["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
        assert len(alerts) > 20
        for alert in alerts:
            assert alert["annotations"]["runbook_url"] == f"{base}#{alert['alert'].lower()}"
