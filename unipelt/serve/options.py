"""The options of a server: which base and folders, and the limits within which strangers may use them."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Annotated

from ..training.options import KINDS, DType, Option, Rule, at_least, check

#: The loopback address: a server is reached from its own machine alone, unless it is told otherwise.
LOOPBACK = str(ipaddress.IPv4Address(socket.INADDR_LOOPBACK))
_PORT = Rule("is a number from 0 to 65535", lambda value: 0 <= value <= 65535)
#: Tasks whose inputs are texts. Those of the others are names of files, which a client must not choose.
OF_TEXTS = tuple(k for k in KINDS if not k.startswith(("image-", "audio-")))


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What `unipelt serve` may be told besides the model and the folders of adapters."""

    task: Annotated[
        str | None,
        Option("What the model is for: causal-lm, for completions, or for /predict one of "
               f"{', '.join(k for k in OF_TEXTS if k != 'causal-lm')}. Default: that of most adapters, else what the model was saved for.",
               choices=OF_TEXTS),
    ] = None  # fmt: skip
    name: Annotated[
        str | None, Option("What requests call the base. Default: its folder's name, or its name on the hub.")
    ] = None
    dtype: DType = None
    device: Annotated[
        str | None, Option("Where the model runs, as cpu or cuda:0. Default: a GPU where there is one.")
    ] = None
    force: Annotated[bool, Option("Attach adapters that were trained on other weights.")] = False
    host: Annotated[str, Option("The address to listen on; 0.0.0.0 for all of this machine's.")] = LOOPBACK
    port: Annotated[int, Option("The port to listen on; 0 for any that is free.", rule=_PORT)] = 8000
    max_adapters: Annotated[
        int,
        Option(
            "Adapters in memory at most; the one that was used longest ago makes room, and is read again when it is asked for.",
            rule=at_least(1),
        ),
    ] = 64
    max_batch: Annotated[int, Option("Texts that are computed together at most.", rule=at_least(1))] = 32
    max_queue: Annotated[
        int, Option("Texts that may wait for their turn; further requests are refused (429).", rule=at_least(1))
    ] = 256
    max_input: Annotated[int, Option("Tokens of a prompt at most, and of a text to predict for.", rule=at_least(1))] = (
        4096
    )
    max_tokens: Annotated[int, Option("Tokens of an answer at most.", rule=at_least(1))] = 1024
    max_body: Annotated[int, Option("Bytes of a request at most.", rule=at_least(1))] = 2**20
    timeout: Annotated[
        float, Option("Seconds after which a request is given up, its time in the queue included.", rule=at_least(0.1))
    ] = 120.0
    grace: Annotated[
        float, Option("Seconds that what runs has to end when the server is stopped.", rule=at_least(0))
    ] = 30.0
    reload: Annotated[
        float, Option("Seconds between two looks into the folders; 0: only at the start.", rule=at_least(0))
    ] = 2.0
    one_at_a_time: Annotated[
        bool, Option("Never compute texts of different adapters together: slower, to compare with.")
    ] = False

    def check(self) -> None:
        check(self)


DEFAULTS = ServeOptions()
