"""The batch scripts that copy, move, remove, pack and unpack files, and fetch them from and bring them to the store."""

from __future__ import annotations

import html
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

from prefect_mantik.sandbox.firecrest.file_changes import TAR_FLAGS

DIRECTIVES = ("#SBATCH --nodes=1", "#SBATCH --time=0-00:15:00")

_HEAD = "\n".join(("#!/bin/bash", *DIRECTIVES, ""))

# A command that fails makes no job fail: the last `exit` gives what the `echo` before it gave.
_COMMAND = """{head}
echo "$(date -u)" "{title} Files Job (id:${{SLURM_JOB_ID}})"
status=$({command})
if [[ "$?" == '0' ]]
then
    echo "$(date -u)" "Files were successfully {done}."
    exit 0
else
    echo "$(date -u)" "Unable to {verb} files exit code:${{?}} error: ${{status}}" >&2
    exit $?
fi
"""

_PYTHON = """{head}
exec python3 - {arguments} <<'EOF'
import sys
import time
import urllib.error
import urllib.request


def say(text):
    print(time.strftime("%a %b %-d %H:%M:%S UTC %Y", time.gmtime()), text, flush=True)


def ask(method, url, data=None, **headers):
    return urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method))

{body}
EOF
"""

# Looks for the file until its time is over; the real one does so once a minute.
_INGRESS = """
url_to_look, url, target, denied, job = sys.argv[1:]
say(f"Ingress File Transfer Job (id:{job})")
say("Waiting till file to tranfer is available...")
while True:
    try:
        ask("HEAD", url_to_look).close()
        break
    except urllib.error.HTTPError:
        time.sleep(0.2)
say("File to transfer found in S3 bucket")
say(f"Downloading file to: {target} ...")
received = 0
try:
    if denied:
        raise PermissionError(13, "Permission denied")
    file = open(target, "wb")
except OSError as error:
    print(f"cat: {target}: {error.strerror}", file=sys.stderr)
    file = open("/dev/null", "wb")
with file, ask("GET", url) as reply:
    while chunk := reply.read(1 << 20):
        received += len(chunk)
        try:
            file.write(chunk)
        except OSError as error:
            print(f"cat: write error: {error.strerror}", file=sys.stderr)
say(f"Received {received} bytes")
say(f"File was successfully downloaded (size: {received / 1024 / 1024:.3f}MB)")
"""

_OUTGRESS = """
BLOCK = 1 << 20
source, folder, complete, job, *urls = sys.argv[1:]
say(f"Upload File Job (id:{job})")
print(f"Uploading file:{source} into {len(urls)} chunks")
try:
    file = open(source, "rb")
except OSError:
    print("file_not_found", file=sys.stderr)
    sys.exit(34)
print(f"[INFO] Creating temporary folder:{folder}")
size = file.seek(0, 2)
part_size = -(-size // len(urls))
in_blocks = -(-part_size // BLOCK) * BLOCK
tags = []
for number, url in enumerate(urls, 1):
    print(f"[INFO] Uploading part {number}...")
    file.seek((number - 1) * in_blocks)
    with ask("PUT", url, file.read(in_blocks)) as reply:
        tags.append(reply.headers["ETag"].strip('"'))
print("[INFO] Parts upload completed.")
for number, tag in enumerate(tags, 1):
    print(f"[INFO] Upload of part {number} succeded with ETag: {tag}|")
print("[INFO] Signaling multipart upload completion", flush=True)
parts = "".join(f'<Part><PartNumber>{n}</PartNumber><ETag>"{tag}"</ETag></Part>' for n, tag in enumerate(tags, 1))
xmlns = "http://s3.amazonaws.com/doc/2006-03-01/"
document = f'<CompleteMultipartUpload xmlns="{xmlns}">{parts}</CompleteMultipartUpload>'
try:
    ask("POST", complete, document.encode()).close()
except urllib.error.HTTPError as error:
    print(f"curl: (22) The requested URL returned error: {error.code}", file=sys.stderr)
    sys.exit(70)
print("[INFO] Multipart file upload successfully completed")
"""


