"""The manifests: valid, no more rights than needed, and of one mind with the program."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from broker.acl import ROLES as USERS
from broker.keys import BATCHES, GROUPS, TASKS, Keys
from daemon.config import Config
from daemon.config_fields import ROLES
from tests.deploy.tools import DEPLOY, accepted

BASE, KEDA = DEPLOY / "kubernetes" / "base", DEPLOY / "kubernetes" / "keda"
FILES = sorted([*BASE.glob("*.yaml"), *KEDA.glob("*.yaml")])
#: The oldest and the newest Kubernetes that the manifests are held to.
VERSIONS = ("1.30", "1.37")
SETTINGS = tomllib.loads((BASE / "vnp.toml").read_text())

Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def of_kind(*kinds: str) -> list[Manifest]:
    return [doc for path in FILES for doc in documents(path) if doc["kind"] in kinds]


def named(documents: list[Manifest]) -> Any:
    """The same for parametrize, each under its name."""
    return [pytest.param(doc, id=doc["metadata"]["name"]) for doc in documents]


DEPLOYMENTS = of_kind("Deployment")
PODS = of_kind("Deployment", "StatefulSet")
SCALED = of_kind("ScaledObject")


def pod(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Manifest) -> Manifest:
    [only] = pod(workload)["containers"]
    found: Manifest = only
    return found


def role(workload: Manifest) -> str:
    return str(workload["metadata"]["name"]).removeprefix("vnp-")


# -- valid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_schema(path: Path, version: str) -> None:
    for document in documents(path):
        if not document["apiVersion"].startswith(("keda.sh/", "kustomize.config.k8s.io/")):
            kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_knows_a_misspelt_field() -> None:
    [deployment] = documents(BASE / "packer.yaml")
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 45
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("folder", [BASE, KEDA], ids=lambda path: path.name)
def test_the_kustomization_names_every_file_but_the_example(folder: Path) -> None:
    [kustomization] = documents(folder / "kustomization.yaml")
    files = {path.name for path in folder.glob("*.yaml")}
    listed = {name for name in kustomization["resources"] if name != "../base"}
    assert listed == files - {"kustomization.yaml", "secrets.example.yaml"}


def test_there_is_a_deployment_of_every_role() -> None:
    assert {role(deployment) for deployment in DEPLOYMENTS} == set(ROLES)
    for deployment in DEPLOYMENTS:
        assert container(deployment)["command"] == ["vnpd", "--roles", role(deployment)]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_planner_and_writer_have_somebody_who_stands_by() -> None:
    replicas = {role(deployment): deployment["spec"]["replicas"] for deployment in DEPLOYMENTS}
    assert replicas["planner"] == replicas["writer"] == 2
    budgets = {role(budget): budget["spec"] for budget in of_kind("PodDisruptionBudget")}
    assert set(budgets) == {"planner", "writer"}
    for name, budget in budgets.items():
        assert budget["maxUnavailable"] < replicas[name]


def test_what_pods_refer_to_exists() -> None:
    secrets = {doc["metadata"]["name"]: set(doc["stringData"]) for doc in of_kind("Secret")}
    for workload in PODS:
        for volume in pod(workload)["volumes"]:
            if "secret" in volume:
                keys = {item["key"] for item in volume["secret"].get("items", [])}
                assert keys <= secrets[volume["secret"]["secretName"]]
        mounts = {mount["name"] for mount in container(workload)["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod(workload)["volumes"]}
    for deployment in DEPLOYMENTS:
        [variable] = container(deployment)["env"]
        assert variable["name"] == "VNP_REDIS_URL"
        reference = variable["valueFrom"]["secretKeyRef"]
        assert reference["key"] == role(deployment)
        assert reference["key"] in secrets[reference["name"]]


# -- no more rights than needed --------------------------------------------------------------------


@pytest.mark.parametrize("workload", named(PODS))
def test_pods_are_restricted(workload: Manifest) -> None:
    security = pod(workload)["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(workload)["automountServiceAccountToken"] is False
    own = container(workload)["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    resources = container(workload)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    for volume in pod(workload)["volumes"]:
        assert "hostPath" not in volume
        assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""})


@pytest.mark.parametrize("workload", named(PODS))
def test_service_links_do_not_become_settings(workload: Manifest) -> None:
    # Kubernetes would set VNP_REDIS_PORT for the service vnp-redis, and vnpd refuse to start
    assert pod(workload)["enableServiceLinks"] is False


def test_only_gpu_workers_get_a_gpu() -> None:
    gpus = {
        role(deployment): container(deployment)["resources"]["limits"].get("nvidia.com/gpu")
        for deployment in DEPLOYMENTS
    }
    assert gpus == {"planner": None, "packer": None, "gpu": 1, "writer": None}


# -- of one mind with the program ------------------------------------------------------------------


def test_settings_are_accepted(tmp_path: Path) -> None:
    config = accepted(BASE / "vnp.toml", tmp_path)
    assert config.devices == ["cuda:0"]
    assert not str(SETTINGS["scratch_dir"]).startswith(SETTINGS["shared_dir"])


@pytest.mark.parametrize("deployment", named(DEPLOYMENTS))
def test_folders_of_the_settings_are_mounted(deployment: Manifest) -> None:
    mounts = {mount["mountPath"] for mount in container(deployment)["volumeMounts"]}
    assert {SETTINGS["state_dir"], SETTINGS["shared_dir"], "/etc/vnp", "/tmp"} <= mounts
    assert SETTINGS["models_dir"].startswith(SETTINGS["shared_dir"] + "/")


@pytest.mark.parametrize("deployment", named(DEPLOYMENTS))
def test_a_pod_may_take_as_long_as_vnpd_takes(deployment: Manifest) -> None:
    grace_s = pod(deployment)["terminationGracePeriodSeconds"]
    assert grace_s >= SETTINGS["stop_limit_s"] + 20
    assert "lifecycle" not in container(deployment)


@pytest.mark.parametrize("deployment", named(DEPLOYMENTS))
def test_a_pod_may_take_its_time_to_start(deployment: Manifest) -> None:
    probes = container(deployment)
    # A standby is healthy and perhaps not ready: it must not be restarted for that.
    for name in ("startupProbe", "livenessProbe"):
        assert probes[name]["exec"]["command"] == ["vnp-probe", "healthz"]
    assert probes["readinessProbe"]["exec"]["command"] == ["vnp-probe", "readyz"]
    startup = probes["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
    assert probes["livenessProbe"]["timeoutSeconds"] > 5


def test_urls_name_the_users_of_the_broker_over_tls() -> None:
    [urls] = [doc for doc in of_kind("Secret") if doc["metadata"]["name"] == "vnp-redis-urls"]
    assert set(urls["stringData"]) == set(ROLES)
    for name, url in urls["stringData"].items():
        parts = urlsplit(url)
        assert parts.scheme == "rediss"
        assert parts.username == f"{namespace()}-{name}"
        assert parts.query == "ssl_ca_certs=/etc/vnp-tls/ca.crt"
        assert f"{parts.hostname}:{parts.port}" == address()


def namespace() -> str:
    return str(Config.model_fields["namespace"].default)


def address() -> str:
    [service] = of_kind("Service")
    [port] = service["spec"]["ports"]
    return f"{service['metadata']['name']}.vnp.svc.cluster.local:{port['port']}"


# -- KEDA: what its documentation of redis-streams (2.21) asks for ---------------------------------


def triggers(scaled: Manifest) -> Iterator[tuple[Manifest, Manifest]]:
    for trigger in scaled["spec"]["triggers"]:
        assert set(trigger) == {"type", "metadata", "authenticationRef"}
        assert trigger["type"] == "redis-streams"
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        yield trigger, trigger["metadata"]


@pytest.mark.parametrize("scaled", named(SCALED))
def test_scaled_objects(scaled: Manifest) -> None:
    spec = scaled["spec"]
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    assert spec["scaleTargetRef"]["name"] in {doc["metadata"]["name"] for doc in DEPLOYMENTS}
    assert spec["minReplicaCount"] == 0 < spec["maxReplicaCount"]
    assert spec["cooldownPeriod"] > 2 * SETTINGS["lease_s"]
    stream = {"vnp-gpu": BATCHES, "vnp-packer": TASKS}[scaled["metadata"]["name"]]
    kinds = []
    for trigger, metadata in triggers(scaled):
        assert metadata["stream"] == Keys(namespace()).stream(stream)
        assert metadata["consumerGroup"] == GROUPS[stream]
        assert metadata["address"] == address()
        assert trigger["authenticationRef"] == {"name": "vnp-redis-scaler"}
        # TLS in a trigger and in its authentication is refused.
        assert not {"enableTLS", "unsafeSsl"} & set(metadata)
        kinds.append({name for name in metadata if name.endswith("Count")})
    assert kinds == [{"lagCount", "activationLagCount"}, {"pendingEntriesCount"}]
    # More than 0, so that the first message wakes a worker.
    assert spec["triggers"][0]["metadata"]["activationLagCount"] == "0"


def test_the_scaler_authenticates_as_its_own_user_over_tls() -> None:
    [authentication] = of_kind("TriggerAuthentication")
    secrets = {doc["metadata"]["name"]: doc["stringData"] for doc in of_kind("Secret")}
    given = {
        entry["parameter"]: secrets[entry["name"]][entry["key"]]
        for entry in authentication["spec"]["secretTargetRef"]
    }
    assert set(given) == {"username", "password", "tls", "ca"}
    assert given["username"].removeprefix(f"{namespace()}-") in set(USERS) - set(ROLES)
    assert given["tls"] == "enable"


def test_keda_sets_the_number_of_pods_alone() -> None:
    [kustomization] = documents(KEDA / "kustomization.yaml")
    [patch] = kustomization["patches"]
    assert yaml.safe_load(patch["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]
    scaled = {doc["spec"]["scaleTargetRef"]["name"] for doc in SCALED}
    matched = {
        doc["metadata"]["name"]
        for doc in DEPLOYMENTS
        if re.fullmatch(patch["target"]["name"], doc["metadata"]["name"])
    }
    assert matched == scaled
