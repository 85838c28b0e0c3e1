"""The cluster files are what Ray, AWS, KubeRay and Slurm take; none of them opens a port to the world."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE
from ray.scripts.scripts import cli

from tests.support.repository import ROOT, project

FILES = [ROOT / "ray_cluster.yaml", ROOT / "cluster" / "on_premise.yaml", ROOT / "cluster" / "gcp.yaml"]
KUBERNETES = list(yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_ray_takes_the_file(file: Path) -> None:
    config = prepare_config(yaml.safe_load(file.read_text()))
    validate_config(config)
    with pytest.raises(Exception, match="no_such_key"):
        validate_config({**config, "no_such_key": 1})
    assert config["cluster_name"] == "lbdist"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nodes_are_closed_alike_and_go_away(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    assert config["file_mounts"] == {"~/lbdist": ".", "~/.ray/auth_token": "~/.ray/auth_token"}
    (head,) = (line for line in config["head_start_ray_commands"] if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in head and "0.0.0.0" not in file.read_text()
    assert any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    assert any("-r ~/lbdist/cluster/requirements.txt" in line for line in config["setup_commands"])
    if config["provider"]["type"] != "local":
        assert config["idle_timeout_minutes"] <= 10
        assert config["available_node_types"]["worker"]["min_workers"] == 0
    else:
        assert "idle_timeout_minutes" not in config


def test_setup_commands_are_shell(tmp_path: Path) -> None:
    """bash reads each; the one on ~/.bashrc is run, twice, with and without a file there."""
    for file in FILES:
        config = yaml.safe_load(file.read_text())
        for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
            for line in config[key]:
                subprocess.run(["bash", "-n", "-c", line], check=True, timeout=10)
        (line,) = (line for line in config["setup_commands"] if "bashrc" in line)
        for before in (None, "alias a=b\n", ""):
            home = tmp_path / f"{file.stem}-{before!r}".replace("\\n", "")
            home.mkdir()
            if before is not None:
                (home / ".bashrc").write_text(before)
            for _ in range(2):
                subprocess.run(
                    ["bash", "-c", line], check=True, timeout=10, env={**os.environ, "HOME": str(home)}
                )
            first, *rest = (home / ".bashrc").read_text().splitlines()
            assert first.startswith("export RAY_AUTH_MODE=token") and rest == (before or "").splitlines()
            assert {path.name for path in home.iterdir()} == {".bashrc"}


def test_versions_are_pinned_as_the_project_asks() -> None:
    lines = (ROOT / "cluster" / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    asked = project()["dependencies"]
    for text in asked:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[wanted.name]), text
    ray = pinned["ray"]
    assert KUBERNETES[0]["spec"]["rayVersion"] == ray
    assert importlib.metadata.version("ray") == ray  # what is tested here is what a cluster runs


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An AWS of this process's own, with nothing in it but its default network."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield f"http://{host}:{port}"
    server.stop()


def prepare_account(*arguments: str) -> None:
    spec = importlib.util.spec_from_file_location("lbdist_aws", ROOT / "cluster" / "aws.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(arguments))


def test_an_account_is_prepared_and_ray_up_starts_what_the_file_says(aws: str) -> None:
    """Ray's own way to its first instances, against a server that has the shape of AWS."""
    import boto3
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    prepare_account("bucket-of-mine", "--ssh-from", "203.0.113.5/32")
    prepare_account("bucket-of-mine", "--ssh-from", "203.0.113.6/32")  # again, from another address
    config = prepare_config(yaml.safe_load(FILES[0].read_text()))
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    config = AWSNodeProvider.bootstrap_config(config)
    assert config["available_node_types"]["worker"]["resources"]["GPU"] == 1
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind in ("head", "worker"):
        tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: kind, TAG_RAY_NODE_NAME: kind}
        provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
    ec2, iam, s3 = boto3.client("ec2"), boto3.client("iam"), boto3.client("s3")
    found = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    profiles = {i["IamInstanceProfile"]["Arn"].rpartition("/")[2] for i in found}
    assert len(found) == 2 and profiles == {"lbdist-head", "lbdist-worker"}
    groups = {g["GroupId"] for i in found for g in i["SecurityGroups"]}
    (group,) = ec2.describe_security_groups(GroupIds=list(groups))["SecurityGroups"]
    assert group["GroupName"] == "lbdist"
    outside = [
        (rule.get("FromPort"), r["CidrIp"]) for rule in group["IpPermissions"] for r in rule["IpRanges"]
    ]
    assert outside == [(22, "203.0.113.6/32")] and not any(r["Ipv6Ranges"] for r in group["IpPermissions"])

    def rights(role: str) -> set[str]:
        document = iam.get_role_policy(RoleName=role, PolicyName="lbdist")["PolicyDocument"]
        return {action for item in document["Statement"] for action in item["Action"]}

    assert not any(action.startswith(("ec2", "iam")) for action in rights("lbdist-worker"))
    assert {"ec2:RunInstances", "iam:PassRole", "ssm:GetParameters"} <= rights("lbdist-head")
    closed = s3.get_public_access_block(Bucket="bucket-of-mine")["PublicAccessBlockConfiguration"]
    assert all(closed.values())


