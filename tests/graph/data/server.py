"""An HTTP server that misbehaves on purpose: server.py FOLDER

Serves the files of FOLDER on a free port of 127.0.0.1, prints the port, and appends one line for each request
to FOLDER/requests: the path, then the Range header or "-". The first part of the path says how it answers:

  /plain/F           as a good server, with ranges
  /norange/F         always the whole file
  /cut/N/F           with ranges; the connection is closed after N bytes of each answer
  /cutnorange/N/F    always the whole file; the first two connections are closed after N bytes
  /stall/N/F         with ranges; the first connection goes silent after N bytes
  /wrongrange/F      the first answer to a range begins elsewhere
  /busy/F            503 twice, then as /plain
  /redirect/F        302 to /plain/F
  /status/N/F        status N with a page
"""

import http.server
import pathlib
import re
import socketserver
import sys
import threading
import time

folder = pathlib.Path(sys.argv[1])
counts = {}
lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        requested = self.headers.get("Range")
        with lock:
            with open(folder / "requests", "a") as log:
                log.write(f"{self.path} {requested or '-'}\n")
            counts[self.path] = counts.get(self.path, 0) + 1
            attempt = counts[self.path]
        parts = self.path.strip("/").split("/")
        mode, name = parts[0], parts[-1]
        number = int(parts[1]) if len(parts) == 3 else None

        if mode == "redirect":
            return self.page(302, {"Location": f"/plain/{name}"})
        if mode == "status":
            return self.page(number)
        if mode == "busy" and attempt <= 2:
            return self.page(503)
        file = folder / name
        if not file.is_file():
            return self.page(404)

        content = file.read_bytes()
        total = len(content)
        match = re.fullmatch(r"bytes=(\d+)-", requested or "")
        if match and mode not in ("norange", "cutnorange"):
            first = int(match[1])
            if first >= total:
                return self.page(416, {"Content-Range": f"bytes */{total}"})
            if mode == "wrongrange" and attempt == 1:
                first -= 1
            content = content[first:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()

        cut = mode == "cut" or (mode == "cutnorange" and attempt <= 2)
        stall = mode == "stall" and attempt == 1
        self.wfile.write(content[:number] if cut or stall else content)
        self.wfile.flush()
        if stall:
            time.sleep(30)
        self.close_connection = cut or stall or self.close_connection

    def page(self, status, headers=None):
        body = b"<html>This page is not the archive.</html>" * 20
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # a client may hang up when it has what it wants


server = Server(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
