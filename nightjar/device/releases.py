"""Releases on a board: list, switch, roll back; sent to boards, standard library only.

    DEPLOYED/NAME/releases/ID/…    one bundle each, as its manifest.json describes
    DEPLOYED/NAME/current          -> releases/ID, renamed into place: the old release or the new one, never none
    DEPLOYED/NAME/history.json     ids that were current, oldest first; a rollback removes the later ones

`current` alone decides. The history is written before a switch to a new release and after a rollback, so after a kill
at any moment it is correct once the entries behind the current one are cut off.
"""

from __future__ import annotations  # boards have older Pythons

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ID = re.compile(r"[0-9a-f]{16}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
MANIFEST_BYTES = 1 << 22
SHOWN_KEYS = ("model", "target", "precision", "port")


class Refused(Exception):
    """The request is refused, and nothing was changed."""


class Releases:
    """The folder of one deployment."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.link = root, root / "releases", root / "current"

    def current(self) -> str:
        """Return the id of the current release, empty where there is no valid link."""
        try:
            folder, _, name = os.readlink(str(self.link)).rpartition("/")  # noqa: PTH115 (3.9)
        except OSError:
            return ""
        return name if folder == "releases" and ID.fullmatch(name) else ""

    def history(self) -> list[dict[str, Any]]:
        """Return the releases that were current, oldest first, the current one last."""
        content = _read_json(self.root / "history.json")
        entries = []
        for entry in content if isinstance(content, list) else []:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                if ID.fullmatch(entry["id"]):
                    entries.append({"id": entry["id"], "time_s": float(entry["time_s"])})
        current = self.current()
        while entries and entries[-1]["id"] != current:  # a switch that was not made, or a rollback that was
            entries.pop()
        if current and not entries:  # set by hand
            entries = [{"id": current, "time_s": 0.0}]
        return entries

    def ids(self) -> list[str]:
        """List the release folders; folders with other names are left alone."""
        return _list_names(self.folder, ID)

    def state(self) -> dict[str, Any]:
        """Return the releases, newest first, with their descriptions, and which one is current."""
        entries = self.history()
        times_s = {entry["id"]: entry["time_s"] for entry in entries}
        listed = []
        for name in dict.fromkeys([entry["id"] for entry in reversed(entries)] + self.ids()):
            about = _read_manifest(self.folder / name)
            listed.append(
                {
                    "id": name,
                    "whole": (self.folder / name).is_dir() and name in times_s,
                    "time_s": times_s.get(name, 0.0),
                    "about": {key: about.get(key) for key in SHOWN_KEYS},
                }
            )
        history = [entry["id"] for entry in entries]
        return {"root": str(self.root), "current": self.current(), "history": history, "releases": listed}

    def check(self, name: str) -> str:
        """Return what is wrong with a release, empty when every file matches its manifest; flushes them to disk."""
        folder = self.folder / name
        manifest = _read_manifest(folder)
        files = manifest.get("files")
        if not isinstance(files, dict) or manifest.get("id") != name:
            return "it has no manifest.json of its own"
        for path, (_, sha256) in files.items():
            if path.startswith("/") or ".." in path.split("/"):
                return f"its manifest.json names {ascii(path)[:100]}, which is outside"
            try:
                with (folder / path).open("rb") as file:
                    hashed = hashlib.sha256()
                    for data in iter(lambda: file.read(1 << 20), b""):
                        hashed.update(data)
                    os.fsync(file.fileno())
            except OSError as error:
                return f"{path}: {error.strerror}"
            if hashed.hexdigest() != sha256:
                return f"{path} is not what was sent"
        return ""

    def begin(self, name: str) -> dict[str, Any]:
        """Make room for an upload: delete the releases that were never current, except this one."""
        self._delete_except({entry["id"] for entry in self.history()} | {name})
        return self.state()

    def drop(self, name: str) -> dict[str, Any]:
        """Delete a release that failed, unless it was current before."""
        if name not in {entry["id"] for entry in self.history()}:
            shutil.rmtree(str(self.folder / name), ignore_errors=True)
        return self.state()

    def switch(self, name: str, keep: int) -> dict[str, Any]:
        """Make an undamaged release current and delete all but the newest `keep`; raises Refused."""
        self._refuse_damaged(name)
        entries = self.history()
        if self.current() != name:
            entries.append({"id": name, "time_s": time.time()})
            self._write_history(entries)
            self._point_to(name)
        newest = list(dict.fromkeys(entry["id"] for entry in reversed(entries)))[:keep]
        with contextlib.suppress(OSError):  # the switch is made; the next one deletes the rest
            left = (entry for entry in entries if entry["id"] in newest)
            self._write_history([next(same) for _, same in itertools.groupby(left, lambda entry: entry["id"])])
            self._delete_except(newest)
        return self.state()

    def back(self, to: str) -> dict[str, Any]:
        """Make the release before the current one current again, or the release `to`; raises Refused."""
        entries = self.history()
        before = [entry["id"] for entry in entries[:-1]]
        if to and to not in before:
            raise Refused(
                f"release {to} was never current, or is deleted; earlier releases: {', '.join(before) or 'none'}"
            )
        if not before:
            raise Refused("there is no release before this one" if entries else "nothing is deployed")
        at = max(number for number, name in enumerate(before) if not to or name == to)
        self._refuse_damaged(before[at])
        self._point_to(before[at])
        self._write_history(entries[: at + 1])
        return self.state()

    def _refuse_damaged(self, name: str) -> None:
        if problem := self.check(name):
            raise Refused(f"release {name} is damaged: {problem}")

    def _delete_except(self, names: Any) -> None:
        for other in self.ids():
            if other not in names:
                shutil.rmtree(str(self.folder / other), ignore_errors=True)

    def _point_to(self, name: str) -> None:
        new = self.root / ".current.new"
        new.unlink(missing_ok=True)
        new.symlink_to("releases/" + name)
        new.replace(self.link)
        _sync(self.root)

    def _write_history(self, entries: list[dict[str, Any]]) -> None:
        new = self.root / ".history.new"
        new.write_text(json.dumps(entries[-1000:]), encoding="utf-8")
        _sync(new)
        new.replace(self.root / "history.json")
        _sync(self.root)


def _list_names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name))
    except OSError:
        return []


def _sync(path: Path) -> None:
    handle = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_BYTES + 1)
        return json.loads(data.decode("utf-8")) if len(data) <= MANIFEST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def _read_manifest(release: Path) -> dict[str, Any]:
    manifest = _read_json(release / "manifest.json")
    return manifest if isinstance(manifest, dict) else {}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request; raises Refused."""
    deployed, do = Path(request["deployed"]).expanduser(), request["do"]
    if do == "list":
        return {"deployments": {name: Releases(deployed / name).state() for name in _list_names(deployed, NAME)}}
    name, release = request["name"], request.get("id", "")
    if not NAME.fullmatch(name):
        raise Refused(f"{ascii(name)[:100]} is not a valid deployment name")
    if release and not ID.fullmatch(release):
        raise Refused(f"{ascii(release)[:100]} is not a valid release id")
    one = Releases(deployed / name)
    if do == "check":
        return {"wrong": one.check(release)}
    if do == "switch":
        return one.switch(release, int(request["keep"]))
    return {"begin": one.begin, "drop": one.drop, "back": one.back}[do](release)


if __name__ == "__main__":
    try:
        print(json.dumps(answer(json.loads(sys.argv[1]))))
    except Refused as error:
        print(json.dumps({"refused": str(error)}))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
