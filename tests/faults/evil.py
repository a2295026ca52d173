"""Files that would touch a marker file if anything in them were run or fetched, and a server that nobody should ask."""

import contextlib
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

__all__ = ["Server", "Touch", "evil_pickle", "evil_pth", "evil_tag", "evil_yaml", "remote_base_yaml", "serve"]


class Touch:
    """Touches a file when unpickled without care."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (f"open({self.marker!r}, 'w').close()",)


def evil_pickle(path: Path, marker: Path, protocol: int = 4) -> Path:
    """Write what ``pickle.load`` would run, in the shape of a backbone file."""
    content = {"model": {}, "__author__": "x", "matching_heuristics": True, "x": Touch(marker)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def evil_pth(path: Path, marker: Path, new_format: bool = True) -> Path:
    """Write what ``torch.load(weights_only=False)`` would run, in the shape of a checkpoint and of pycls's."""
    content = {"model": {"w": torch.zeros(1)}, "model_state": {"w": torch.zeros(1)}, "iteration": 0, "x": Touch(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    return path


def evil_yaml(path: Path, marker: Path) -> Path:
    """Write what ``yaml.unsafe_load`` would run."""
    path.write_text(f"VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.mknod ['{marker}']\n")
    return path


def remote_base_yaml(path: Path, address: str) -> Path:
    """Write a config that stands on one at an address."""
    path.write_text(f"_BASE_: {address}\nVERSION: 2\n")
    return path


def evil_tag(folder: Path, name: str) -> None:
    """Let the tag of a run name any file as its last checkpoint."""
    (folder / "last_checkpoint").write_text(name)


class Server(ThreadingHTTPServer):
    """A server on this machine that gives the same content under every path, and notes the requests."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.requests = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(content: bytes = b"") -> Iterator[Server]:
    """Run a :class:`Server` for the time of a with-block."""
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
