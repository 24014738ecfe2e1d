#!/bin/sh
# openai's stream helper raises for an answer that ended by its length, also where no format was asked for.
#
# `client.chat.completions.stream(...)` collects chunks, and `get_final_completion` gives them as one completion. Where its
# finish_reason is "length" it raises LengthFinishReasonError, "Could not parse response content", though no
# response_format was given and there is nothing to parse; `create(stream=True)` raises nothing for the same chunks.
# Seen with openai 3.57.0. The text is in the deltas.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0
"$folder/venv/bin/python" - <<'END'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai


class Canned(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for delta, end in (({"role": "assistant", "content": "Hel"}, None), ({}, "length")):
            choice = {"index": 0, "delta": delta, "finish_reason": end}
            chunk = {"id": "1", "created": 0, "model": "m", "object": "chat.completion.chunk", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", 0), Canned)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
asked = dict(model="m", messages=[{"role": "user", "content": "Hi"}])
parts = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**asked, stream=True)]
assert parts == ["Hel", None], parts
raised = None
with client.chat.completions.stream(**asked) as stream:
    deltas = [event.delta for event in stream if event.type == "content.delta"]
    try:
        stream.get_final_completion()
    except openai.LengthFinishReasonError as error:
        raised = error
print(f"openai {openai.__version__}: deltas {deltas}; get_final_completion raises: {raised}")
assert deltas == ["Hel"] and raised is not None, "the final completion is given"
END
