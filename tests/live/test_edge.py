"""What clients meet before the app: both proxies make the same promises on both kinds of server."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.combinations import render
from tests.live import abuse, machine, promises
from tests.live.docker import Docker
from tests.live.machine import call, tree
from tests.live.packages import unpacked
from tests.live.project import DOMAIN, SLUG
from tests.live.rehearsal import selected
from tests.live.site import lacking, site_of
from tests.live.systemd import Systemd
from tests.live.target import Row, Target

pytestmark = [pytest.mark.slow, pytest.mark.live]


@dataclass(frozen=True)
class EdgeRow(Row):
    """A row of this suite."""

    @property
    def name(self) -> str:
        return f"edge-{self.deployment}-{self.proxy}"


# nginx 1.22 and Caddy 2.6 are Debian's; in containers there are current ones.
ROWS = [
    EdgeRow("systemd", "nginx", "sqlite", "bookworm", 0, "full"),
    EdgeRow("docker", "caddy", "sqlite", "trixie", 1, "docker"),
    EdgeRow("systemd", "caddy", "sqlite", "trixie", 2),
    EdgeRow("docker", "nginx", "sqlite", "trixie", 3, "docker"),
]
TARGETS: dict[str, type[Target]] = {"systemd": Systemd, "docker": Docker}


@pytest.mark.parametrize("row", selected(ROWS), ids=lambda row: row.name)
def test_the_edge_keeps_its_promises_and_refuses_abuse(
    row: Row, template: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if missing := lacking(row):
        pytest.skip(f"not here: {', '.join(missing)}")
    started = time.monotonic()

    def note(name: str, figure: object) -> None:
        record_property(f"{row.name} {name}", figure)

    with site_of(row, TARGETS[row.deployment], template, tmp_path) as site:
        note("up after, s", round(time.monotonic() - started))
        promises.check(site, note)
        abuse.check(site, note, tmp_path)
    note("whole row, s", round(time.monotonic() - started))


# By version: the release that has it, what is unpacked of it, and the system that it is tried on.
NGINX = {
    "1.18": ("bullseye", ("nginx-core", "nginx-common", "libssl1.1", "libpcre3"), "bookworm"),
    "1.22": ("bookworm", ("nginx", "nginx-common"), "bookworm"),
    "1.26": ("trixie", ("nginx", "nginx-common"), "trixie"),
}
# What setup would install; functions of deploy.sh, and what they need.
INSTALLED = """
set -euo pipefail
SLUG=$1 DOMAIN=$2 ENV_FILE=none here=$3/deploy
eval "$(sed -n '/^at_least()/p; /^\\(fail\\|trusted_proxies\\|site_of_this_server\\)()/,/^}/p;
    /^body_limit()/,/^}/p' "$here/deploy.sh")"
nginx_version() { echo "$VERSION"; }
for name in default-http http default-https https; do
    site_of_this_server "nginx-$name.conf" >"$4/$SLUG-$name.conf"
done
"""
# In a system of which nothing outlives the command.
CHROOT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/up,workdir=$1/work" "$1/root"
chroot "$1/root" nginx -t 2>&1
chroot "$1/root" nginx -v 2>&1
"""


@pytest.mark.parametrize("version", NGINX)
def test_nginx_accepts_our_files_without_a_warning(
    version: str, template: Path, tmp_path: Path
) -> None:
    if missing := machine.missing():
        pytest.skip(f"not here: {', '.join(missing)}")
    answers = {"proxy": "nginx", "deployment": "systemd", "project_slug": SLUG, "domain": DOMAIN}
    project = render(template, tmp_path / "project", **answers)
    networks = "203.0.113.0/24\n2001:db8::/32\n"
    (project / "deploy/trusted-proxies.txt").write_text(networks)
    ours = tmp_path / "ours"
    sites, certificate = ours / "etc/nginx/conf.d", ours / "etc/letsencrypt/live" / DOMAIN
    sites.mkdir(parents=True)
    certificate.mkdir(parents=True)
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={DOMAIN}"]
    private, public = certificate / "privkey.pem", certificate / "fullchain.pem"
    call("openssl", *new, "-keyout", private, "-out", public)
    done = subprocess.run(
        ["bash", "-c", INSTALLED, "installed", SLUG, DOMAIN, project, sites],
        env={"PATH": "/usr/bin:/bin", "VERSION": f"{version}.0"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert len(list(sites.iterdir())) == 4
    assert "set_real_ip_from 203.0.113.0/24;" in (sites / f"{SLUG}-https.conf").read_text()
    suite, packages, system = NGINX[version]
    layers = f"{ours}:{unpacked(suite, *packages)}:{tree(system)}"
    (tmp_path / "place").mkdir()
    said = call("unshare", "--mount", "sh", "-c", CHROOT, "chroot", tmp_path / "place", layers)
    assert f"nginx/{version}." in said, said
    assert "test is successful" in said, said
    assert "[" not in said, f"it warns: {said}"
