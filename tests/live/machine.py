"""Debian machines with a real systemd, booted within a second from cached trees.

Every boot begins with a clean copy, and nothing of a machine outlives it. What a run that was
killed left behind is removed by the next one.
"""

import fcntl
import hashlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.live.images import projects

CACHE = Path(os.environ.get("LIVE_CACHE", "/var/cache/fastapi-prod-live"))
# An archive of `docker save`, for machines that cannot pull. Whoever still makes it holds a lock on
# the file beside it.
IMAGES = os.environ.get("LIVE_IMAGES", "")
PROGRAMS = ("debootstrap", "systemd-nspawn", "nsenter", "ip", "iptables", "ssh", "ssh-keygen")
CGROUPS = Path("/sys/fs/cgroup")
AUTHORITIES = Path("/usr/local/share/ca-certificates")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# What a freshly installed server has; a deployment brings the rest itself.
BARE = (
    "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,sudo,ca-certificates,curl,python3,"
    "iproute2,procps,less,cron,logrotate,netbase,tzdata"
)
# What a server that is in use already has besides.
KINDS = {
    "bare": "",
    "full": "nginx certbot caddy postgresql redis-server rsync openssl python3-venv",
    "docker": "docker.io docker-cli docker-compose docker-buildx",
}
# Neither the clock nor the network nor a console is a machine's own.
MASKED = "systemd-timesyncd systemd-networkd systemd-resolved console-getty getty@tty1"

# What an engine in a machine needs besides: it mounts, makes networks and shields containers.
NESTED = ("--capability=all", "--system-call-filter=@keyring bpf add_key keyctl")
ENGINE = Path("var/lib/docker")
# Runs a machine, and runs it again when it reboots; the arguments are nspawn's.
KEEPER = """
for group in $GROUPS_OF_MACHINE; do echo $$ >"$group/cgroup.procs"; done
while :; do
    rm -rf "/run/systemd/nspawn/propagate/$MACHINE"
    systemd-nspawn "$@"
    [ $? = 133 ] || exit 0
done
"""
# nspawn mounts the controllers of cgroup v1 read-only; limits would do nothing, silently.
WRITABLE = """\
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for c in /sys/fs/cgroup/*/cgroup.procs; do \
mount -o remount,bind,rw,nosuid,nodev,noexec $${c%/*} || true; done'
ExecStartPost=/bin/systemctl --no-block daemon-reexec
"""