# Fields of KubeRay 1.5's ray.io/v1 that the manifests may have; a misspelt one is dropped in silence.
POD = {"containers", "tolerations", "nodeSelector", "serviceAccountName", "volumes"}
CONTAINER = {"name", "image", "envFrom", "env", "ports", "resources", "volumeMounts"}
CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec"}
CLUSTER |= {"workerGroupSpecs"}
HEAD = {"serviceType", "rayStartParams", "template"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
JOB = {"clusterSelector", "entrypoint", "backoffLimit", "rayClusterSpec", "shutdownAfterJobFinishes"}


def test_kuberay_takes_the_manifests() -> None:
    cluster, job = KUBERNETES
    assert [(d["apiVersion"], d["kind"]) for d in KUBERNETES] == [
        ("ray.io/v1", "RayCluster"),
        ("ray.io/v1", "RayJob"),
    ]
    spec = cluster["spec"]
    assert set(spec) <= CLUSTER and set(job["spec"]) <= JOB
    assert spec["authOptions"] == {"mode": "token"} and set(spec["autoscalerOptions"]) == {
        "version",
        "idleTimeoutSeconds",
    }
    assert set(spec["headGroupSpec"]) <= HEAD and all(set(g) <= GROUP for g in spec["workerGroupSpecs"])
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # the CRD's type
        pod = group["template"]["spec"]
        assert set(pod) <= POD
        for container in pod["containers"]:
            assert set(container) <= CONTAINER
            limits, requests = (container["resources"][key] for key in ("limits", "requests"))
            assert limits == requests  # by which KubeRay tells Ray what there is
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


def test_the_image_has_what_it_copies() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    for line in text.splitlines():
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
    assert "USER ray" in text and "FROM python:3.11" in text


def commands() -> list[str]:
    text = "".join((ROOT / name).read_text() for name in ("README.md", "cluster/README.md"))
    return [
        line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]


def test_readme_names_files_and_options_that_are_there() -> None:
    """What it lets people type, as far as it needs no cloud: files are there, Ray has the options."""
    known: set[str] = set()
    for line in commands():
        words = shlex.split(line, comments=True)
        for word in words:
            if re.fullmatch(r"(cluster/)?[\w./]+\.(yaml|py|sh)", word):
                assert (ROOT / word).is_file(), word
        words = (
            [word for word in words if not re.fullmatch(r"\w+=\S*", word)] if words[0] != "sbatch" else words
        )
        if words[0] == "ray" and words[1] != "get-auth-token":
            verb = words[1:3] if words[1] == "job" else words[1:2]
            found: Any = cli
            for name in verb:
                found = found.commands[name]
            options = {option for parameter in found.params for option in parameter.opts}
            given = {word for word in words[: words.index("--") if "--" in words else None] if word[0] == "-"}
            assert given <= options, line
            known.add(" ".join(verb))
    assert len(commands()) > 20 and {"up", "down", "exec", "rsync-down", "job submit"} <= known
