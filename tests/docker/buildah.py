"""Images built and run by buildah, from a base made of this machine's own Debian: no registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PIP = "/run/pip"  # where this machine's way to packages is mounted while an image is built


def why_not() -> str | None:
    """What this machine lacks for building images, if anything."""
    if os.geteuid() != 0:
        return "needs root, to build images"
    missing = [name for name in ("buildah", "mmdebstrap") if not shutil.which(name)]
    return f"needs {', '.join(missing)}" if missing else None


needs_buildah = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class Buildah:
    """A store of images of its own, gone when this is closed as a context."""

    BASE = "localhost/debian-base"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._global = ["--root", str(folder / "store"), "--runroot", str(folder / "run")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # overlays keep what they hold mounted: rmtree alone fails on them
        self("rm", "--all")
        self("rmi", "--all", "--force")

    def __call__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """Run one of buildah's commands; what it printed on stdout, without the last newline."""
        done = subprocess.run(
            ["buildah", *self._global, *arguments],
            capture_output=True,
            text=True,
            cwd=REPO_ROOT,
            env={**os.environ, **(environment or {})},
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-6000:]}{done.stderr[-3000:]}"
        return done.stdout.rstrip("\n")

    def make_base(self) -> str:
        """A Debian like `debian:*-slim`, from where this machine's apt gets its packages.

        It trusts whom this machine trusts, as the base of a company does.
        """
        suite, mirror = _own_debian()
        container = self("from", "scratch")
        mounted = Path(self("mount", container))
        # As in Debian's slim images: nothing is flushed, since an image that breaks off in its
        # making is made anew, and pages that no container shows are left out.
        dpkg = ["force-unsafe-io", "path-include=/usr/share/doc/*/copyright"]
        dpkg[1:1] = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        options = ["--variant=minbase", "--include=ca-certificates"]
        options += [f"--dpkgopt={option}" for option in dpkg]
        own = Path("/usr/local/share/ca-certificates")
        options.append(f'--essential-hook=mkdir -p "$1{own}"')
        options += [f"--essential-hook=copy-in {path} {own}" for path in own.glob("*.crt")]
        done = subprocess.run(
            ["mmdebstrap", *options, suite, str(mounted), mirror], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        self("config", "--env", f"PATH={_PATH}", "--cmd", "/bin/bash", container)
        self("commit", "--quiet", "--rm", container, self.BASE)
        return self.BASE

    def build(self, dockerfile: str, image: str, **arguments: str) -> str:
        """Build a Dockerfile of this repository; the name of the image."""
        command = ["bud", "--isolation", "chroot", "--format", "docker", "--file", dockerfile]
        for name, value in arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        for outside, inside in self._packages().items():
            command += ["--volume", f"{outside}:{inside}:ro"]
        print(self(*command, "--tag", image, str(REPO_ROOT)))
        return image

    def start(
        self,
        image: str,
        command: Sequence[str],
        *,
        options: Sequence[str] = (),
        entrypoint: bool = True,
    ) -> tuple[str, list[str]]:
        """A container, and what runs the command in it as its user, behind its entrypoint."""
        container = self("from", image)
        form = "{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}"
        first = self("inspect", "--format", form, container).split() if entrypoint else []
        run = ["buildah", *self._global, "run", "--isolation", "chroot", *options, container, "--"]
        return container, [*run, *first, *command]

    def run(
        self,
        image: str,
        command: Sequence[str],
        *,
        options: Sequence[str] = (),
        entrypoint: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a container of its own, as `docker run --rm` does."""
        container, whole = self.start(image, command, options=options, entrypoint=entrypoint)
        try:
            return subprocess.run(whole, capture_output=True, text=True)
        finally:
            self("rm", container)

    def _packages(self) -> dict[str, str]:
        """This machine's settings of pip, for pip and for uv, and the local files they name."""
        mounts: dict[str, str] = {}
        settings: dict[str, list[str]] = {}
        for key, value in _pip_settings().items():
            words = settings.setdefault(key, [])
            for word in value.split():
                path = Path(word.removeprefix("file://"))
                if word.startswith("file://"):
                    path = path.parent  # an index points to files beside it
                if path.is_absolute() and path.exists():
                    inside = mounts.setdefault(str(path), f"{_PIP}/{len(mounts)}-{path.name}")
                    word = word.replace(str(path), inside)
                words.append(word)
        pip = {key: " ".join(words) for key, words in settings.items()}
        # uv is to look for packages as pip does
        uv: dict[str, object] = {"native-tls": True, "index-strategy": "unsafe-best-match"}
        uv |= {key: settings[key] for key in ("extra-index-url", "find-links") if key in settings}
        uv |= {key: pip[key] for key in ("index-url",) if key in pip}
        lines = {
            "/etc/pip.conf": ["[global]", *(f"{key} = {value}" for key, value in pip.items())],
            "/etc/uv/uv.toml": [f"{key} = {json.dumps(value)}" for key, value in uv.items()],
        }
        for inside in lines:
            path = self._folder / Path(inside).name
            path.write_text("\n".join(lines[inside]) + "\n", encoding="utf-8")
            mounts[str(path)] = inside
        return mounts


def _pip_settings() -> dict[str, str]:
    listed = subprocess.run(
        ["python3", "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in ("global", "install", ":env:"):
            settings[key] = value.strip("'\"").replace("\\n", " ")
    return settings


def _own_debian() -> tuple[str, str]:
    """Name and address of the release that this machine is made of."""
    form = "$(CODENAME) $(REPO_URI) $(COMPONENT)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )["VERSION_CODENAME"]
    for line in listed:
        suite, address, component = line.split()
        if suite == release and component == "main":
            return suite, address
    raise AssertionError(f"apt has no source for {release} main")