def missing() -> list[str]:
    """What this host lacks to boot machines."""
    found = [program for program in PROGRAMS if shutil.which(program) is None]
    return found if os.geteuid() == 0 else [*found, "root"]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock that the kernel releases however this process ends."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def call(*command: str | Path, check: bool = True, log: Path | None = None) -> str:
    """Run a command here and return what it printed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if log:
        log.write_text(done.stdout + done.stderr)
    if check and done.returncode:
        raise RuntimeError(
            f"{shlex.join(map(str, command))}: {(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout


# ------------------------------------------------------------------- trees


def tree(suite: str, kind: str = "bare") -> Path:
    """Return a Debian tree, made once; another recipe makes another tree."""
    recipe = [BARE, MASKED, *(inspect.getsource(part) for part in (bootstrap, trust, finish))]
    recipe += [path.read_text() for path in AUTHORITIES.glob("*.crt")]
    digest = hashlib.sha256("\n".join([*sorted(recipe), KINDS[kind]]).encode())
    made = CACHE / "trees" / f"{suite}-{kind}-{digest.hexdigest()[:8]}"
    below = None if kind == "bare" else tree(suite)
    with locked(f"{suite}-{kind}"):
        if made.exists():
            return made
        mounted = Path("/proc/mounts").read_text()
        for old in made.parent.glob(f"{suite}-{kind}-*"):
            if f"lowerdir={old}," not in mounted:
                remove(old)
        new = made.with_name(f"{made.name}.new")
        new.parent.mkdir(exist_ok=True)
        if below is None:
            bootstrap(suite, new)
        else:
            call("cp", "-a", below, new)
        finish(new, KINDS[kind].split())
        new.rename(made)
    return made


def bootstrap(suite: str, new: Path) -> None:
    """Make a tree, from the mirror that this host uses if it is Debian's."""
    listed = call("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    mirrors = [line for line in listed.splitlines() if re.search(r"/debian/?$", line)]
    command = ["debootstrap", "--variant=minbase", f"--include={BARE}", suite]
    # Without one, debootstrap takes its own.
    call(*command, new, *mirrors[:1], log=new.with_suffix(".log"))
    # The mirror may be a snapshot, or behind a proxy.
    fetching = [
        line
        for line in call("apt-config", "dump").splitlines()
        if line.startswith(("Acquire::http", "Acquire::Check-Valid-Until"))
    ]
    (new / "etc/apt/apt.conf.d/90host").write_text("".join(f"{line}\n" for line in fetching))
    trust(new)
    (new / "etc/machine-id").write_text("")
    call("chroot", new, "useradd", "-m", "-s", "/bin/bash", "deploy")
    sudoers = new / "etc/sudoers.d/deploy"
    sudoers.write_text("deploy ALL=(ALL:ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    call("chroot", new, "systemctl", "--quiet", "mask", *MASKED.split(), check=False)


def trust(new: Path) -> None:
    """Let apt, pip and uv in a tree trust whom this host trusts, and ask the index that it asks."""
    for certificate in AUTHORITIES.glob("*.crt"):
        shutil.copy(certificate, new / AUTHORITIES.relative_to("/"))
    call("chroot", new, "update-ca-certificates")
    index = os.environ.get("PIP_INDEX_URL") or call(
        "python3", "-m", "pip", "config", "get", "global.index-url", check=False
    )
    # A folder of this host is no index for a machine.
    index = index.strip() if index.startswith("http") else ""
    pip, uv = f"[global]\ncert = {BUNDLE}\n", "system-certs = true\n"
    if index:
        pip, uv = f"{pip}index-url = {index}\n", f'{uv}[[index]]\nurl = "{index}"\ndefault = true\n'
    (new / "etc/pip.conf").write_text(pip)
    (new / "etc/uv").mkdir()
    (new / "etc/uv/uv.toml").write_text(uv)


def finish(new: Path, packages: list[str]) -> None:
    """Install packages into a tree; the two proxies would both want port 80."""
    if packages:
        policy = new / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        shutil.copy("/etc/resolv.conf", new / "etc/resolv.conf")
        inside = ("chroot", new, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
        call(*inside, "apt-get", "update", "-q")
        install = ("apt-get", "install", "-yq", "--no-install-recommends", *packages)
        call(*inside, *install, log=new.with_suffix(".log"))
        policy.unlink()
        units = ("nginx", "caddy")
        call("chroot", new, "systemctl", "--quiet", "disable", *units, check=False)
    (new / "etc/resolv.conf").unlink(missing_ok=True)
    (new / "etc/resolv.conf").write_text("")
    for cached in (new / "var/cache/apt/archives").glob("*.deb"):
        cached.unlink()


def remove(folder: Path) -> None:
    """Remove a folder, but nothing that is mounted in it."""
    call("rm", "-rf", "--one-file-system", folder)


# ------------------------------------------------------------------ images


def store() -> Path | None:
    """What an engine has on its disk once it has loaded `IMAGES` and built with them; made once."""
    if not IMAGES:
        return None
    with Path(f"{IMAGES}.lock").open("a") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        # It names every image, and what each is made of.
        manifest = call("tar", "--extract", "--to-stdout", "--file", IMAGES, "manifest.json")
    made = CACHE / "stores" / hashlib.sha256(manifest.encode()).hexdigest()[:16]
    with locked("store"):
        if made.exists():
            return made
        made.parent.mkdir(exist_ok=True)
        for old in made.parent.iterdir():
            remove(old)
        with Machine("trixie", "docker", engine=True, stocked=False) as loader:
            loader.put(Path(IMAGES), "/var/images.tar")
            loader.run("docker load --quiet --input /var/images.tar", timeout=300)
            # What is built from pins that never change, so that not each of many machines does it.
            with projects() as rendered:
                for number, project in enumerate(rendered):
                    loader.put(project, f"/var/projects/{number}")
                    for file in ("Dockerfile", "deploy/certbot.Dockerfile"):
                        build(loader, f"/var/projects/{number}", file)
            loader.run("systemctl stop docker.service docker.socket containerd.service")
            (loader.folder / "docker").rename(made)
    return made


def build(loader: "Machine", folder: str, file: str) -> None:
    """Build an image of which only the cache stays."""
    if (loader.root / folder.lstrip("/") / file).exists():
        context = (Path(folder) / file).parent
        made_of = f"--file {folder}/{file} {context}"
        loader.run(f"docker build --quiet --tag built {made_of}", timeout=600)
        loader.run("docker image rm built")


def stock(folder: Path, images: Path | None) -> None:
    """Put images into an engine's empty folder."""
    folder.mkdir()
    if images is None:
        return
    for part in images.iterdir():
        # No container ever changes a file of an image in its place, so links do.
        links = ["--link"] if part.name == "overlay2" else []
        call("cp", "--archive", *links, part, folder)


# ---------------------------------------------------------------- machines


class Machine:
    """One machine, up inside a `with`; it reaches the internet and other machines."""

    def __init__(
        self,
        suite: str,
        kind: str = "bare",
        *,
        python: Path | None = None,
        domain: str = "",
        engine: bool = False,
        stocked: bool = True,
    ) -> None:
        """`kind` is what is installed; `python` is what to put into /usr/local.

        `domain` is a name that the machine finds itself by. In one with `engine` Docker can run,
        and has the images that were prepared unless it is not `stocked`.
        """
        self.suite, self.kind, self.python, self.domain = suite, kind, python, domain
        self.engine, self.stocked = engine, stocked
        self.cleanup = ExitStack()

    def __enter__(self) -> Self:
        base = tree(self.suite, self.kind)
        images = store() if self.engine and self.stocked else None
        with self.cleanup:
            self._take_number()
            self._mount(base)
            if self.engine:
                stock(self.folder / "docker", images)
            self._connect()
            self._boot()
            self.cleanup = self.cleanup.pop_all()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.cleanup.close()

    def _take_number(self) -> None:
        """Take a free number, which decides the addresses; clean every one that nobody holds."""
        numbers = CACHE / "machines"
        numbers.mkdir(parents=True, exist_ok=True)
        used = [int(path.name) for path in numbers.iterdir() if path.is_dir()]
        taken = 0
        # Nobody else takes what is being cleaned.
        with locked("numbers"):
            for number in [*used, *(free for free in range(1, 200) if free not in used)]:
                if taken and number not in used:
                    break
                lock = self.cleanup.enter_context((numbers / f"{number}.lock").open("w"))
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    clear(number)
                    if taken:
                        lock.close()
                    else:
                        taken = number
        self.number, self.name = taken, f"live{taken}"
        self.folder = numbers / str(taken)
        self.root = self.folder / "root"
        self.host, self.gateway = f"10.214.{taken}.2", f"10.214.{taken}.1"
        self.host6, self.gateway6 = f"fd00:214:{taken}::2", f"fd00:214:{taken}::1"
        self.folder.mkdir()
        self.cleanup.callback(self._give_back, taken)

    def _give_back(self, number: int) -> None:
        with locked("numbers"):
            clear(number)

    def _mount(self, base: Path) -> None:
        for name in ("up", "work", "root"):
            (self.folder / name).mkdir()
        layers = f"lowerdir={base},upperdir={self.folder}/up,workdir={self.folder}/work"
        # Nothing of it is kept, so nothing needs to reach the disk.
        call("mount", "-t", "overlay", "overlay", "-o", f"{layers},volatile", self.root)
        etc = self.root / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        names = f"{self.name} {self.domain}".strip()
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {names}\n::1 localhost\n")
        shutil.copy("/etc/resolv.conf", etc / "resolv.conf")
        units = etc / "systemd/system"
        (units / "sysinit.target.wants").mkdir(parents=True, exist_ok=True)
        if not (CGROUPS / "cgroup.controllers").exists():
            (units / "writable-cgroups.service").write_text(WRITABLE)
            link = units / "sysinit.target.wants/writable-cgroups.service"
            link.symlink_to("../writable-cgroups.service")
        for home in (self.root / "root", self.root / "home/deploy"):
            (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
            shutil.copy(f"{key()}.pub", home / ".ssh/authorized_keys")
        call("chroot", self.root, "chown", "-R", "deploy:", "/home/deploy/.ssh")
        if self.python:
            place_python(self.python, self.root)

    def _connect(self) -> None:
        """Give the machine a network of its own, this host as its way out."""
        outside, inside = f"ve-{self.name}", self.name
        call("ip", "netns", "add", inside)
        call("ip", "link", "add", outside, "type", "veth", "peer", "name", "host0", "netns", inside)
        call("ip", "address", "add", f"{self.gateway}/24", "dev", outside)
        # Whoever takes a number is alone with it.
        call("ip", "address", "add", f"{self.gateway6}/64", "dev", outside, "nodad")
        call("ip", "link", "set", outside, "up")
        call("ip", "-n", inside, "address", "add", f"{self.host}/24", "dev", "host0")
        call("ip", "-n", inside, "address", "add", f"{self.host6}/64", "dev", "host0", "nodad")
        for device in ("host0", "lo"):
            call("ip", "-n", inside, "link", "set", device, "up")
        call("ip", "-n", inside, "route", "add", "default", "via", self.gateway)
        forwarding = Path("/proc/sys/net/ipv4/ip_forward")
        with locked("forwarding"):
            if forwarding.read_text().strip() == "0":
                (CACHE / "forwarding-was-off").touch()
                forwarding.write_text("1")
        for rule in rules(self.number):
            call("iptables", "-w", *rule[:2], "-I", *rule[2:])

    def _boot(self) -> None:
        groups = []
        for controller in cgroups(self.number):
            with suppress(OSError):
                controller.mkdir()
                groups.append(controller)
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if (controller / name).exists():
                        (controller / name).write_text((controller.parent / name).read_text())
        command = [
            *("--quiet", "--boot", f"--directory={self.root}", f"--machine={self.name}"),
            *(f"--network-namespace-path=/run/netns/{self.name}", "--console=pipe"),
            *("--resolv-conf=off", "--link-journal=no", "--kill-signal=SIGRTMIN+3"),
            *("--register=no", "--keep-unit"),
        ]
        environment = {"MACHINE": self.name, "GROUPS_OF_MACHINE": " ".join(map(str, groups))}
        if self.engine:
            # An engine's images can be stacked on a plain file system only.
            command += [*NESTED, f"--bind={self.folder}/docker:/{ENGINE}"]
            environment["SYSTEMD_NSPAWN_API_VFS_WRITABLE"] = "network"
        with (self.folder / "console").open("wb") as console:
            keeper = subprocess.Popen(
                ["sh", "-c", KEEPER, f"keeper-{self.name}", *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=os.environ | environment,
                start_new_session=True,
            )
        (self.folder / "keeper").write_text(str(keeper.pid))
        self.cleanup.callback(keeper.wait)
        self.cleanup.callback(stop, self.folder)
        self.wait()

    def wait(self, seconds: float = 60) -> None:
        """Wait until everything that starts at boot has started."""
        deadline = time.monotonic() + seconds
        while (state := self.run("systemctl is-system-running", check=False).strip()) not in {
            "running",
            "degraded",
        }:
            if time.monotonic() > deadline:
                said = (self.folder / "console").read_text(errors="replace")
                said += self.run("systemctl list-jobs; systemctl status --no-pager", check=False)
                raise RuntimeError(f"{self.name} did not boot ({state}): {said[-4000:]}")
            time.sleep(0.1)

    def run(
        self, command: str, *, check: bool = True, timeout: float = 120, text: str | None = None
    ) -> str:
        """Run a shell command inside as root; `text` is its input."""
        process = leader(self.folder)
        if process is None:
            if check:
                raise RuntimeError(f"{self.name} is not up")
            return ""
        enter = ("nsenter", f"--target={process}", "--all", "--root", "--wdns=/", "--")
        clean = ("env", "-i", "HOME=/root", "LANG=C.UTF-8")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            [*enter, *clean, path, "bash", "-c", command],
            input=text or "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        if check and done.returncode:
            said = (done.stdout + done.stderr)[-3000:]
            raise RuntimeError(f"{self.name}: {command}: status {done.returncode}: {said}")
        return done.stdout

    @contextmanager
    def first(self) -> Iterator[None]:
        """Let it have the processors before other machines, as if it was alone on this host."""
        shares = CGROUPS / "cpu" / self.name / "cpu.shares"
        usual = shares.read_text() if shares.exists() else ""
        if usual:
            shares.write_text("100000")
        yield
        if usual:
            shares.write_text(usual)

    def reboot(self) -> None:
        """Go down, and begin to come up again."""
        started, before = time.monotonic(), leader(self.folder)
        self.run("systemctl --no-block reboot")
        while leader(self.folder) == before:
            if time.monotonic() - started > 120:
                raise RuntimeError(f"{self.name} does not go down")
            time.sleep(0.05)

    def read(self, path: str) -> str:
        """Return a file's text."""
        return self.run(f"cat {shlex.quote(path)}")

    def put(self, source: Path, destination: str) -> None:
        """Copy a file or a folder into the machine, which then belongs to its root."""
        target = self.root / destination.lstrip("/")
        assert not destination.startswith(("/run/", "/tmp/")), (
            "what is mounted inside is not seen here"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        call("cp", "-rT", source, target)

    def ssh_command(self) -> str:
        """The ssh of one who deploys: a user with sudo."""
        config = self.folder / "ssh"
        options = {
            "User": "deploy",
            "IdentityFile": key(),
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "LogLevel": "ERROR",
            "ConnectTimeout": 5,
        }
        config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        return f"ssh -F {config}"


def until(condition: Callable[[], object], what: str, seconds: float) -> float:
    """Wait for something; return how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - started


def key() -> Path:
    """Return the key that opens every machine."""
    path = CACHE / "key"
    with locked("key"):
        if not path.exists():
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "live", "-f", path)
    return path


def place_python(home: Path, root: Path) -> None:
    """Copy an interpreter's tree to /usr/local, beside the system's own `python3`."""
    version = home.name.rpartition(".")[0]
    library = f"lib/python{version}"
    left_out = ("__pycache__", "*.a", f"{library}/test", f"{library}/site-packages/*")
    exclude = [f"--exclude={name}" for name in (*left_out, f"{library}/config-*")]
    files = [f"bin/python{version}", library]
    files += [path.relative_to(home).as_posix() for path in home.glob("lib/libpython*.so*")]
    with subprocess.Popen(
        ["tar", "-C", home, *exclude, "-cf", "-", *files], stdout=subprocess.PIPE
    ) as packed:
        local = root / "usr/local"
        subprocess.run(["tar", "-C", local, "-xf", "-"], stdin=packed.stdout, check=True)
    (root / "usr/local" / library / "site-packages").mkdir(exist_ok=True)
    call("chroot", root, "chown", "-R", "root:", "/usr/local/bin", "/usr/local/lib")
    call("chroot", root, "ldconfig")


def rules(number: int) -> list[list[str]]:
    """The firewall's rules for a machine, each with its table first."""
    mark = ["-m", "comment", "--comment", f"live{number}", "-j"]
    net, device = f"10.214.{number}.0/24", f"ve-live{number}"
    masquerade = ["-s", net, "!", "-d", "10.214.0.0/16", *mark, "MASQUERADE"]
    return [
        ["-t", "nat", "POSTROUTING", *masquerade],
        ["-t", "filter", "FORWARD", "-i", device, *mark, "ACCEPT"],
        ["-t", "filter", "FORWARD", "-o", device, *mark, "ACCEPT"],
    ]


def cgroups(number: int) -> list[Path]:
    """A group for the machine in every hierarchy of cgroup v1, so that limits work."""
    return [
        path.parent / f"live{number}"
        for path in CGROUPS.glob("*/cgroup.procs")
        if not (CGROUPS / "cgroup.controllers").exists()
    ]


def children(process: int) -> list[int]:
    """The processes that a process started."""
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in listed.split()]


def leader(folder: Path) -> int | None:
    """Return the machine's first process, as this host counts."""
    with suppress(OSError, ValueError):
        for nspawn in children(keeper_of(folder)):
            for process in children(nspawn):
                return process
    return None


def keeper_of(folder: Path) -> int:
    """Return the process that keeps a machine; 0 where the number is another's by now."""
    process = int((folder / "keeper").read_text())
    words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    return process if f"keeper-live{folder.name}".encode() in words else 0


def stop(folder: Path) -> None:
    """End a machine at once, as if the power failed."""
    with suppress(OSError, ValueError):
        keeper = keeper_of(folder)
        if not keeper:
            return
        ended = [keeper, *children(keeper)]
        ended += [process for nspawn in children(keeper) for process in children(nspawn)]
        for process in ended:
            with suppress(ProcessLookupError):
                os.kill(process, 9)
        for process in ended[1:]:
            while Path(f"/proc/{process}").exists():
                time.sleep(0.02)


def clear(number: int) -> None:
    """Remove whatever there is of a machine."""
    folder = CACHE / "machines" / str(number)
    stop(folder)
    for rule in rules(number):
        call("iptables", "-w", *rule[:2], "-D", *rule[2:], check=False)
    call("ip", "netns", "delete", f"live{number}", check=False)
    call("ip", "link", "delete", f"ve-live{number}", check=False)
    shutil.rmtree(f"/run/systemd/nspawn/propagate/live{number}", ignore_errors=True)
    for group in cgroups(number):
        for inner in sorted(group.rglob("*"), reverse=True):
            if inner.is_dir():
                inner.rmdir()
        if group.exists():
            group.rmdir()
    if (folder / "root").is_mount():
        call("umount", "--lazy", folder / "root")
    if folder.exists():
        remove(folder)
    with locked("forwarding"):
        # Somebody else may have come to rely on it.
        unused = "-A" not in call("iptables", "-w", "-S", "FORWARD")
        if unused and (CACHE / "forwarding-was-off").exists():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
            (CACHE / "forwarding-was-off").unlink()
