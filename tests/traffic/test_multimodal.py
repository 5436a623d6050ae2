"""Images that come again: the published statistics, the bytes, and what is made when."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pytest_dynamo_bench import Concurrency, FixedSchedule, PooledImages, SlidingWindowImages
from pytest_dynamo_bench.errors import BenchmarkError, TrafficError
from pytest_dynamo_bench.traffic import (
    ImageFiles,
    NoiseImages,
    SyntheticTraffic,
    TraceFile,
    aiperf_rows,
    describe,
)

WINDOW = SlidingWindowImages(
    users=30, turns=8, window=5, text_tokens=8000, osl=1024, image_width=1080, image_height=2400,
    schedule=Concurrency(30),
)  # fmt: skip
POOL = PooledImages(
    requests=1000, images_per_request=1, pool=200, text_tokens=400, osl=150, image_width=640,
    image_height=480, schedule=Concurrency(64),
)  # fmt: skip


def test_the_published_window():
    figures = describe(WINDOW.load())
    assert (figures.requests, figures.sessions) == (240, 30)
    assert (figures.images, figures.distinct_images) == (1200, 360)
    assert figures.repeated_images_share == pytest.approx(0.70)
    assert figures.reusable_share == 0
    # About 12.4 GB of base64 over all requests.
    sent = figures.image_bytes / figures.distinct_images * figures.images * 4 / 3
    assert sent == pytest.approx(12.4e9, rel=0.01)


def test_the_published_pool():
    traffic = POOL.load()
    figures = describe(traffic)
    assert (figures.requests, figures.images, figures.distinct_images) == (1000, 1000, 200)
    assert figures.repeated_images_share == pytest.approx(0.80)
    first = [request.images[0] for request in traffic.requests[:200]]
    assert sorted(first) == list(range(200)) and first != sorted(first)
    rest = Counter(request.images[0] for request in traffic.requests[200:])
    # Uniform draws: 4 of each, of which some are never drawn and none often.
    assert len(rest) >= 190 and max(rest.values()) <= 14


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_windows_move_by_one_and_users_share_nothing(users, turns, window):
    source = dataclasses.replace(WINDOW, users=users, turns=turns, window=window)
    requests = list(source.generate())
    assert [(r.turn, r.session_id) for r in requests] == [
        (turn, f"user_{user}") for turn in range(turns) for user in range(users)
    ]
    shown = {}
    for user in range(users):
        own = [r.images for r in requests if r.session_id == f"user_{user}"]
        for before, after in itertools.pairwise(own):
            assert before[1:] == after[:-1] and after[-1] == before[-1] + 1
        shown[user] = {image for images in own for image in images}
        assert len(shown[user]) == window + turns - 1
    assert len(set.union(*shown.values())) == sum(map(len, shown.values()))
    assert len({block for r in requests for block in r.hash_ids}) == sum(
        len(r.hash_ids) for r in requests
    )


@given(st.integers(1, 30), st.integers(1, 4), st.data())
@settings(max_examples=40, deadline=None)
def test_every_image_of_a_pool_is_used_and_none_twice_in_a_request(requests, each, data):
    pool = data.draw(st.integers(each, requests * each))
    source = dataclasses.replace(POOL, requests=requests, images_per_request=each, pool=pool)
    made = [request.images for request in source.generate()]
    assert {image for images in made for image in images} == set(range(pool))
    assert all(len(images) == len(set(images)) == each for images in made)
    assert made == [request.images for request in source.generate()]


def test_draws_and_bytes_are_the_same_everywhere():
    drawn = [request.images[0] for request in itertools.islice(POOL.generate(), 8)]
    assert drawn == [25, 154, 134, 143, 38, 69, 178, 43]
    content = NoiseImages(64, 48, seed=7).encoded(3)
    digest = "4bc139db1e2e636b"
    assert hashlib.sha256(content).hexdigest().startswith(digest)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (30, 20), (300, 200)])
def test_noise_is_a_png_without_loss(width, height):
    images = NoiseImages(width, height, seed=1)
    content = images.encoded(4)
    assert images.encoded_bytes(4) == len(content)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (width, height))
        assert np.array_equal(np.asarray(image), images.pixels(4))
    assert not np.array_equal(images.pixels(4), images.pixels(5))
    assert not np.array_equal(images.pixels(4), NoiseImages(width, height, seed=2).pixels(4))


def test_nothing_is_made_before_it_is_asked_for():
    huge = dataclasses.replace(WINDOW, users=10**7, image_width=10**5, image_height=10**5)
    request = next(huge.generate())
    assert request.images == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (WINDOW, {"users": 0}, "SlidingWindowImages: users: must be a whole number, 1 or more"),
        (WINDOW, {"schedule": FixedSchedule()}, "schedule: must be a Concurrency"),
        (WINDOW, {"image_width": 1.5}, "image_width: must be a whole number"),
        (POOL, {"pool": 1001}, "pool: must be between the 1 images of a request and the 1000"),
        (POOL, {"images_per_request": 3, "pool": 2}, "pool: must be between the 3 images"),
    ],
)
def test_errors_name_the_field(source, changes, message):
    with pytest.raises(BenchmarkError, match=message):
        dataclasses.replace(source, **changes)


# --- files ------------------------------------------------------------------------------


def write(traffic, path):
    with path.open("w") as file:
        for row in aiperf_rows(traffic, lambda image: f"images/{image}.png"):
            file.write(json.dumps(row) + "\n")
    if traffic.images is not None:
        (path.parent / "images").mkdir(exist_ok=True)
        for image in {image for request in traffic.requests for image in request.images}:
            (path.parent / "images" / f"{image}.png").write_bytes(traffic.images.encoded(image))


@pytest.mark.parametrize(
    "source",
    [
        dataclasses.replace(WINDOW, users=2, turns=3, image_width=20, image_height=30),
        dataclasses.replace(POOL, requests=20, pool=5, image_width=20, image_height=30),
        SyntheticTraffic(isl=1500, osl=7, requests=4, schedule=Concurrency(2)),
    ],
)
def test_an_aiperf_dataset_reads_back(source, tmp_path):
    traffic = source.load()
    write(traffic, tmp_path / "dataset.jsonl")
    again = TraceFile(str(tmp_path / "dataset.jsonl"), source.schedule).load()
    assert describe(again) == describe(traffic)
    for one, other in zip(again.requests, traffic.requests, strict=True):
        assert (one.turn, one.input_tokens, one.output_tokens) == (
            other.turn, other.input_tokens, other.output_tokens,
        )  # fmt: skip
        assert len(one.images) == len(other.images)
        for image, original in zip(one.images, other.images, strict=True):
            assert again.images.data_url(image) == traffic.images.data_url(original)


def test_images_of_a_dataset_may_be_data_urls(tmp_path):
    url = NoiseImages(5, 4).data_url(0)
    (tmp_path / "d.jsonl").write_text(
        json.dumps({"text": "see", "image": url, "output_length": 3}) + "\n"
    )
    traffic = TraceFile(str(tmp_path / "d.jsonl"), Concurrency(1)).load()
    assert traffic.images.data_url(0) == url and traffic.images.size(0) == (5, 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": ["http://x/y.png"]}, "d.jsonl, line 1, field 'images': 'http://x/y.png' would"),
        ({"images": "a.png"}, "line 1, field 'images': must be a list"),
        ({"images": [3]}, "line 1, field 'images': must be paths or data URLs"),
    ],
)
def test_errors_of_images_in_a_file_say_where(row, message, tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "x", "output_length": 3} | row))
    with pytest.raises(TrafficError, match=message):
        TraceFile(str(tmp_path / "d.jsonl"), Concurrency(1)).load()


def test_a_missing_image_is_named(tmp_path):
    images = ImageFiles(("gone.png",), tmp_path)
    for ask in (images.encoded, images.encoded_bytes, images.size):
        with pytest.raises(TrafficError, match=r"gone\.png: the image cannot be read"):
            ask(0)


def test_files_that_are_no_images_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"hello")
    images = ImageFiles(("a.png",), Path(tmp_path))
    with pytest.raises(TrafficError, match="not PNG"):
        images.data_url(0)
    with pytest.raises(TrafficError, match=r"a\.png: not a readable image"):
        images.size(0)
