"""One base and many adapters behind HTTP: ``unipelt serve MODEL DIR…``.

The parts, each usable by itself, from the bottom up:

- `options`: the limits of a server; `refusals`: what a client is told when it does not get what it asked for;
- `catalogue`: folders on disk, by name; `shelf`: those of them that are in the model now;
- `decoding`: rows of texts that go on together, with a cache; `sampling` and `texts`: from scores to tokens to text;
- `writing` (language models) and `labelling` (all other tasks): what is done with the requests;
- `engine`: the thread that owns the model, and its queue. It knows no HTTP;
- `schemas`, `app`, `metrics`, `server`: HTTP. Only these need ``pip install 'unipelt[serve]'``.
"""
