#!/usr/bin/env python3
"""Writes the container images that test hosts need, made from Debian's static busybox. No registry is asked.

usage: make-images.py OUT_DIR     writes testbed-pause.tar and testbed-web.tar, for K3s' agent/images/

testbed/pause:1  holds a pod's namespaces; the hosts' configuration names it (pause-image)
testbed/web:1    answers "ok" by HTTP on port 8080; use it with imagePullPolicy: Never
"""
import hashlib
import io
import json
import sys
import tarfile

BUSYBOX = "/bin/busybox"


def add(tar, name, data, mode=0o644):
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def add_link(tar, name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    tar.addfile(info)


def write_image(path, name, entrypoint):
    """An archive as `docker save` writes it, with one layer."""
    with open(BUSYBOX, "rb") as file:
        busybox = file.read()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "bin/busybox", busybox, 0o755)
        add_link(tar, "bin/sh", "busybox")
    layer = buffer.getvalue()
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]},
    }).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [digest + "/layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        add(tar, config_name, config)
        add(tar, digest + "/layer.tar", layer)
        add(tar, "manifest.json", json.dumps(manifest).encode())


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = sys.argv[1]
    write_image(f"{out}/testbed-pause.tar", "docker.io/testbed/pause:1", ["/bin/busybox", "sleep", "2147483647"])
    serve = "/bin/busybox mkdir -p /www; echo ok > /www/index.html; exec /bin/busybox httpd -f -p 8080 -h /www"
    write_image(f"{out}/testbed-web.tar", "docker.io/testbed/web:1", ["/bin/sh", "-c", serve])


if __name__ == "__main__":
    main()
