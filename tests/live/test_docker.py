"""Containers of one compose project, with the engine that setup installs."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.docker import COMPOSE, Docker
from tests.live.machine import until
from tests.live.project import CANARY, PREFIX, SLUG
from tests.live.rehearsal import Rehearsal, open_at, rehearse, selected
from tests.live.target import Row

pytestmark = [pytest.mark.slow, pytest.mark.live]

ROWS = [
    Row("docker", "nginx", "postgresql", "trixie", 0, cache="redis"),
    Row("docker", "caddy", "sqlite", "trixie", 1, "docker"),
    Row("docker", "caddy", "postgresql", "trixie", 2, "docker", cache="redis", usual=False),
    Row("docker", "nginx", "sqlite", "trixie", 3, usual=False),
]
REGISTRY = "127.0.0.1:5000"
REGISTRY_SETTINGS = f"""
version: 0.1
storage: {{filesystem: {{rootdirectory: /var/lib/docker-registry}}}}
http: {{addr: {REGISTRY}}}
auth: {{htpasswd: {{realm: live, path: /etc/docker/registry/htpasswd}}}}
"""


@pytest.mark.parametrize("row", selected(ROWS), ids=lambda row: row.name)
def test_a_server_lives_through_releases_faults_and_its_own_end(
    row: Row, template: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    parts = (images, engine_restarted, image_from_elsewhere, plain_up)
    rehearse(row, Docker, template, tmp_path, record_property, parts)


def layers(r: Rehearsal, image: str) -> list[str]:
    """What an image is stacked of."""
    found = r.machine.run(f"docker inspect --format '{{{{json .RootFS.Layers}}}}' {image}")
    return [str(layer) for layer in json.loads(found)]


def images(r: Rehearsal) -> None:
    """What a release is made of: no more than it needs, and only its code is new every time."""
    listed = r.machine.run(
        f"docker image ls --format '{{{{.Tag}}}} {{{{.ID}}}}' {SLUG} | sort | cut -d' ' -f1"
    ).split()
    assert len(listed) <= 6, f"images pile up: {listed}"
    before, image = (f"{SLUG}:{name}" for name in listed[-2:])
    ours, others = layers(r, image), layers(r, before)
    new = [layer.removeprefix("sha256:") for layer in ours if layer not in others]
    saved = r.machine.run(f"docker save {image} | tar --list --verbose").splitlines()
    sizes = [int(line.split()[2]) for line in saved if line.rpartition("/")[2] in new]
    r.note("layers of a release, those that are its own, their bytes", (len(ours), len(new), sizes))
    assert len(new) == len(sizes) == 1, f"a change of code makes more than its own layer: {new}"
    assert sizes[0] < 2_000_000, "a change of code makes more than code anew"
    base = "python:3.13-slim-trixie"
    size, below = (
        int(r.machine.run(f"docker inspect --format '{{{{.Size}}}}' {name}"))
        for name in (image, base)
    )
    inside = "du --summarize --block-size=1 /opt/venv"
    packages = int(r.machine.run(f"docker run --rm --entrypoint '' {image} {inside}").split()[0])
    r.note(
        "image, its base, installed packages, MB", [n // 1_000_000 for n in (size, below, packages)]
    )
    r.note("image by base and packages", round(size / (below + packages), 3))
    assert size <= 1.15 * (below + packages), "the image is larger than what is in it"


def engine_restarted(r: Rehearsal) -> None:
    """The engine restarts, as it does when it is brought up to date."""
    if not r.mine(0):
        return
    with r.scenario("engine restarted") as scenario:
        name = r.operator.active()
        moment = time.time()
        scenario.allows = open_at(moment, moment + 60)
        r.machine.run("systemctl restart docker")
        until(lambda: r.public.ask("GET", f"{PREFIX}/get", timeout=2)[0] == 200, "an answer", 40)
        scenario.allows = open_at(moment, time.time())
        assert r.operator.active() == name, "another release came up"
        time.sleep(2)
    down = [one.end for one in r.load.requests() if one.failure and one.end >= moment]
    r.note("engine restarted: down for, s", round(max(down, default=moment) - moment, 1))


def start_registry(r: Rehearsal, user: str, password: str) -> None:
    """Run a registry on the server itself that wants a password."""
    r.machine.run(
        "apt-get update -q=2 && DEBIAN_FRONTEND=noninteractive"
        " apt-get install -yq=2 --no-install-recommends docker-registry apache2-utils",
        timeout=300,
    )
    r.machine.run("cat >/etc/docker/registry/config.yml", text=REGISTRY_SETTINGS)
    allowed = f"htpasswd -niB {user} >/etc/docker/registry/htpasswd"
    r.machine.run(f"{allowed} && systemctl restart docker-registry", text=password)
    login = f"docker login --username {user} --password-stdin {REGISTRY}"
    until(
        lambda: "Succeeded" in r.machine.run(f"{login} 2>&1", check=False, text=password),
        "a registry",
        20,
    )


def image_from_elsewhere(r: Rehearsal) -> None:
    """An image that was built from a checkout, as CI does, with files that must not be in it."""
    if not r.mine(1):
        return
    checkout = r.project.folder
    revision = r.project.release("fifth")[:12]
    planted = [checkout / name for name in (".env", "tests/canary", "app/.env", ".git/canary")]
    for path in planted:
        path.write_text(f"TOKEN={CANARY}\n")
    r.machine.put(checkout, "/var/checkout")
    for path in planted:
        path.unlink()
    image = f"{REGISTRY}/live/{SLUG}:{revision}"
    started = time.monotonic()
    r.machine.run(f"docker build --quiet --tag {image} /var/checkout", timeout=300)
    r.note("image built from a checkout, s", round(time.monotonic() - started, 1))
    for shown in ("docker save", "docker history --no-trunc"):
        found = r.machine.run(f"{shown} {image} | grep --text --count {CANARY}", check=False)
        assert found.strip() == "0", f"{shown} shows a file that is no part of the service"
    r.machine.run("rm -r /var/checkout")
    start_registry(r, "ci", CANARY)
    r.machine.run(f"docker push --quiet {image}; docker image rm {image}; docker logout {REGISTRY}")
    before = r.operator.active()
    with r.scenario("image that may not be pulled"):
        r.operator.deploy("release", "--image", image, code=1)
        assert r.operator.active() == before
    with r.scenario("release of an image"):
        access = {"DEPLOY_REGISTRY_USER": "ci", "DEPLOY_REGISTRY_PASSWORD": CANARY}
        outcome = r.operator.deploy("release", "--image", image, environment=access)
        r.switches.append(outcome.began["switch"])
        r.note("release of an image, s", round(outcome.named["done"], 1))
        r.serves("fifth")
    kept = r.machine.run("cat /root/.docker/config.json /home/deploy/.docker/config.json; true")
    assert '"auth"' not in kept, f"the registry's password was kept: {kept}"
    with r.scenario("rollback to before that image"):
        r.release("rollback")
        r.serves("fourth")


def plain_up(r: Rehearsal) -> None:
    """A plain `up` with another image fails requests, and the load notices."""
    if not r.mine(0):
        return
    slot = r.operator.active()[0]
    other = "green" if slot == "blue" else "blue"
    with r.scenario("plain up") as scenario:
        scenario.allows = lambda _one: True
        env = f"/srv/{SLUG}/.env"
        image = r.machine.run(f"sed -n 's/^{other.upper()}=//p' {env}").strip()
        assert image, "there is another release"
        r.machine.run(f"sed -i 's|^{slot.upper()}=.*|{slot.upper()}={image}|' {env}")
        r.machine.run(f"{COMPOSE} up --detach --no-deps {slot}", timeout=200)
        until(lambda: r.public.ask("GET", f"{PREFIX}/get", timeout=2)[0] == 200, "an answer", 40)
        r.load.settle()
    failed = [
        one
        for one in r.load.requests()
        if one.failure and scenario.begin <= one.end and one.start <= scenario.end
    ]
    r.note("plain up: failed", len(failed))
    assert failed, "the load cannot see failures"
