"""Writes all test images as a registry's storage: write_registry.py PACKAGES PROGRAMS OUT.

PACKAGES: contents of Debian's busybox and libc6. PROGRAMS: compiled programs/*.c. OUT gets docker/registry/v2/… and
images.json, which gives for each `repository:tag` the manifest digest and the image ID (the config digest).
"""

import json
import pathlib
import sys

import catalogue
import registry


def main() -> None:
    packages, programs, out = map(pathlib.Path, sys.argv[1:])
    storage = registry.Registry(out)
    known = {}
    for names, image in catalogue.images(packages, programs):
        pushed = storage.push(names, image)
        for name in names:
            known[name] = {"manifest": pushed["manifest"], "id": pushed["id"]}
    (out / "images.json").write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


main()
