"""Pictures and sounds as data: folders of classes, columns of files, what is made of them, and everything that can be wrong."""

from __future__ import annotations

import io
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_hf
import tiny_tasks as tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, ViTConfig, Wav2Vec2Config

from mistakes import mistake
from names import name
from unipelt.training import TrainConfig, evaluate_run, load_run, predict_run, train
from unipelt.training import data as reading
from unipelt.training.models import load_config
from unipelt.training.options import TaskOptions
from unipelt.training.readers import SoundReader, load_reader
from unipelt.training.tasks import kind, task_for
from unipelt.training.tasks import media
from unipelt.training.tasks.pictures import picture_of
from unipelt.training.tasks.sounds import at_rate, sound_of

PICTURES, SOUNDS = kind("image-classification"), kind("audio-classification")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return tiny.write_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny.write_whisper(tmp_path_factory.mktemp("whisper"))


def grey(value: int = 100, size: tuple[int, int] = (16, 16), mode: str = "L") -> Image.Image:
    return Image.new(mode, size, value if mode in ("L", "P", "I", "I;16", "1") else None)


def write(folder: Path, *names: str, make=grey) -> Path:
    for i, file in enumerate(names):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".wav"):
            (folder / file).write_bytes(tiny.wav([0.1 * i, -0.1] * 600))
        elif file.endswith(".txt"):
            (folder / file).write_text("notes")
        else:
            make(20 * i).save(folder / file)
    return folder


def rows(folder: Path, *found: dict) -> reading.Split:
    return reading.read_file(tiny_hf.write_rows(folder / "train.jsonl", list(found)))


CLASSES = ("cats/1.png", "cats/2.PNG", "dogs/deep/1.jpg", "dogs/2.png")


# ---------------------------------------------------------------- folders


def test_a_folder_of_classes(tmp_path):
    write(tmp_path, *CLASSES, "notes.txt", "dogs/Thumbs.txt", ".hidden/1.png")
    (tmp_path / "cows").mkdir()
    found = reading.read(tmp_path)
    assert [(Path(r["image"]).name, r["label"]) for r in found["train"].rows] == [
        ("1.png", "cats"), ("2.PNG", "cats"), ("2.png", "dogs"), ("1.jpg", "dogs"),
    ]  # fmt: skip
    assert found.notes == (
        f"the folder `{tmp_path / 'cows'}` holds no pictures and is no class",
        f"2 files in `{tmp_path}` are no pictures of a class, such as `notes.txt`",
    )
    task = task_for(found["train"], TaskOptions())
    assert task.kind == "image-classification" and task.labels == ("cats", "dogs") and task.texts == ("image",)


def test_folders_of_splits(tmp_path):
    write(tmp_path, *(f"{s}/{n}" for s in ("Train", "dev", "more") for n in CLASSES))
    found = reading.read(tmp_path)
    assert set(found.splits) == {"train", "validation"} and len(found["validation"]) == 4
    assert found.notes == (f"the folder `{tmp_path / 'more'}` is no split and is not used",)
    write(tmp_path, "val/cats/1.png")
    assert "`dev` and `val`" in mistake("E0608", reading.read, tmp_path)[0]


def test_classes_may_be_called_like_splits(tmp_path):
    """A class `test` among others is a class; folders that are all splits are splits."""
    write(tmp_path, "test/1.png", "exam/1.png")
    assert {r["label"] for r in reading.read(tmp_path)["train"].rows} == {"test", "exam"}


def test_numbers_are_names_of_classes_in_folders(tmp_path):
    write(tmp_path, "0.5/1.png", "0.5/2.png", "1.5/1.png", "1.5/2.png")
    task = task_for(reading.read(tmp_path)["train"], TaskOptions())
    assert task.problem == "single_label" and set(task.labels) == {"0.5", "1.5"}


def test_folders_without_classes(tmp_path):
    message, help_ = mistake("E0608", reading.read, write(tmp_path / "a", "1.png", "2.png"))
    assert "holds no split" in message and "`a/cats/1.png`" in help_ and "train.csv" in help_
    (tmp_path / "b" / "cats").mkdir(parents=True)
    assert "`cats`" in mistake("E0608", reading.read, tmp_path / "b")[0]
    write(tmp_path / "c", *(f"train/{n}" for n in CLASSES), "test/notes.txt")
    message, _ = mistake("E0608", reading.read, tmp_path / "c")
    assert str(tmp_path / "c" / "test") in message and "no pictures" in message
    both = mistake("E0608", reading.read, write(tmp_path / "d", *CLASSES, "cats/1.wav"))[0]
    assert "1.wav" in both and "1.png" in both


