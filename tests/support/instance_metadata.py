"""The instance metadata service, version 2 only: without a token that it gave out it answers 401.

Usage: instance_metadata.py ADDRESS PORT FILE, where FILE is JSON that maps paths below meta-data/ to values. It is read anew
for every question.
"""

import json
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = {}
LONGEST = 21600
PREFIX = "X-aws-ec2-metadata-"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, text=""):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seconds = self.headers.get(PREFIX + "token-ttl-seconds", "")
        if self.path != "/latest/api/token":
            self.answer(404)
        elif "X-Forwarded-For" in self.headers:
            # It came through a proxy.
            self.answer(403)
        elif not seconds.isdigit() or not 1 <= int(seconds) <= LONGEST:
            self.answer(400)
        else:
            token = secrets.token_urlsafe(40)
            TOKENS[token] = time.monotonic() + int(seconds)
            self.answer(200, token)

    def do_GET(self):
        if TOKENS.get(self.headers.get(PREFIX + "token", ""), 0) < time.monotonic():
            self.answer(401)
            return
        with open(sys.argv[3], encoding="utf-8") as file:
            values = json.load(file)
        value = values.get(self.path.removeprefix("/latest/meta-data/"))
        self.answer(404 if value is None else 200, value or "")


ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
