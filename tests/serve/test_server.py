"""The command `unipelt serve`: a process that says where it listens, serves, and ends what runs when it is told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from served import METHODS, Plain
from transformers import AutoTokenizer
from typer.testing import CliRunner

from unipelt.cli.app import app
from unipelt.language.report.diagnostics import PeltError
from unipelt.serve.options import LOOPBACK, ServeOptions
from unipelt.serve.server import serve

ROOT = Path(__file__).parents[2]


def post(address: str, body: dict[str, Any]) -> Any:
    asked = Request(f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(asked, timeout=60) as r:
        return json.load(r)


def metric(address: str, name: str) -> float:
    with urlopen(f"{address}/metrics", timeout=60) as r:
        lines = r.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


@pytest.mark.long
def test_a_process_serves_and_ends_what_runs_when_it_is_stopped(base: str, folder: Path, plain: Plain) -> None:
    command = [sys.executable, "-m", "unipelt", "serve", base, str(folder), "--port", "0", "--json", "--reload", "0.1"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    try:
        lines = ""
        while "}" not in lines:
            line = server.stdout.readline()  # type: ignore[union-attr]
            assert line, server.stderr.read()  # type: ignore[union-attr]
            lines += line
        address = json.loads(lines)["address"]
        tokenizer = AutoTokenizer.from_pretrained(base)
        ids = [2, *tokenizer("my parcel", add_special_tokens=False)["input_ids"]]
        wanted = {n: tokenizer.decode(plain.write(n, ids, 150), skip_special_tokens=True) for n in METHODS}
        found: dict[str, str] = {}

        def ask(name: str) -> None:
            body = {"model": name, "prompt": ids, "max_tokens": 150, "temperature": 0}
            found[name] = post(address, body)["choices"][0]["text"]

        threads = [threading.Thread(target=ask, args=(n,)) for n in METHODS]
        for t in threads:
            t.start()
        while not metric(address, "unipelt_running"):
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        for t in threads:
            t.join(60)
        assert found.items() <= wanted.items() and found
        assert server.wait(30) == 0
        with pytest.raises((URLError, OSError)):
            post(address, {"model": "ann", "prompt": "a"})
        said = server.stderr.read()  # type: ignore[union-attr]
        assert "`base` for causal-lm, with 5 adapters" in said and "has ended" in said and "Traceback" not in said
    finally:
        server.kill()
        server.communicate()


def test_an_address_in_use_and_a_missing_library_are_said_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        for port, host in ((taken.getsockname()[1], LOOPBACK), (0, "no such host")):
            with pytest.raises(PeltError) as caught:
                serve("nowhere", [], ServeOptions(port=port, host=host))
            assert caught.value.diagnostics[0].code == "E0863"
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(PeltError) as caught:
        serve("nowhere", [], ServeOptions())
    (d,) = caught.value.diagnostics
    assert d.code == "E0862" and d.help == "pip install 'unipelt[serve]'"


@pytest.mark.parametrize(
    "given, words",
    [
        (["--port", "99999"], "--port"), (["--max-batch", "0"], "--max-batch"), (["--task", "seq2sec"], "seq2seq"), (["--timeout", "0"], "--timeout"),
        (["--task", "image-classification"], "--task"), (["--device", "nonsense"], "nonsense"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(given: list[str], words: str, base: str, folder: Path) -> None:
    result = CliRunner().invoke(app, ["serve", base, str(folder), "--port", "0", *given])
    assert result.exit_code in (1, 2) and words in result.stderr and "Traceback" not in result.output


def test_the_help_says_what_a_user_asks() -> None:
    text = " ".join(CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "the `model` of a request names the adapter" in text and "no accounts" in text
    assert LOOPBACK in text and "--max-adapters" in text