def test_a_class_with_one_picture(tmp_path):
    write(tmp_path, *CLASSES, "cows/1.png")
    message, help_ = mistake("E0605", task_for, reading.read(tmp_path)["train"], TaskOptions())
    assert "`cows`" in message and "one picture" in message and "add pictures" in help_
    mistake("E0604", task_for, reading.read(write(tmp_path / "cats", "x/1.png", "x/2.png"))["train"], TaskOptions())


def test_a_label_that_training_has_not_seen(tmp_path, vit):
    write(tmp_path, *(f"train/{n}" for n in CLASSES), "val/cat/7.png")
    config = TrainConfig(method=name("lora"), model=vit, data=str(tmp_path), out=str(tmp_path / "run"))
    message, help_ = mistake("E0606", train, config)
    assert "val/cat/7.png" in message and "`cats`" in help_


# ---------------------------------------------------------------- columns


def test_columns_of_files(tmp_path):
    write(tmp_path, *CLASSES)
    split = rows(tmp_path, *({"file_name": n, "label": n[0]} for n in CLASSES))
    task = task_for(split, TaskOptions())
    assert task.kind == "image-classification" and task.texts == ("file_name",)
    assert task.read_inputs(split)[0] == (str(tmp_path / CLASSES[0]),)
    assert task_for(split, TaskOptions(task="image-classification", text=("file_name",))) == task
    other = rows(tmp_path, {"x": "1.png", "label": "a"}, {"x": "1.png", "label": "b"})
    message, help_ = mistake("E0603", task_for, other, TaskOptions(task="image-classification"))
    assert "no column of pictures" in message and "`--text`" in help_
    mistake("E0603", task_for, split, TaskOptions(task="image-classification", text=("file_name", "label")))
    message, _ = mistake("E0607", task.read_inputs, rows(tmp_path, {"file_name": 3, "label": "a"}))
    assert "line 1" in message and "not the name of a file" in message


def test_texts_with_pictures_beside_them_stay_texts(tmp_path):
    """A model of text is asked for, so the column of pictures is not what is read."""
    split = rows(tmp_path, {"text": "x", "image": "1.png", "label": 0}, {"text": "y", "image": "2.png", "label": 1})
    split = split.take([0, 1, 0, 1])
    bert = load_config(tiny_hf.write_bert(tmp_path / "bert"))
    assert task_for(split, TaskOptions(), bert).kind == "sequence-classification"
    assert task_for(split, TaskOptions(), ViTConfig()).kind == "image-classification"


def test_a_model_of_text_on_pictures(tmp_path):
    config = TrainConfig(method=name("lora"), model=tiny_hf.write_bert(tmp_path / "bert"), data=str(write(tmp_path / "d", *CLASSES)),
                         out=str(tmp_path / "run"))  # fmt: skip
    message, _ = mistake("E0633", train, config)
    assert "image-classification" in message


def test_several_labels_and_numbers(tmp_path):
    write(tmp_path, *CLASSES)
    several = task_for(
        rows(tmp_path, *({"image": n, "labels": ["a", "b"][: i % 2 + 1]} for i, n in enumerate(CLASSES))), TaskOptions()
    )
    assert (several.problem, several.labels, several.metric[0]) == ("multi_label", ("a", "b"), "micro_f1")
    number = task_for(rows(tmp_path, *({"image": n, "label": i / 3} for i, n in enumerate(CLASSES))), TaskOptions())
    assert number.problem == "regression"


# ---------------------------------------------------------------- pictures


def encoded(task, split, model):
    reader = load_reader(model, task, load_config(model))
    return task.encode(split, reader), reader


