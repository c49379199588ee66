"""What test images there are: critest's, by the names it has compiled in (without the registry's host), and our own."""

import pathlib

import base
import large_image
import layer
import layered_image
import registry
from registry import Image

E2E = "e2e-test-images"
CRI_TOOLS = "k8s-staging-cri-tools"
SHELL = {"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}


def images(packages: pathlib.Path, programs: pathlib.Path) -> list[tuple[list[str], Image]]:
    """Each image with the `repository:tag` names that it has."""
    busybox = base.busybox(packages)

    def compiled(name: str) -> bytes:
        return (programs / name).read_bytes()

    def on_busybox(mark: str, config: dict | None = None, **attributes) -> Image:
        return Image([busybox], {**SHELL, **(config or {})}, mark, **attributes)

    web_server = [
        layer.program("usr/sbin/nginx", compiled("web_server")),
        layer.program("usr/sbin/httpd-foreground", compiled("web_server")),
    ]
    pause = [layer.program("pause", compiled("pause"))]
    effective_uid = [layer.program("nnp", compiled("effective_uid"), 0o4755)]
    default_user = [
        layer.file("etc/passwd", base.PASSWD + "default-user:x:1000:1000::/home/default-user:/bin/sh\n"),
        layer.file("etc/group", base.GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"),
    ]

    def web(mark: str, *entrypoint: str) -> Image:
        return Image([busybox, web_server], {**SHELL, "Cmd": None, "Entrypoint": list(entrypoint)}, mark)

    return [
        # Ours.
        (["busybox:latest", "library/busybox:latest"], on_busybox("busybox")),
        (["layers:latest"], Image([busybox, *layered_image.layers()], SHELL, "layers")),
        (["large:latest"], Image([busybox, *large_image.layers(large_image.FEW)], SHELL, "large")),
        (["eight-layers:latest"], Image([busybox, *large_image.layers(large_image.MANY)], SHELL, "eight layers")),
        (["packing/plain:latest"], on_busybox("plain", packing=registry.PLAIN)),
        (["packing/zstd:latest"], on_busybox("zstd", packing=registry.ZSTD)),
        (["packing/docker:latest"], on_busybox("docker", packing=registry.DOCKER)),
        (["packing/index:latest"], on_busybox("index", indexed=True)),
        # critest's, those with something in them.
        ([f"{E2E}/busybox:1.29-2"], on_busybox("e2e busybox")),
        ([f"{E2E}/nginx:1.14-2"], web("nginx", "nginx", "-g", "daemon off;")),
        ([f"{E2E}/httpd:2.4.39-4"], web("httpd", "httpd-foreground")),
        ([f"{CRI_TOOLS}/hostnet-nginx-amd64:latest"], web("hostnet-nginx", "nginx", "12003")),
        ([f"{E2E}/nonewprivs:1.3"], Image([busybox, effective_uid], {**SHELL, "Cmd": None, "Entrypoint": ["/nnp"]}, "nonewprivs")),
        # critest pulls it from two registries and expects one image.
        (["pause:3.9"], Image([pause], {"Entrypoint": ["/pause"]}, "pause")),
        (
            [f"{CRI_TOOLS}/test-image-predefined-group:latest"],
            Image([busybox, default_user], {**SHELL, "User": "1000"}, "predefined-group"),
        ),
        # critest's, those that are only named, pulled, listed and removed.
        *(
            ([f"{CRI_TOOLS}/test-image-user-{name}:latest"], on_busybox(f"user-{name}", {"User": user}))
            for name, user in (
                ("uid", "1002"),
                ("username", "www-data"),
                ("uid-group", "1003:1004"),
                ("username-group", "www-data:1004"),
            )
        ),
        *(([f"{CRI_TOOLS}/test-image-{name}:latest"], on_busybox(name)) for name in ("latest", "1", "2", "3", "digest")),
        ([f"{CRI_TOOLS}/test-image-tag:test"], on_busybox("tag:test", {"Cmd": ["top"]})),
        ([f"{CRI_TOOLS}/test-image-tag:all"], on_busybox("tag:all")),
        # One image under three tags.
        ([f"{CRI_TOOLS}/test-image-tags:{tag}" for tag in ("1", "2", "3")], on_busybox("tags")),
        # Of critest's benchmarks.
        *(
            ([f"docker/library/busybox:{tag}"], on_busybox(f"benchmark {tag}"))
            for tag in ("1", "1-glibc", "1-musl", "1-uclibc", "1.35.0-glibc")
        ),
    ]
