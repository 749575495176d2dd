"""Small servers of one bucket for tests, with as much of two protocols as gcsfs and adlfs use and nothing else.

One request is answered at a time, so that a condition and what depends on it are one step, as in the real stores.
"""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape


class Handler(BaseHTTPRequestHandler):
    """What both servers have: the objects, by name, each with its version and content, and the answers."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet: of two, the second would wait for the first to be acknowledged

    def log_message(self, *_):
        pass

    def _answer(self):
        split = urlsplit(self.path)
        self.query, self.body = dict(parse_qsl(split.query)), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            code, body, headers = self.answer(split.path)
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer

    def store(self, name, content):
        """Keep an object under a new version."""
        self.server.count += 1
        self.server.objects[name] = self.server.count, content
        return self.server.count


class Google(Handler):
    """The JSON interface of Google Cloud Storage."""

    def _facts(self, name):
        version, content = self.server.objects[name]
        return {"name": name, "bucket": "results", "size": str(len(content)), "generation": str(version)}

    def _json(self, facts):
        return 200, json.dumps(facts).encode(), {"Content-Type": "application/json"}

    def answer(self, path):
        objects = self.server.objects
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/results/o/?(.*)", path)
        if found is None:
            return 404, b"", {}
        name, upload = unquote(found[2]), self.command == "POST"
        if upload:
            name, content = self.query.get("name"), self.body
            if self.query["uploadType"] == "multipart":
                _, facts, content, _ = self.body.split(b"--==0==")
                name, content = json.loads(facts.split(b"\n\n", 1)[1])["name"], content.split(b"\n\n", 1)[1][:-1]
        elif not name:
            start = self.query.get("prefix", "")
            return self._json(
                {"kind": "storage#objects", "items": [self._facts(each) for each in objects if each.startswith(start)]}
            )
        wanted, there = self.query.get("ifGenerationMatch"), objects.get(name, (0, b""))
        heeds = wanted == "0" or self.server.heeds(self.command)
        if heeds and wanted is not None and there[0] and int(wanted) != there[0]:
            return 412, b"", {}
        if upload:
            if wanted not in (None, "0") and not there[0]:
                return 412, b"", {}
            self.store(name, content)
        if name not in objects:
            return 404, b"", {}
        if self.command == "DELETE":
            del objects[name]
            return 204, b"", {}
        return (200, there[1], {}) if self.query.get("alt") == "media" else self._json(self._facts(name))


class Azure(Handler):
    """The blobs of Azure's storage."""

    def answer(self, path):
        objects, (_, container, *rest) = self.server.objects, unquote(path).lstrip("/").split("/", 2)
        name = "".join(rest)
        if container != "results":
            return 404, b"", {"x-ms-error-code": "ContainerNotFound"}
        if not name:
            start = self.query.get("prefix", "")
            blobs = "".join(
                f"<Blob><Name>{escape(each)}</Name><Properties><Content-Length>{len(content)}</Content-Length>"
                f"<BlobType>BlockBlob</BlobType><Etag>{version}</Etag></Properties></Blob>"
                for each, (version, content) in objects.items()
                if each.startswith(start)
            )
            xml = f'<EnumerationResults ContainerName="results"><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>'
            return 200, f'<?xml version="1.0"?>{xml}'.encode(), {"Content-Type": "application/xml"}
        there, wanted = objects.get(name), self.headers.get("If-Match")
        if self.command == "PUT" and there and self.headers.get("If-None-Match") == "*":
            return 409, b"", {"x-ms-error-code": "BlobAlreadyExists"}
        other = wanted != f'"{there[0]}"' if there else self.command == "PUT"
        if self.server.heeds(self.command) and wanted and other:
            return 412, b"", {"x-ms-error-code": "ConditionNotMet"}
        if self.command == "PUT":
            return 201, b"", {"ETag": f'"{self.store(name, self.body)}"', "Last-Modified": self.date_time_string()}
        if there is None:
            return 404, b"", {"x-ms-error-code": "BlobNotFound"}
        if self.command == "DELETE":
            del objects[name]
            return 202, b"", {}
        version, content = there
        facts = {"ETag": f'"{version}"', "Last-Modified": self.date_time_string(), "x-ms-blob-type": "BlockBlob"}
        code = 200 if self.command == "HEAD" else 206
        return code, content, {**facts, "Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}


@contextlib.contextmanager
def serving(handler):
    """A server of this process while the block runs; its ``heeds(method)`` says whether it heeds conditions, but for creation."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.lock, server.objects, server.count, server.heeds = threading.Lock(), {}, 0, lambda method: True
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