def test_unreadable_pictures(tmp_path, vit):
    write(tmp_path, *CLASSES, "cats/cut.png")
    whole = tiny.drawn("refund", random.Random(0))["image"]
    (tmp_path / "cats/cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dogs/text.png").write_text("no picture")
    (tmp_path / "dogs/empty.png").write_bytes(b"")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"  # for which Pillow would run another program
    (tmp_path / "dogs/eps.png").write_bytes(eps)
    split = reading.read(tmp_path)["train"]
    with pytest.raises(Exception) as caught:
        encoded(task_for(split, TaskOptions()), split, vit)
    found = caught.value.diagnostics
    assert {d.code for d in found} == {"E0650"} and all(d.help for d in found)
    names = {Path(d.message.split("`")[1]).name: d.message for d in found}
    assert set(names) == {"cut.png", "text.png", "empty.png", "eps.png"}
    assert "truncated" in names["cut.png"] and "it is empty" in names["empty.png"] and "no picture" in names["eps.png"]


def test_missing_pictures(tmp_path, vit):
    write(tmp_path, *CLASSES)
    split = rows(tmp_path, {"image": "cats/1.png", "label": "a"}, {"image": "cats/11.png", "label": "a"},
                 *[{"image": "dogs/2.png", "label": "b"}] * 2)  # fmt: skip
    message, help_ = mistake("E0650", encoded, task_for(split, TaskOptions()), split, vit)
    assert "line 2: `cats/11.png`" in message and "no such file" in message and "1.png" in help_


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_modes_of_pictures(tmp_path, vit, mode):
    """Whatever the mode, what is read is what the picture shows: here grey of the value 128 (or white)."""
    value = {"1": 1, "L": 128, "LA": (128, 255), "P": 128, "RGB": (128,) * 3, "RGBA": (128,) * 3 + (255,),
             "CMYK": (127, 127, 127, 0), "I;16": 128 * 256}[mode]  # fmt: skip
    picture = Image.new(mode, (16, 16), value)
    if mode == "P":
        picture.putpalette([v for i in range(256) for v in (i, i, i)])
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    picture.save(path)
    config = load_config(vit)
    reader = load_reader(vit, PICTURES(), config)
    read = reader(picture_of(str(path)))["pixel_values"]
    wanted = 1.0 if mode == "1" else 128 / 127.5 - 1
    assert read.shape == (3, 16, 16) and torch.allclose(read, torch.full_like(read, wanted), atol=1e-5)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_modes_that_would_be_clipped(tmp_path, mode):
    Image.new(mode, (4, 4), 70000).save(tmp_path / "a.tiff")
    with pytest.raises(reading.Unreadable, match="more than 8 bits"):
        picture_of(str(tmp_path / "a.tiff"))


