"""docker-compose.yml is valid, contains no secret, and describes what `make stack` starts."""

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from nightjar.errors import BadOptions
from nightjar.stack.compose_file import Service, read_topology
from nightjar.stack.native_services import native_services
from nightjar.stack.state import write_secrets
from tests.stack.conftest import ROOT, need_stack

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PORTS = {"server": 4321, "database": 5555, "worker": 8888, "board": 2222}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Service]:
    need_stack()
    return {native.name: native for native in native_services(Path("/stack"), PORTS)}


def test_it_follows_the_compose_specification() -> None:
    schema = json.loads((ROOT / "tests" / "stack" / "compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert not [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(COMPOSE)]
    broken = json.loads(json.dumps(COMPOSE))
    broken["services"]["worker"]["depend_on"] = broken["services"]["worker"].pop("depends_on")
    assert list(validator.iter_errors(broken)), "this validator accepts anything"


def test_every_reference_exists_and_every_image_has_a_version() -> None:
    healthy = {
        needed
        for service in COMPOSE["services"].values()
        for needed, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_healthy"
    }
    assert healthy <= {name for name, service in COMPOSE["services"].items() if "healthcheck" in service}
    for name, service in COMPOSE["services"].items():
        assert re.fullmatch(r"[a-z-]+:\d[\w.-]+", service["image"]), name
        for secret in service.get("secrets", []):
            assert secret in COMPOSE["secrets"], (name, secret)
        for config in service.get("configs", []):
            assert (ROOT / COMPOSE["configs"][config["source"]]["file"]).is_file(), (name, config)
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source.startswith("./") or source in COMPOSE["volumes"], (name, volume)
        if "build" in service:
            dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
            assert f" AS {service['build']['target']}\n" in dockerfile, name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is served beyond this machine: {port}"


def test_secrets_are_generated_files_and_the_compose_file_contains_none(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    made = {path.name: path for path in (tmp_path / "secrets").iterdir()}
    wanted = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    assert {Path(secret["file"]).parent.as_posix() for secret in COMPOSE["secrets"].values()} == {"stack/secrets"}
    assert wanted <= made.keys()
    assert {name for name in wanted if made[name].stat().st_mode & 0o077} == {"board_authorized_keys"}  # a public key
    before = {name: path.read_bytes() for name, path in made.items()}
    write_secrets(tmp_path)
    assert {name: path.read_bytes() for name, path in made.items()} == before, "a second call made other secrets"
    said = yaml.safe_dump([service.get("environment", {}) for service in COMPOSE["services"].values()])
    assert not re.search(r"password\s*:(?!//)|:[^/\s@]+@|token", said.replace("POSTGRES_PASSWORD_FILE", "FILE"), re.I)


def test_make_stack_starts_the_same_services_in_the_same_order_with_the_same_settings(
    services: dict[str, Service],
) -> None:
    described = read_topology()
    assert services.keys() == described.keys() == COMPOSE["services"].keys()
    for name, service in described.items():
        native = services[name]
        written = COMPOSE["services"][name]
        assert native.needs == {other: how["condition"] for other, how in written.get("depends_on", {}).items()}
        assert native.restart == written["restart"]
        assert (native.health is None) == ("healthcheck" not in written)
        if name != "database":  # whose image reads its own variables
            own = {key: native.environment[key] for key in service.environment}
            assert own.keys() == written["environment"].keys() if "environment" in written else not own
            theirs = {key: value for key, value in own.items() if value != service.environment[key]}
            assert all("127.0.0.1" in value or value.startswith("/") or value.isdigit() for value in theirs.values())
    leftover = re.compile(
        r"server:4200|database:5432|/run/secrets|/etc/nightjar|/var/lib/nightjar|/srv/nightjar|0\.0\.0\.0"
    )
    for native in services.values():
        settings = {key: value for key, value in native.environment.items() if os.environ.get(key) != value}
        words = [*native.command, *(native.health.test if native.health else ()), *settings.values()]
        assert not [word for word in words if leftover.search(word)], f"{native.name} has a container's address or path"
    assert services["worker"].environment["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert services["board"].command[1:] == ("-D", "-e", "-f", "/stack/board/sshd_config")


def test_services_that_need_each_other_are_rejected(tmp_path: Path) -> None:
    said = {name: {"depends_on": {other: {"condition": "service_healthy"}}} for name, other in (("a", "b"), ("b", "a"))}
    (tmp_path / "compose.yml").write_text(yaml.safe_dump({"services": said}))
    with pytest.raises(BadOptions, match="services need each other: a, b"):
        read_topology(tmp_path / "compose.yml")