@dataclass(frozen=True)
class Transfer:
    """A job that deals with files.

    Attributes:
        name: The job's name.
        script: The batch script.
    """

    name: str
    script: str


def copy(source: str, target: str, denied: str, *, dereference: bool) -> Transfer:
    """Copy files and directories.

    Args:
        source: What is copied.
        target: Where to.
        denied: What the command says instead of doing it; empty if it may.
        dereference: Whether links stand for what they point to.
    """
    options = "-RL" if dereference else "-R"
    return _files("Copy", "copy", "copied", f"cp {options} -- {_quoted(source)} {_quoted(target)}", denied)


def move(source: str, target: str, denied: str) -> Transfer:
    """Move files and directories; the arguments are those of `copy`."""
    return _files("Move", "move", "moved", f"mv -- {_quoted(source)} {_quoted(target)}", denied)


def remove(path: str, denied: str) -> Transfer:
    """Remove files and directories; the arguments are those of `copy`."""
    return _files("Delete", "delete", "deleted", f"rm -R -- {_quoted(path)}", denied)


def compress(source: str, target: str, denied: str, *, compression: str, pattern: str, dereference: bool) -> Transfer:
    """Pack files and directories.

    Args:
        source: What is packed.
        target: The archive.
        denied: What the command says instead of doing it; empty if it may.
        compression: How to compress it.
        pattern: Packs only files whose path matches it.
        dereference: Whether links stand for what they point to.
    """
    options = "--dereference " if dereference else ""
    where, what = PurePosixPath(source).parent, PurePosixPath(source).name
    tar = f"tar {options}-c{TAR_FLAGS[compression]}vf {_quoted(target)}"
    command = f"{tar} -C {_quoted(str(where))} {_quoted(what)}"
    if pattern:
        found = f"find . -type f -regex {_quoted(pattern)} -print0"
        command = f"cd {_quoted(str(where))}; {found} | {tar} --null --files-from -"
    return _files("Compress", "compress", "compressed", command, denied)


def extract(source: str, target: str, denied: str, *, compression: str) -> Transfer:
    """Unpack an archive; the arguments are those of `compress`."""
    command = f"tar -x{TAR_FLAGS[compression]}f {_quoted(source)} -C {_quoted(target)}"
    return _files("Extract", "extract", "extracted", command, denied)


def ingress(url_to_look: str, url: str, target: str, *, denied: bool) -> Transfer:
    """Wait for a file in the store, and fetch it.

    Failures to write it go unnoticed, as they do at the real server.

    Args:
        url_to_look: Tells whether it is there.
        url: The file in the store.
        target: Where to.
        denied: Whether the user may not write there.
    """
    arguments = [url_to_look, url, html.escape(target), "denied" if denied else ""]
    return Transfer("IngressFileTransfer", _python(_INGRESS, arguments))


def outgress(source: str, folder: str, urls: list[str], complete: str) -> Transfer:
    """Bring a file to the store.

    Args:
        source: The file.
        folder: The temporary folder that its log names.
        urls: One for each part.
        complete: The URL that ends it.
    """
    return Transfer("OutgressFileTransfer", _python(_OUTGRESS, [html.escape(source), folder, complete], urls))


def _files(title: str, verb: str, done: str, command: str, denied: str) -> Transfer:
    if denied:
        command = f"echo {shlex.quote(denied)} >&2; false"
    script = _COMMAND.format(head=_HEAD, title=title, command=command, done=done, verb=verb)
    return Transfer(f"{title}Files", script)


def _python(body: str, arguments: list[str], more: list[str] | None = None) -> str:
    words = [*map(shlex.quote, arguments), '"$SLURM_JOB_ID"', *map(shlex.quote, more or [])]
    return _PYTHON.format(head=_HEAD, arguments=" ".join(words), body=body)


def _quoted(path: str) -> str:
    # The server's templates escape what is put into them as if they were HTML.
    return f"'{html.escape(path).replace('&#x27;', '&#39;').replace('&quot;', '&#34;')}'"
