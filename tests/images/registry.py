"""OCI images, and their place in the storage of a distribution registry's filesystem driver.

Formats: the OCI image specification (config.md, manifest.md, image-index.md, layer.md) and, for one image, Docker's
image manifest version 2, schema 2. The storage layout is that of the `distribution` registry, root docker/registry/v2.
"""

import dataclasses
import gzip
import hashlib
import json
import pathlib
import subprocess
from collections.abc import Callable

import layer

CREATED = "2024-01-02T03:04:05Z"

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the blobs of an image are stored and named."""

    compress: Callable[[bytes], bytes]
    layer_type: str
    config_type: str = OCI_CONFIG
    manifest_type: str = OCI_MANIFEST


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=6, mtime=0)


def zstandard(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


GZIP = Packing(gzipped, "application/vnd.oci.image.layer.v1.tar+gzip")
ZSTD = Packing(zstandard, "application/vnd.oci.image.layer.v1.tar+zstd")
PLAIN = Packing(lambda data: data, "application/vnd.oci.image.layer.v1.tar")
DOCKER = Packing(
    gzipped, "application/vnd.docker.image.rootfs.diff.tar.gzip", config_type=DOCKER_CONFIG, manifest_type=DOCKER_MANIFEST
)


@dataclasses.dataclass(frozen=True)
class Image:
    """Layers, lowest first, and the `config` object of the image configuration (Cmd, Env, User, …).

    `mark` sets apart images that are otherwise the same: it becomes a label, so that each has an ID of its own.
    """

    layers: list[list[layer.Entry]]
    config: dict
    mark: str
    packing: Packing = GZIP
    indexed: bool = False


class Registry:
    """The storage directory of a registry."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root / "docker/registry/v2"
        # A layer is used by many images and packed once: the packed blob's descriptor and the diff ID.
        self.packed: dict[tuple[int, int], tuple[dict, str]] = {}

    def push(self, names: list[str], image: Image) -> dict:
        """Stores an image under each `repository:tag`; what tests may want to know of it."""
        layers = [self.pack(entries, image.packing) for entries in image.layers]
        config = self.blob(
            as_json(
                {
                    "created": CREATED,
                    "architecture": "amd64",
                    "os": "linux",
                    "config": {**image.config, "Labels": {"bulkhead.test.image": image.mark}},
                    "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
                    "history": [{"created": CREATED, "created_by": f"layer {number}"} for number in range(len(layers))],
                }
            ),
            image.packing.config_type,
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": image.packing.manifest_type,
            "config": config,
            "layers": [descriptor for descriptor, _ in layers],
        }
        top = single = self.blob(as_json(manifest), image.packing.manifest_type)
        if image.indexed:
            top = self.blob(as_json(index_of(single)), OCI_INDEX)
        for name in names:
            self.link(name, config, [descriptor for descriptor, _ in layers], single, top)
        return {"manifest": top["digest"], "id": config["digest"], "names": names}

    def pack(self, entries: list[layer.Entry], packing: Packing) -> tuple[dict, str]:
        key = (id(entries), id(packing))
        if key not in self.packed:
            archive = layer.tar(entries)
            self.packed[key] = (self.blob(packing.compress(archive), packing.layer_type), digest_of(archive))
        return self.packed[key]

    def blob(self, data: bytes, media_type: str) -> dict:
        """Stores `data` by its digest and returns its descriptor."""
        digest = digest_of(data)
        algorithm, _, value = digest.partition(":")
        write(self.root / "blobs" / algorithm / value[:2] / value / "data", data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def link(self, name: str, config: dict, layers: list[dict], single: dict, top: dict) -> None:
        """Makes the stored blobs reachable in the name's repository, and the top manifest by its tag."""
        repository, _, tag = name.rpartition(":")
        root = self.root / "repositories" / repository
        for descriptor in [config, *layers]:
            write_link(root / "_layers", descriptor)
        for descriptor in (single, top):
            write_link(root / "_manifests/revisions", descriptor)
        write_link(root / "_manifests/tags" / tag / "index", top)
        write(root / "_manifests/tags" / tag / "current/link", top["digest"].encode())


def index_of(manifest: dict) -> dict:
    """An index in which the image stands second, after one of another architecture that the registry does not even have."""
    absent = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "0" * 64, "size": 7}
    return {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {**absent, "platform": {"architecture": "arm64", "os": "linux"}},
            {**manifest, "platform": {"architecture": "amd64", "os": "linux"}},
        ],
    }


def as_json(value: dict) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def write_link(directory: pathlib.Path, descriptor: dict) -> None:
    algorithm, _, value = descriptor["digest"].partition(":")
    write(directory / algorithm / value / "link", descriptor["digest"].encode())


def write(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
