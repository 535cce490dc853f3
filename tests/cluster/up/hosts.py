"""Hosts made of namespaces: each has its own network, processes, mounts and name, and an sshd; no way leads out.

They share this machine's files except for the home of root, `/mnt`, `/tmp/ray`, `/dev/shm` and `/run`.
"""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

NEEDED = ("ip", "unshare", "nsenter", "setpriv", "rsync", "ssh", "ssh-keygen", "/usr/sbin/sshd")
ENTER = """
set -e
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/ray" /tmp/ray
mount --bind "$1/own" /mnt
mount -t tmpfs tmpfs /run
mount -t tmpfs -o size=1g tmpfs /dev/shm
mkdir /run/sshd
hostname "$2"
export HOME="$1/home"
cd "$HOME"
shift 2
exec "$@"
"""
SSHD = """
ListenAddress {address}:22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
PermitRootLogin yes
StrictModes no
UsePAM no
"""


def missing() -> str:
    """Why hosts cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (openssh-server, rsync, iproute2)"
    within = ["unshare", "--net", "--pid", "--fork", "--mount", "--mount-proc", "--uts", "sh", "-e", "-c"]
    links = "ip link add bridge0 type bridge; ip link add one type veth peer name two; ip netns list"
    tried = subprocess.run([*within, links], capture_output=True)
    return "" if tried.returncode == 0 else f"namespaces are refused here: {tried.stderr.decode().strip()}"


class Hosts:
    """A network of hosts and a laptop from which they are reached.

    Attributes:
        addresses: Of each host by name.
        key: Private key that all of them accept.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.key = folder / "key"
        self._mark = uuid.uuid4().hex[:6]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._spaces: list[str] = []
        self.addresses = {name: f"10.77.0.{10 + number}" for number, name in enumerate(("laptop", *names))}
        Path("/tmp/ray").mkdir(exist_ok=True)  # to mount something of each host's own there
        for key in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        try:
            self._connect()
            for name in names:
                self._start(name)
        except BaseException:
            self.end()
            raise

    def home(self, name: str) -> Path:
        """Home of root on a host."""
        return self.folder / name / "home"

    def own(self, name: str) -> Path:
        """What a host, and nobody else, sees as `/mnt`."""
        return self.folder / name / "own"

    def laptop(self, *command: str, **environment: str) -> list[str]:
        """A command line that runs a command on the laptop."""
        variables = [f"{key}={value}" for key, value in environment.items()]
        return [*self._inside("laptop"), *self._entering("laptop"), "env", *variables, *command]

    def kill(self, name: str) -> None:
        """Cut a host's power."""
        process = self._running.pop(name)
        process.kill()  # and with it, by --kill-child, the first process of its namespace, and so all
        process.wait()

    def processes(self, name: str) -> list[str]:
        """Command lines of a host's processes."""
        first = self._running[name].pid
        space = os.readlink(f"/proc/{first}/ns/pid_for_children")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/pid") == space:
                    found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def end(self) -> None:
        """Leave nothing behind."""
        for name in list(self._running):
            self.kill(name)
        for space in self._spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)

    def _connect(self) -> None:
        """A bridge, in a namespace of its own, and an interface for each."""
        bridge = self._space("bridge")
        _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", "br0", "up")
        for number, (name, address) in enumerate(self.addresses.items()):
            space, port = self._space(name), f"port{number}"
            _run("ip", "-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "-n", bridge, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            # nobody is there: Ray finds its own address by asking which way leads out
            _run("ip", "-n", space, "route", "add", "default", "via", "10.77.0.254")
            self._furnish(name)

    def _furnish(self, name: str) -> None:
        place = self.folder / name
        for inner in ("home/.ray", "home/.ssh", "ray", "own"):
            (place / inner).mkdir(parents=True)
        (place / "home/.bashrc").touch()
        lines = Path("/etc/passwd").read_text().splitlines()
        own = [f"root:x:0:0:root:{place / 'home'}:/bin/bash" if line.startswith("root:") else line for line in lines]
        (place / "passwd").write_text("\n".join(own) + "\n")
        (place / "sshd_config").write_text(SSHD.format(address=self.addresses[name], folder=self.folder))

    def _start(self, name: str) -> None:
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / name / "sshd_config")]
        with (self.folder / name / "sshd.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._inside(name), *apart, *self._entering(name), *sshd],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )

    def _space(self, name: str) -> str:
        """A network namespace of a name nobody else has."""
        space = f"adept-{self._mark}-{name}"
        _run("ip", "netns", "add", space)
        self._spaces.append(space)
        return space

    def _inside(self, name: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/adept-{self._mark}-{name}"]

    def _entering(self, name: str) -> list[str]:
        return ["unshare", "--mount", "--uts", "sh", "-c", ENTER, "enter", str(self.folder / name), name]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