def test_turned_pictures(tmp_path):
    """A camera that was held upright says so beside the picture."""
    picture, exif = Image.new("RGB", (8, 4)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert picture_of(str(tmp_path / "a.jpg")).size == (4, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_without_a_processor_the_configuration_says_the_same(tmp_path, channels):
    with_one = tiny.write_vit(tmp_path / "with", channels=channels)
    without = tiny.write_vit(tmp_path / "without", channels=channels, processor=False)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    picture = picture_of(str(tmp_path / "a.png"))
    a, b = (load_reader(m, PICTURES(), load_config(m))(picture)["pixel_values"] for m in (with_one, without))
    assert a.shape == (channels, 16, 16) and torch.allclose(a, b, atol=1e-5)


def test_processors_of_another_model(tmp_path, vit):
    data = write(tmp_path / "d", *CLASSES)
    wrong = tiny.write_vit(tmp_path / "vit", processor=False)
    processor = AutoImageProcessor.from_pretrained(vit)
    processor.size = {"height": 12, "width": 12}
    processor.save_pretrained(wrong)
    config = TrainConfig(method=name("lora"), model=wrong, data=str(data), out=str(tmp_path / "run"))
    message, help_ = mistake("E0651", train, config)
    assert "[1, 3, 12, 12]" in message and "preprocessor_config.json" in help_
    processor.do_resize = False
    processor.save_pretrained(wrong)
    grey(9, (16, 20)).save(data / "cats/1.png")
    message, help_ = mistake("E0651", train, config)
    assert "several sizes" in message and "do_resize" in help_
    (Path(wrong) / "preprocessor_config.json").write_text("{")
    mistake("E0613", train, config)
    many = load_config(vit)
    many.num_channels = 7
    mistake("E0651", load_reader, vit, PICTURES(), many)


def test_pictures_need_pillow(tmp_path, monkeypatch):
    path = write(tmp_path, "a.png") / "a.png"
    monkeypatch.setitem(sys.modules, "PIL", None)
    message, help_ = mistake("E0630", picture_of, str(path))
    assert "Pillow" in message and "unipelt[media]" in help_


def test_bytes_in_a_table(tmp_path, vit):
    """The hub's data sets hold pictures as bytes with a name."""
    import pyarrow
    import pyarrow.parquet

    write(tmp_path, *CLASSES)
    table = [{"image": {"bytes": (tmp_path / n).read_bytes(), "path": n}, "label": n[:4]} for n in CLASSES]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "train.parquet")
    split = reading.read_file(tmp_path / "train.parquet")
    task = task_for(split, TaskOptions())
    found, reader = encoded(task, split, vit)
    named = rows(tmp_path, *({"image": n, "label": n[:4]} for n in CLASSES))
    same, _ = encoded(task_for(named, TaskOptions()), named, vit)
    assert torch.equal(*(task.collate(e.examples, reader)["pixel_values"] for e in (found, same)))


def test_pictures_of_the_hub(tmp_path, vit, monkeypatch):
    """The hub's features of pictures are read as bytes, classes by their names."""
    import datasets

    write(tmp_path, *CLASSES)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cats", "dogs"])})
    held = {"image": [str(tmp_path / n) for n in CLASSES], "label": [0, 0, 1, 1]}
    whole = datasets.DatasetDict({"train": datasets.Dataset.from_dict(held, features)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: whole)
    split = reading.read("hub:some/pictures")["train"]
    assert isinstance(split.rows[0]["image"], dict) and split.rows[3]["label"] == "dogs"
    task = task_for(split, TaskOptions())
    found, reader = encoded(task, split, vit)
    for example, file in zip(found.examples, CLASSES, strict=True):
        assert torch.equal(example["inputs"]["pixel_values"], reader(picture_of(str(tmp_path / file)))["pixel_values"])
    assert torch.equal(
        reader(picture_of(Image.open(tmp_path / CLASSES[1])))["pixel_values"], found[1]["inputs"]["pixel_values"]
    )


@pytest.fixture(scope="module")
def run(vit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig(
        method=name("lora"), model=vit, data=tiny.splits(folder / "data", tiny.drawn, 30, 9), out=str(folder / "run"), epochs=1, batch_size=8,
        save_steps=2,
    )  # fmt: skip
    return config, train(config)


def test_files_that_are_not_kept_are_read_again(run, tmp_path, monkeypatch):
    from dataclasses import replace

    config, result = run
    monkeypatch.setattr(media, "KEPT", 0)
    again = train(replace(config, out=str(tmp_path / "run")))
    assert again.metrics == result.metrics and again.history == result.history


def test_a_run_keeps_the_adapter_alone(run, vit):
    config, result = run
    folder = Path(config.out)
    base = set(load_file(Path(vit) / "model.safetensors"))
    for place in (folder, *(folder / "checkpoints").glob("checkpoint-*")):
        tensors = load_file(place / "adapter.safetensors")
        assert tensors and sum(t.numel() for t in tensors.values()) == result.counts["stored"] + result.counts["head"]
        assert base & set(tensors) == {"classifier.weight", "classifier.bias"}
    assert json.loads((folder / "task.json").read_text())["task"]["kind"] == "image-classification"


def test_predicting_files(run, tmp_path):
    loaded = load_run(run[0].out)
    one = write(tmp_path, "a.png") / "a.png"
    found = predict_run(loaded, [[str(one)]])
    assert found[0]["file"] == str(one) and found[0]["label"] in tiny.CLASSES
    (tmp_path / "list.txt").write_text(f"{one}\n{one}\n")
    from unipelt.training.saved import read_texts

    assert [p["label"] for p in predict_run(loaded, read_texts(loaded, str(tmp_path / "list.txt")))] == [
        found[0]["label"]
    ] * 2
    message, _ = mistake("E0650", predict_run, loaded, [[str(tmp_path / "b.png")]])
    assert "b.png" in message
    (tmp_path / "none").mkdir()
    assert read_texts(loaded, str(tmp_path)) == [[str(one)]] == read_texts(loaded, str(one))
    mistake("E0605", read_texts, loaded, str(tmp_path / "none"))
    message, help_ = mistake("E0650", predict_run, loaded, [[str(tmp_path)]])
    assert "it is a folder" in message and "--file" in help_


def test_an_adapter_that_no_run_made(vit, tmp_path):
    """The user names the task, and the adapter has the labels."""
    import unipelt
    from unipelt.training.models import load_plain

    model = load_plain(vit, "image-classification")
    unipelt.apply(model, unipelt.load(name("lora")), "mine", labels=["dogs", "cats"], seed=0)
    unipelt.save(model, tmp_path / "saved", "mine")
    data = write(tmp_path / "d", *CLASSES[:3])  # one dog is enough to evaluate on
    asked = TaskOptions(task="image-classification")
    metrics, _, _ = evaluate_run(load_run(tmp_path / "saved", vit, options=asked, data=str(data)), str(data))
    found = predict_run(load_run(tmp_path / "saved", vit, options=asked), [[str(data / n)] for n in CLASSES[:3]])
    right = sum(p["label"] == n[:4] for p, n in zip(found, CLASSES))
    assert metrics["accuracy"] == pytest.approx(right / 3) and list(found[0]["probabilities"]) == ["dogs", "cats"]


def test_a_merged_model_is_read_by_a_pipeline(run, tmp_path):
    """What is merged is a plain folder with its image processor: transformers says of a file what the run says."""
    from transformers import pipeline

    from unipelt.training.saved import merge_run

    loaded = load_run(run[0].out)
    merge_run(loaded, tmp_path / "plain")
    file = write(tmp_path, "a.png") / "a.png"
    said = pipeline("image-classification", model=str(tmp_path / "plain"))(str(file))
    mine = predict_run(loaded, [[str(file)]])[0]["probabilities"]
    assert {s["label"]: s["score"] for s in said} == pytest.approx(mine, abs=1e-5)


def test_in_half_precision(run, tmp_path):
    from dataclasses import replace

    config, _ = run
    result = train(replace(config, out=str(tmp_path / "run"), dtype="bfloat16", max_steps=2))
    assert result.model.dtype == torch.bfloat16 and math.isfinite(result.metrics["test"]["loss"])
    metrics, _, _ = evaluate_run(load_run(result.folder), config.data)
    assert metrics == result.metrics["test"]


# ---------------------------------------------------------------- sounds


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_widths_of_samples(tmp_path, width):
    wanted = [0.0, 0.5, -0.5, 0.25, -1.0]
    (tmp_path / "a.wav").write_bytes(tiny.wav(wanted, 8000, width))
    samples, rate = sound_of(str(tmp_path / "a.wav"))
    assert rate == 8000 and torch.equal(samples, torch.tensor(wanted))


def test_channels_are_averaged(tmp_path):
    (tmp_path / "a.wav").write_bytes(tiny.wav([0.5, 0.25, -0.5, 0.0], channels=2))
    assert torch.equal(sound_of(str(tmp_path / "a.wav"))[0], torch.tensor([0.375, -0.25]))


@pytest.mark.parametrize("rate, wanted", [(4000, 16000), (44100, 16000), (16000, 8000)])
def test_a_tone_is_the_same_at_another_rate(rate, wanted):
    def tone(r: int, pitch: float) -> torch.Tensor:
        return torch.sin(2 * math.pi * pitch * torch.arange(r) / r)

    found = at_rate(tone(rate, 440), rate, wanted)
    assert len(found) == wanted
    inner = slice(wanted // 10, -wanted // 10)  # filters ring at the ends
    assert (found - tone(wanted, 440))[inner].abs().max() < 0.01
    if wanted < rate:  # a tone that the new rate cannot hold does not come back as a lower one
        assert at_rate(tone(rate, 0.9 * wanted), rate, wanted)[inner].abs().max() < 0.01


def floats() -> bytes:
    from scipy.io import wavfile

    out = io.BytesIO()
    wavfile.write(out, 8000, np.zeros(100, dtype=np.float32))
    return out.getvalue()


WHOLE = tiny.wav([0.1] * 400)


@pytest.mark.parametrize("raw, why", [
    (b"", "it is empty"), (b"no sound", "no WAV file"), (floats(), "no WAV file of whole numbers"), (tiny.wav([]), "no sound"),
    (WHOLE[:500], "cut off: it says 400 samples, and 228 are there"), (WHOLE[:30], "no WAV file"),
])  # fmt: skip
def test_unreadable_sounds(tmp_path, whisper, raw, why):
    write(tmp_path, "a/1.wav", "a/2.wav", "b/1.wav", "b/2.wav")
    (tmp_path / "b/1.wav").write_bytes(raw)
    split = reading.read(tmp_path)["train"]
    message, help_ = mistake("E0650", encoded, task_for(split, TaskOptions()), split, whisper)
    assert "b/1.wav" in message and why in message and "take it out" in help_


def test_long_sounds_are_cut_and_counted(tmp_path, whisper):
    write(tmp_path, "a/1.wav", "a/2.wav", "b/1.wav", "b/2.wav")
    (tmp_path / "b/1.wav").write_bytes(tiny.wav([0.1] * 6000))  # a second and a half
    split = reading.read(tmp_path)["train"]
    task = task_for(split, TaskOptions())
    reader = load_reader(whisper, task, load_config(whisper))
    fitted = task.fit(None, reader)
    assert (fitted.seconds, fitted.longest) == (1.0, "1 second") and task.seconds == 30
    assert fitted.encode(split, reader).truncated == 1
    assert task_for(split, TaskOptions(seconds=0.5)).fit(None, reader).encode(split, reader).truncated == 1
    assert task_for(split, TaskOptions(seconds=0.25)).fit(None, reader).encode(split, reader).truncated == 4
    said: list[str] = []
    config = TrainConfig(
        method=name("lora"), model=whisper, data=str(tmp_path), out=str(tmp_path / "run"), max_steps=1, batch_size=2
    )
    train(config, say=said.append)
    assert any("longer than 1 second and are cut" in line for line in said)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_models_that_take_samples(tmp_path, norm):
    """Without an extractor: 16 kHz, mean 0 and variance 1, with a mask where the model was trained with one."""
    (tmp_path / "config.json").write_text("{}")
    reader = load_reader(str(tmp_path), SOUNDS(), Wav2Vec2Config(feat_extract_norm=norm))
    assert isinstance(reader, SoundReader) and reader.rate == 16000 and reader.window is None
    task = SOUNDS(texts=("audio",), label="label", labels=("a", "b"), titles=("a", "b"), seconds=1.0)
    for file, length in (("a", 4000), ("b", 2000), ("c", 100)):
        (tmp_path / f"{file}.wav").write_bytes(tiny.wav([math.sin(i) for i in range(length)]))
    found = task.encode_inputs([[str(tmp_path / f"{n}.wav")] for n in "abc"], reader)
    assert [task.length_of(e) for e in found.examples] == [16000, 8000, 4000]
    batch = task.collate(found.examples, reader)
    assert batch["input_values"].shape == (3, 16000) and batch["input_values"][1, 8000:].abs().max() == 0
    assert batch["input_values"][1, :8000].std().item() == pytest.approx(1, rel=1e-3)
    assert ("attention_mask" in batch) == (norm == "layer")
    if norm == "layer":
        assert batch["attention_mask"].sum(1).tolist() == [16000, 8000, 4000]
    from dataclasses import replace

    padded = replace(task, padding="max_length").collate(found.examples[1:], reader)
    assert padded["input_values"].shape == (2, 16000)


def test_sounds_without_an_extractor(tmp_path):
    bare = tiny.write_whisper(tmp_path / "whisper", extractor=False)
    message, help_ = mistake("E0651", load_reader, bare, SOUNDS(), load_config(bare))
    assert "how it reads sounds" in message and "preprocessor_config.json" in help_


def test_sounds_have_one_label(tmp_path):
    write(tmp_path, "1.wav")
    split = rows(tmp_path, *({"audio": "1.wav", "labels": ["a", "b"][:n]} for n in (1, 2)))
    mistake("E0620", task_for, split, TaskOptions())
    numbers = rows(tmp_path, *({"audio": "1.wav", "label": n} for n in (0.5, 1.5)))
    mistake("E0620", task_for, numbers, TaskOptions(task="audio-classification"))


@pytest.mark.parametrize("options", [{"seconds": 3.0}, {"chat": True}, {"pattern": "{text}"}])
def test_options_of_other_tasks(tmp_path, options):
    split = reading.read(write(tmp_path, *CLASSES))["train"]
    mistake("E0620", task_for, split, TaskOptions(**options))
    mistake("E0620", TaskOptions(seconds=0.1).check)
